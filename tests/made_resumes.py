"""A run that can be cut off and resumed, as it is when nothing cuts it off."""

from pathlib import Path

import pytest
from made_processes import exit_code, in_child

# 16 steps an epoch; distortions and dropout draw random numbers in all of them, and the schedule spans the run.
SETTINGS = (
    "data=sample",
    "augmentation=affine_elastic",
    "trainer.max_epochs=3",
    "trainer.log_every_n_steps=5",
    "model.dropout=0.2",
    "optimizer.lr=0.1",
    "scheduler=one_cycle",
    "callbacks.pictures=null",
)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nothing cut off."""
    folder = tmp_path_factory.mktemp("whole")
    assert exit_code(in_child(*SETTINGS, f"hydra.run.dir='{folder}'", folder=folder)) == 0
    return folder
