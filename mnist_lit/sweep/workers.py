"""Joblib's worker processes, forked from one that has imported torch already."""

import multiprocessing
import os
import signal
import sys
from multiprocessing import forkserver
from unittest.mock import patch

from mnist_lit.errors import UserError

PRELOADED = "mnist_lit.sweep.preloaded"


def fork_from_one(n_jobs: int) -> None:
    """Start the process that joblib's workers will be forked from; it imports while this one checks the jobs.

    Joblib itself would start each worker anew: seconds of imports each, and memory for a torch of its own. Each of
    the `n_jobs` workers (-1: one a core) has its share of the cores unless OMP_NUM_THREADS says otherwise, as joblib
    would have it. Only on Linux: elsewhere a forked process may find its system's libraries unusable.

    Raises UserError for no workers at all.
    """
    if n_jobs == 0:
        raise UserError("hydra.launcher.n_jobs=0: must be above 0, or -1: one a core")
    import joblib

    num_workers = joblib.effective_n_jobs(n_jobs)
    if sys.platform != "linux" or num_workers == 1:  # joblib runs the jobs of a single one in this process
        return
    try:
        from joblib.externals.loky.backend.context import set_start_method
    except ImportError:  # another joblib, perhaps: its own way is slower, and works
        return
    set_start_method("forkserver", force=True)
    multiprocessing.set_forkserver_preload([PRELOADED])
    num_threads = os.environ.get("OMP_NUM_THREADS", str(max(joblib.cpu_count() // num_workers, 1)))
    # multiprocessing's resource tracker cleans up after workers that a Ctrl-C has ended; its warnings help nobody.
    filters = ",".join(filter(None, [os.environ.get("PYTHONWARNINGS"), "ignore:resource_tracker"]))
    # A Ctrl-C that finds it importing must not end it with a traceback; `preloaded` lets its workers hear again.
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with patch.dict(os.environ, {"OMP_NUM_THREADS": num_threads, "PYTHONWARNINGS": filters}):
            forkserver.ensure_running()
    finally:
        signal.signal(signal.SIGINT, before)
