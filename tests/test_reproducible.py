import shlex
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import Compose, Main, Train, Trained, read_checkpoint, read_result
from torch import Tensor
from torch.nn import functional

from mnist_lit.build import build
from mnist_lit.loss import OneHotMSE
from mnist_lit.run_folder import CONFIG_HEADER


def same_bits(first: dict[str, Any], second: dict[str, Any]) -> bool:
    weights, others = first["state_dict"], second["state_dict"]
    assert weights.keys() == others.keys()
    return all(torch.equal(weights[key].view(torch.int32), others[key].view(torch.int32)) for key in weights)


def test_same_seed_gives_the_same_bits(train_run: Train, trained: Trained) -> None:
    torch.manual_seed(77)  # whatever was drawn before
    again = train_run("seed=0", full=True)
    for checkpoint in ("best", "last"):
        assert same_bits(getattr(again, checkpoint), getattr(trained, checkpoint))
    assert again.result["metrics"] == trained.result["metrics"]
    assert again.history == trained.history
    assert again.result["config_hash"] == trained.result["config_hash"]


def test_pictures_and_loggers_change_no_bit(train_run: Train, trained: Trained) -> None:
    bare = train_run()
    assert same_bits(bare.best, trained.best)
    assert bare.result["metrics"] == trained.result["metrics"]
    assert bare.result["config_hash"] != trained.result["config_hash"]


def test_another_seed_gives_other_weights_and_scores(train_run: Train, trained: Trained) -> None:
    other = train_run("seed=1")
    assert not same_bits(other.best, trained.best)
    assert other.result["metrics"] != trained.result["metrics"]
    assert (trained.result["seed"], other.result["seed"]) == (0, 1)


def test_seed_fixes_the_order_of_the_images(train_run: Train, monkeypatch: pytest.MonkeyPatch) -> None:
    def order(seed: int, run: str) -> list[list[int]]:
        seen: list[list[int]] = []

        def noting(logits: Tensor, labels: Tensor) -> Tensor:
            if logits.requires_grad:
                seen.append(labels.tolist())
            return functional.cross_entropy(logits, labels)

        monkeypatch.setattr(OneHotMSE, "forward", staticmethod(noting))
        train_run(f"seed={seed}", "trainer.max_epochs=2", "test=false", run=run)
        return seen

    first = order(0, "first")
    assert order(0, "again") == first
    assert order(1, "other")[0] != first[0]
    assert first[16:] != first[:16]
    assert sorted(chain(*first[16:])) == sorted(chain(*first[:16]))


def test_split_depends_on_its_own_seed_only(make_config: Compose) -> None:
    def validation_indices(*overrides: str) -> list[int]:
        data = build(make_config(*overrides)).datamodule
        data.prepare_data()
        data.setup()
        return data.val.indices.tolist()

    assert validation_indices("seed=5") == validation_indices("seed=0")
    assert validation_indices("data.split_seed=1") != validation_indices()


def repeat_command(folder: Path) -> list[str]:
    """Take the arguments out of the comment that heads a run's config.yaml."""
    comment = (folder / "config.yaml").read_text(encoding="utf-8").splitlines()[0]
    lead = "# Repeat this run:  python -m mnist_lit.train "
    assert comment.startswith(lead)
    assert lead in CONFIG_HEADER
    return shlex.split(comment.removeprefix(lead))


def test_config_file_repeats_the_run(main: Main, tmp_path: Path) -> None:
    changes = ["seed=3", "optimizer=adamw", "scheduler=cosine", "model.hidden_sizes=[32]", "trainer.max_epochs=2"]
    assert main("data=sample", "callbacks.pictures.num_images=1", *changes).code == 0
    (first,) = (tmp_path / "outputs" / "train").glob("*/*")
    arguments = repeat_command(first)
    assert arguments == ["--config-dir", str(first.relative_to(tmp_path)), "--config-name", "config"]

    assert main(*arguments).code == 0
    (second,) = set((tmp_path / "outputs" / "train").glob("*/*")) - {first}
    assert same_bits(read_checkpoint(first, "best"), read_checkpoint(second, "best"))
    results = read_result(first), read_result(second)
    for key in ("metrics", "config_hash", "history", "seed", "best_epoch"):
        assert results[0][key] == results[1][key]
    assert results[0]["overrides"] == ["data=sample", "callbacks.pictures.num_images=1", *changes]
    # A report must not take it for another seed of the defaults.
    assert results[1]["overrides"] == [f"--config-dir={first}", "--config-name=config"]
    assert results[0]["seed"] == 3
    # The copy has another folder and command in its first lines, and nothing else differs.
    texts = [(folder / "config.yaml").read_text(encoding="utf-8").splitlines()[2:] for folder in (first, second)]
    assert texts[0] == texts[1]


def test_repeated_run_can_be_changed(main: Main, tmp_path: Path) -> None:
    assert main("data=sample", "debug=fast", "logger=none", "callbacks.pictures=null").code == 0
    (first,) = (tmp_path / "outputs" / "train").glob("*/*")
    assert main(*repeat_command(first), "optimizer.lr=0.5", f"hydra.run.dir={tmp_path / 'changed'}").code == 0
    hyper_parameters = read_checkpoint(tmp_path / "changed", "best")["hyper_parameters"]
    assert hyper_parameters["optimizer"]["lr"] == 0.5
    assert read_result(tmp_path / "changed")["config_hash"] != read_result(first)["config_hash"]
