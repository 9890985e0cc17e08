"""The sweeper of grids, here since Hydra looks for plugins in the namespace `hydra_plugins` only."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.utils import JobReturn

from mnist_lit.sweep import ledger
from mnist_lit.sweep.identity import job_name
from mnist_lit.sweep.overrides import all_overrides


class GridSweeper(BasicSweeper):
    """Hydra's basic sweeper for jobs that SweepCallback has checked: the launcher gets those that are not done."""

    def sweep(self, arguments: list[str]) -> Any:
        """Launch the jobs, in batches of at most `max_batch_size`, and return what they returned."""
        assert self.config is not None
        assert self.hydra_context is not None
        assert self.launcher is not None
        overrides = all_overrides(self.hydra_context.config_loader, self.config)  # the arguments are in there, too
        done = ledger.names_done(Path(self.config.hydra.sweep.dir))
        grid = self.split_arguments(overrides, max_batch_size=None)[0]
        jobs = [job for job in grid if job_name(self.config.sweep["keys"], job) not in done]
        if len(jobs) < len(grid):
            print(f"{len(grid) - len(jobs)} of {len(grid)} jobs are done already")
        returns: list[Sequence[JobReturn]] = []
        for batch in self.split_overrides_to_chunks(jobs, self._batch_size()) if jobs else []:
            returns.append(self.launcher.launch(batch, initial_job_idx=sum(map(len, returns))))
            for job in returns[-1]:
                _ = job.return_value  # raises what the launcher could not even start
        return returns

    def _batch_size(self) -> int | None:
        assert self.config is not None
        if not self.config.hydra.launcher._target_.endswith("submitit_launcher.LocalLauncher"):
            return self.max_batch_size
        # It starts a whole batch at once: one job with one thread on each core, or all would crawl.
        os.environ.setdefault("OMP_NUM_THREADS", "1")
        return self.max_batch_size or os.cpu_count()
