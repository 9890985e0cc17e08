"""Hydra's callback for two sweeps that take turns at each job, so that both meet the machine at the same speed."""

import os
import time
from pathlib import Path
from typing import Any

from hydra.core.utils import JobReturn
from hydra.experimental.callback import Callback
from omegaconf import DictConfig


class Turns(Callback):
    """From job number `first` on, counted from 1, waits before each job for the other sweep's turn to end.

    `own` and `other` are FIFOs: a byte in one gives its sweep a turn. `log` gets a line for each job taken in turn, its
    seconds from the end of the job before, less the wait. Who `begins` does not wait for its first turn.
    """

    def __init__(self, *, first: int, own: str, other: str, begins: bool, log: str) -> None:
        # For reading and writing, or opening would wait for the other.
        self.own, self.other = os.open(own, os.O_RDWR), os.open(other, os.O_RDWR)
        self.first, self.begins, self.log = first, begins, Path(log)
        self.number = 0
        self.ended = 0.0
        self.waited = 0.0

    def on_job_start(self, config: DictConfig, **kwargs: Any) -> None:
        """End the turn, and wait for the next."""
        self.number += 1
        arrived = time.perf_counter()
        if self.number > self.first:
            os.write(self.other, b".")
        if self.number >= self.first and not (self.begins and self.number == self.first):
            os.read(self.own, 1)
        self.waited = time.perf_counter() - arrived

    def on_job_end(self, config: DictConfig, job_return: JobReturn, **kwargs: Any) -> None:
        """Log the job's seconds."""
        now = time.perf_counter()
        if self.number >= self.first:
            with self.log.open("a") as log:
                print(now - self.ended - self.waited, file=log)
        self.ended = now
