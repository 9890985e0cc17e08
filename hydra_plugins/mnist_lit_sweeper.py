"""The sweeper of grids, here since Hydra looks for plugins in the namespace `hydra_plugins` only."""

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.utils import JobReturn

from mnist_lit import messages
from mnist_lit.errors import interruption_behind
from mnist_lit.sweep import ledger, plugins
from mnist_lit.sweep.identity import job_name
from mnist_lit.sweep.overrides import all_overrides


class GridSweeper(BasicSweeper):
    """Hydra's basic sweeper for jobs that SweepCallback has checked: the launcher gets those that are not done."""

    def sweep(self, arguments: list[str]) -> Any:
        """Launch the jobs that are not done, and return what they returned."""
        assert self.config is not None
        assert self.hydra_context is not None
        overrides = all_overrides(self.hydra_context.config_loader, self.config)  # the arguments are in there, too
        done = ledger.names_done(Path(self.config.hydra.sweep.dir))
        grid = self.split_arguments(overrides, max_batch_size=None)[0]
        jobs = {name: job for job in grid if (name := job_name(self.config.sweep["keys"], job)) not in done}
        if len(jobs) < len(grid):
            print(f"{len(grid) - len(jobs)} of {len(grid)} jobs are done already")
        return self._launch(jobs, arguments)

    def _launch(self, jobs: dict[str, list[str]], arguments: Sequence[str]) -> list[Sequence[JobReturn]]:
        """Launch jobs, by their names, in batches.

        Where the launcher itself fails, its error is printed, and the jobs that have not begun are launched anew.
        """
        assert self.config is not None
        assert self.launcher is not None
        returns: list[Sequence[JobReturn]] = []
        while jobs:
            try:
                for batch in self.split_overrides_to_chunks(list(jobs.values()), self._batch_size()):
                    returns.append(self.launcher.launch(batch, initial_job_idx=sum(map(len, returns))))
                    for job in returns[-1]:
                        _ = job.return_value  # raises what the launcher could not even start
                break
            except Exception as error:  # a worker that was killed, a folder that nothing can be written to
                told = messages.named(error, arguments)
                # A job whose log cannot be opened has not begun, and never will.
                lost = Path(str(getattr(told, "filename", ""))).parent.name
                left = ledger.not_begun(Path(self.config.hydra.sweep.dir), jobs) - {lost}
                if interruption_behind(error) or not self._can_go_on() or len(left) == len(jobs):
                    raise
                # Not in a log: the one that is open is another job's.
                print(f"error: {messages.describe(told)}", file=sys.stderr)
                jobs = {name: job for name, job in jobs.items() if name in left}
        return returns

    def _can_go_on(self) -> bool:
        assert self.config is not None
        # With another launcher, others of its jobs may still run, or wait for a machine.
        is_over_at_once = self.config.hydra.launcher._target_ in (plugins.IN_PROCESS, plugins.JOBLIB)
        is_to_raise = self.config.sweep.on_error == "stop" or os.environ.get("HYDRA_FULL_ERROR") == "1"
        return is_over_at_once and not is_to_raise

    def _batch_size(self) -> int | None:
        assert self.config is not None
        if self.config.hydra.launcher._target_ != plugins.SUBMITIT_LOCAL:
            return self.max_batch_size
        # It starts a whole batch at once: one job with one thread on each core, or all would crawl.
        os.environ.setdefault("OMP_NUM_THREADS", "1")
        return self.max_batch_size or os.cpu_count()
