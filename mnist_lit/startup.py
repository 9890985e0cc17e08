"""What happens while libraries load: imports without what nobody needs, and a Ctrl-C that is heard."""

import atexit
import gc
import math
import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from unittest.mock import patch

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from lightning_utilities.core import imports

from mnist_lit import run_folder

# What torchmetrics imports if it is there; see `fast_imports`.
SLOW_TO_IMPORT = ("librosa", "scipy", "torch_fidelity", "torchvision", "transformers", "vmaf_torch")

CGROUP = Path("/sys/fs/cgroup")  # as a container sees its own


@contextmanager
def prompt_interrupts() -> Iterator[None]:
    """Exit at once on a Ctrl-C or SIGTERM until `fast_imports` are done: libraries would swallow it or fail oddly.

    From then on, either ends in order what runs, processes of the program's own among it.
    """
    own = {signal.SIGINT: signal.default_int_handler, signal.SIGTERM: signal.SIG_DFL}
    before = {number: signal.getsignal(number) for number in own}
    if threading.current_thread() is threading.main_thread():
        for number, handler in own.items():
            if before[number] is handler:
                signal.signal(number, _leave_at_once)
    try:
        yield
    finally:
        for number in own:
            if signal.getsignal(number) in (_leave_at_once, _end):
                signal.signal(number, before[number])


def _leave_at_once(number: int, frame: object) -> None:
    os.write(2, b"interrupted\n")
    try:
        if HydraConfig.initialized() and HydraConfig.get().mode == RunMode.RUN:
            run_folder.remove_unused(Path(HydraConfig.get().runtime.output_dir))
    finally:  # whatever that ran into: Hydra may not have made the folder yet
        os._exit(128 + number)


@contextmanager
def fast_imports(*, is_program: bool = True) -> Iterator[None]:
    """Import torch and lightning without garbage collection, and without what nothing here uses.

    The imports create half a million objects that all stay. Collecting garbage while they load takes 1.4 seconds, so
    it waits, and in a program of ours they are left out of later collections, too. torchmetrics, which lightning
    brings, spends 1.3 seconds on SciPy and torchvision, and 7 on transformers where it is installed, for metrics of
    sounds, images and texts, so these are reported missing meanwhile: a few of those metrics stay unavailable in this
    process. In a program of ours so is pyplot, and torch gets no more threads than a container may use processors.
    """
    if "lightning" in sys.modules:  # done before, as in every job of a sweep but the first
        _hear_interrupts()
        yield
        return
    has_requirement, has_package = imports.RequirementCache.__bool__, imports.package_available
    plots = ("matplotlib",) if is_program else ()  # of metrics, which a notebook may want
    hidden = (*SLOW_TO_IMPORT, *plots)
    was_enabled = gc.isenabled()
    gc.disable()
    if is_program:
        atexit.register(_silence_triton)  # before libraries register theirs, so that it runs after these
    try:
        with (
            patch.object(
                imports.RequirementCache,
                "__bool__",
                lambda cache: (cache.requirement or "").partition(">=")[0] not in hidden and has_requirement(cache),
            ),
            patch.object(imports, "package_available", lambda name: name not in hidden and has_package(name)),
        ):
            yield
    finally:
        if is_program:
            gc.freeze()
            _keep_to_quota()
        if was_enabled:
            gc.enable()
        _hear_interrupts()


def _silence_triton() -> None:
    """Drop what is written to stderr from here on, where triton is loaded, as torch does where it is installed.

    What is left out of collections lives to the end, and triton 3.9, which comes with torch 2.15, reports its part of
    that as 500 leaks, in 30 lines. To collect it first would take 1.4 seconds.
    """
    if "triton" in sys.modules:
        if sys.stdout is not None:  # as it is where the shell has closed it
            sys.stdout.flush()  # its errors shall be seen
        with Path(os.devnull).open("w") as nowhere:
            os.dup2(nowhere.fileno(), 2)


def _keep_to_quota() -> None:
    """Let torch have no more threads than a container may use processors: they would wait for one another."""
    if "torch" in sys.modules and "OMP_NUM_THREADS" not in os.environ:
        torch = sys.modules["torch"]
        if (quota := _quota()) < torch.get_num_threads():
            torch.set_num_threads(math.ceil(quota))


def _quota() -> float:
    """Return how many processors Linux's control groups, version 2 or 1, let this process use at a time."""
    for names in (["cpu.max"], ["cpu/cpu.cfs_quota_us", "cpu/cpu.cfs_period_us"]):
        with suppress(OSError, ValueError):  # not there, or "max"
            quota, period = map(int, " ".join((CGROUP / name).read_text() for name in names).split())
            return quota / period if quota > 0 else math.inf
    return math.inf


def busy_note() -> str | None:
    """Say so where other work keeps the processor busy: torch's threads wait for one another, and training crawls."""
    load, num_cores = os.getloadavg()[0], os.cpu_count() or 1  # of the last minute, ours included
    if load <= 1.4 * num_cores or sys.modules["torch"].get_num_threads() == 1:
        return None
    return f"other work keeps the {num_cores} cores busy (a load of {load:.1f}): OMP_NUM_THREADS=1 may be faster"


@cache
def tell_once_if_busy() -> None:
    """Print that note, in a sweep, whose first job tells whether it crawls."""
    if note := busy_note():
        print(f"note: {note}", file=sys.stderr)


def _hear_interrupts() -> None:
    """Let Ctrl-C raise KeyboardInterrupt again, and SIGTERM SystemExit: what runs ends in order by itself."""
    for number, handler in {signal.SIGINT: signal.default_int_handler, signal.SIGTERM: _end}.items():
        if signal.getsignal(number) is _leave_at_once:
            signal.signal(number, handler)


def _end(number: int, frame: object) -> None:
    raise SystemExit(128 + number)


@cache
def freeze_once() -> None:
    """Leave what the first job has imported out of later collections, each of which would take 10 to 40 ms longer.

    Only once, so that the garbage of later jobs is still collected. It is not in the entry point, whose functions
    launchers pickle by value, which fails for one with a cache.
    """
    gc.freeze()
