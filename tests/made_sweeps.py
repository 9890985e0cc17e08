"""Sweeps of the sample, and what they leave."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from mnist_lit.train import main

QUICK = ("-m", "data=sample", "trainer.max_epochs=2")
Sweep = Callable[..., int]


@pytest.fixture
def sweep(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Sweep:
    """Run `mnist-lit-train -m ...` in this process and in `tmp_path`; return its exit code."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments: str) -> int:
        monkeypatch.setattr(sys, "argv", ["mnist-lit-train", *QUICK, *arguments])
        try:
            main()
        except SystemExit as ended:
            return int(ended.code or 0)
        return 0

    return run


def results(folder: str | Path) -> dict[str, dict[str, Any]]:
    return {path.parent.name: json.loads(path.read_text()) for path in sorted(Path(folder).glob("*/result.json"))}


def weights(folder: str | Path) -> dict[str, dict[str, torch.Tensor]]:
    return {
        path.parts[-3]: torch.load(path, weights_only=True)["state_dict"]
        for path in sorted(Path(folder).glob("*/checkpoints/best.ckpt"))
    }


def assert_same_sweep(one: Path, other: Path) -> None:
    first, second = results(one), results(other)
    assert first.keys() == second.keys()
    for name in first:
        assert first[name]["status"] == second[name]["status"]
        assert first[name]["metrics"] == second[name]["metrics"]
        assert first[name]["history"] == second[name]["history"]
    first_weights, second_weights = weights(one), weights(other)
    assert first_weights.keys() == second_weights.keys() == first.keys()
    for name, state in first_weights.items():
        assert all(torch.equal(tensor, second_weights[name][key]) for key, tensor in state.items())
