"""One line for each job that ends, wherever it ran."""

import threading
from contextlib import suppress
from pathlib import Path

from mnist_lit.sweep import ledger

INTERVAL = 1.0  # seconds between two looks at the folder, which may lie on another machine


class ProgressLines(threading.Thread):
    """Prints the lines of jobs that other processes run, from the files they leave in the sweep's `folder`."""

    def __init__(self, folder: Path) -> None:
        super().__init__(daemon=True)
        self.folder = folder
        self.told = self._ended()
        self.is_over = threading.Event()

    def run(self) -> None:
        """Look until it is over, and once more, or until nobody reads the lines."""
        with suppress(BrokenPipeError):
            while not self.is_over.wait(INTERVAL):
                self._tell()
            self._tell()

    def stop(self) -> None:
        """Print what is left and return."""
        self.is_over.set()
        self.join()

    def _tell(self) -> None:
        ended = self._ended()
        for name in sorted(ended.keys(), key=ended.__getitem__):
            if self.told.get(name) != ended[name]:
                print(ledger.progress_line(self.folder, name), flush=True)
        self.told = ended

    def _ended(self) -> dict[str, int]:
        return ledger.ends(self.folder, ledger.read_jobs(self.folder))
