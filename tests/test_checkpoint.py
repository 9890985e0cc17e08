"""Checkpoints as files one can trust: they know their network, and loading them executes nothing."""

import os
import pickle
import re
import shutil
import warnings
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest
import torch
from conftest import Trained
from torch import nn

from mnist_lit import load_model, trust
from mnist_lit.checkpoint import find_checkpoint, read_checkpoint
from mnist_lit.data.idx import read_idx
from mnist_lit.data.sources import SAMPLE_DIR, TEST_IMAGES, TEST_LABELS
from mnist_lit.errors import UserError

Plant = Callable[[dict[str, Any]], Path]


@pytest.fixture(scope="module")
def run_dir(trained: Trained) -> Path:
    return trained.folder


@pytest.fixture
def plant(run_dir: Path, tmp_path: Path) -> Plant:
    """Write the run's checkpoint with other content under the same keys."""

    def write(changes: dict[str, Any]) -> Path:
        content = torch.load(run_dir / "checkpoints" / "best.ckpt", weights_only=True)
        for key, value in changes.items():
            content["hyper_parameters"][key] = value
        torch.save(content, tmp_path / "planted.ckpt")
        return tmp_path / "planted.ckpt"

    return write


def test_a_run_folder_stands_for_its_best_checkpoint(run_dir: Path, tmp_path: Path) -> None:
    assert read_checkpoint(run_dir).path == run_dir / "checkpoints" / "best.ckpt"
    assert read_checkpoint(run_dir / "checkpoints").path == run_dir / "checkpoints" / "best.ckpt"
    (tmp_path / "checkpoints").mkdir()
    shutil.copy(run_dir / "checkpoints" / "last.ckpt", tmp_path / "checkpoints")
    assert read_checkpoint(tmp_path).path.name == "last.ckpt"


def test_the_loaded_model_scores_what_training_logged(run_dir: Path) -> None:
    model = load_model(run_dir)
    images = read_idx(SAMPLE_DIR / f"{TEST_IMAGES}.gz", num_dims=3, md5=None)
    labels = read_idx(SAMPLE_DIR / f"{TEST_LABELS}.gz", num_dims=1, md5=None)
    probabilities = model(images)
    assert not probabilities.requires_grad
    torch.testing.assert_close(probabilities.sum(dim=1), torch.ones(len(images)))
    accuracy = (probabilities.argmax(dim=1) == labels).float().mean().item()
    assert f'"test/acc": {accuracy}'[:20] in (run_dir / "result.json").read_text()
    assert model.class_names == list("0123456789")


@pytest.mark.parametrize(
    ("images", "got"),
    [
        (torch.zeros(28, 28, dtype=torch.uint8), "torch.uint8 [28, 28]"),
        (torch.zeros(3, 28, 28), "torch.float32 [3, 28, 28]"),  # from 0 to 1, perhaps
        (np.zeros((3, 28, 28), dtype=np.uint8), "ndarray"),
    ],
)
def test_the_loaded_model_takes_nothing_but_pixels(images: Any, got: str, run_dir: Path) -> None:
    with pytest.raises(UserError, match=f"^{re.escape(f'images={got}: must be a torch.uint8 tensor [B, 28, 28], ')}"):
        load_model(run_dir)(images)


def test_a_malicious_pickle_is_refused_and_not_executed(tmp_path: Path) -> None:
    class Malicious:
        def __reduce__(self) -> tuple[Any, ...]:
            return (os.mkdir, (str(tmp_path / "executed"),))

    torch.save({"state_dict": Malicious()}, tmp_path / "a.ckpt")
    (tmp_path / "b.ckpt").write_bytes(pickle.dumps(Malicious()))
    for name in ("a.ckpt", "b.ckpt"):
        with pytest.raises(UserError, match=f"{name}: refused, since it is no checkpoint, or holds more"):
            read_checkpoint(tmp_path / name)
    assert not (tmp_path / "executed").exists()


def test_a_program_is_refused_without_torchs_advice_to_run_it(tmp_path: Path) -> None:
    with warnings.catch_warnings(action="ignore"):  # torch.jit is deprecated
        torch.jit.script(torch.nn.Linear(1, 1)).save(tmp_path / "x.pt")
    with pytest.raises(UserError, match=r"x\.pt: damaged or no checkpoint: it is TorchScript, a program$"):
        read_checkpoint(tmp_path / "x.pt")


def test_a_run_may_lie_in_a_folder_called_checkpoints(tmp_path: Path) -> None:
    best = tmp_path / "checkpoints" / "checkpoints" / "best.ckpt"
    best.parent.mkdir(parents=True)
    best.touch()
    assert find_checkpoint(best.parents[1]) == find_checkpoint(best.parent) == best


def test_a_run_without_a_best_checkpoint_says_which_there_are(run_dir: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(run_dir / "checkpoints", folder / "checkpoints")
    (folder / "checkpoints" / "best.ckpt").rename(folder / "checkpoints" / "epoch=2.ckpt")
    with pytest.raises(UserError, match=r"holds no checkpoints/best.ckpt; name one of .*/checkpoints/: epoch=2.ckpt$"):
        load_model(folder)


@pytest.mark.parametrize(
    "target",
    [
        *("os.mkdir", "mnist_lit.cli.os.mkdir", "torch.nn.modules.module.warnings.warn"),
        *("torch.nn.utils.clip_grad_norm_", "mnist_lit.module.MeanMetric"),
    ],
)
@pytest.mark.parametrize("part", ["model", "loss"])
def test_a_configuration_may_only_name_networks_and_losses(
    part: str, target: str, plant: Plant, tmp_path: Path
) -> None:
    path = plant({part: {"_target_": target, "path": str(tmp_path / "executed")}})
    with pytest.raises(UserError, match=rf"^{part}\._target_={target}: is no network"):
        load_model(path)
    with pytest.raises(UserError, match="no network"):
        load_model(plant({part: {"_target_": "torch.nn.ReLU", "x": {"_target_": target}}}))
    # Hydra builds what is in lists, too.
    planted = {"_target_": target, "path": str(tmp_path / "executed")}
    for hidden in ([planted], (planted,), [[planted]]):
        with pytest.raises(UserError, match=r"x(\.0)?.*(no network|=tuple: .*not plain data)"):
            load_model(plant({part: {"_target_": "torch.nn.Identity", "x": hidden}}))
    assert not (tmp_path / "executed").exists()


def test_text_is_never_read_as_a_configuration(run_dir: Path, plant: Plant, tmp_path: Path) -> None:
    class Malicious:
        def __reduce__(self) -> tuple[Any, ...]:
            return (os.mkdir, (str(tmp_path / "executed"),))

    torch.save(Malicious(), tmp_path / "payload.pt")
    text = f"_target_: torch.load\nf: {tmp_path / 'payload.pt'}\nweights_only: false"
    config = read_checkpoint(run_dir).config
    for part in ("model", "loss"):
        with pytest.raises(UserError, match=rf"^{part}: .*names no class"):
            trust.restore(config | {part: text})
    for node in (text, [text], {"root": text}):
        with pytest.raises(UserError, match=r"^data: .*names no class"):
            trust.restore_data(node)  # type: ignore[arg-type]
    for part in ("model", "loss", "data"):
        with pytest.raises(UserError):
            load_model(plant({part: text}))
    # Deeper it stays text, whether the class takes it or refuses it.
    for hidden in (text, [text], {"y": text}, {"y": [{"z": text}]}):
        model = trust.restore(config | {"model": {"_target_": "torch.nn.Identity", "x": hidden}}).model
        assert isinstance(model, nn.Identity)
        with pytest.raises(UserError):
            trust.restore(config | {"model": {"_target_": "torch.nn.Sequential", "_args_": [hidden]}})
        with pytest.raises(UserError):
            trust.restore_data(config["data"] | {"augmentation": hidden, "name": hidden})
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize("value", [b"text", torch.zeros(1), OrderedDict(a=1), {1: 2}, (1,), {1}, "???"], ids=repr)
def test_a_configuration_holds_plain_data_only(run_dir: Path, value: Any) -> None:
    config = read_checkpoint(run_dir).config
    for hidden in (value, [value], {"y": value}):
        with pytest.raises(UserError, match=r"^model\.x.*not plain data"):
            trust.restore(config | {"model": {"_target_": "torch.nn.Identity", "x": hidden}})


def test_a_configuration_is_not_resolved_again(plant: Plant, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET", "ReLU")
    model = {"_target_": "torch.nn.Identity", "x": ["${oc.env:SECRET}"]}
    with pytest.raises(UserError, match=r"^model\.x\.0=.*SECRET.*: the checkpoint.s configuration is not plain data"):
        load_model(plant({"model": model}))


def test_a_users_own_network_loads_once_it_is_trusted(
    plant: Plant, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code = "from mnist_lit.model import MLP\nclass Net(MLP): pass\ndef net(**more): return Net(**more)\n"
    (tmp_path / "mine.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    path = plant({})
    model = read_checkpoint(path).config["model"] | {"_target_": "mine.Net"}
    with pytest.raises(UserError, match=r"add 'trusted=\[mine\]'"):
        load_model(plant({"model": model}))
    for target in ("mine.Net", "mine.net"):
        trusted = load_model(plant({"model": model | {"_target_": target}}), trusted=["mine"])
        assert type(trusted.model).__name__ == "Net"
    (tmp_path / "mnist_lit_too.py").write_text(code)  # not ours, for all its name
    with pytest.raises(UserError, match=r"add 'trusted=\[mnist_lit_too\]'"):
        load_model(plant({"model": model | {"_target_": "mnist_lit_too.Net"}}))
    # Not what it merely imports; and all of torch is too much to trust.
    with pytest.raises(UserError, match="no network"):
        load_model(plant({"model": {"_target_": "mine.MLP.__init__.__globals__"}}), trusted=["mine"])
    with pytest.raises(UserError, match=r"for a function, write a class of your own, torch\.nn\.Module"):
        load_model(plant({"loss": {"_target_": "torch.nn.functional.mse_loss"}}))


def test_arguments_that_a_network_does_not_take_are_named(plant: Plant, run_dir: Path) -> None:
    model = read_checkpoint(run_dir).config["model"] | {"dropuot": 0.5}
    with pytest.raises(UserError, match=r"^model\.dropuot=0\.5: not a key; did you mean dropout\?"):
        load_model(plant({"model": model}))


def test_weights_that_do_not_fit_are_refused(plant: Plant, run_dir: Path) -> None:
    model = read_checkpoint(run_dir).config["model"] | {"hidden_sizes": [21]}
    with pytest.raises(UserError, match="weights do not fit"):
        load_model(plant({"model": model}))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "no such file or folder"),
        (b"", "damaged or no checkpoint"),
        (b"PK\x03\x04 not a zip file", "damaged or no checkpoint"),
    ],
)
def test_what_is_no_checkpoint_is_named(content: bytes | None, message: str, tmp_path: Path) -> None:
    path = tmp_path / "x.ckpt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError, match=message) as error:
        read_checkpoint(path)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


def test_truncated_and_foreign_checkpoints_are_named(run_dir: Path, tmp_path: Path) -> None:
    whole = (run_dir / "checkpoints" / "best.ckpt").read_bytes()
    (tmp_path / "cut.ckpt").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match="damaged or no checkpoint"):
        read_checkpoint(tmp_path / "cut.ckpt")
    torch.save({"state_dict": {}}, tmp_path / "foreign.ckpt")
    with pytest.raises(UserError, match="does not hold its configuration"):
        read_checkpoint(tmp_path / "foreign.ckpt")
    with pytest.raises(UserError, match=r"holds no checkpoints/best\.ckpt"):
        read_checkpoint(tmp_path)


@pytest.mark.parametrize(
    "key",
    [
        *("epoch", "global_step", "state_dict", "hyper_parameters"),
        *(f"hyper_parameters.{key}" for key in ("model", "loss", "data", "trainer")),
        *(f"hyper_parameters.data.{key}" for key in ("class_names", "mean", "std")),
    ],
)
def test_a_checkpoint_must_hold_what_is_read_of_it(run_dir: Path, tmp_path: Path, key: str) -> None:
    content = torch.load(run_dir / "checkpoints" / "best.ckpt", weights_only=True)
    *groups, last = key.split(".")
    group = content
    for name in groups:
        group = group[name]
    for other in ("text", [1], ["0", 1], {1: 2}):
        group[last] = other
        torch.save(content, tmp_path / "other.ckpt")
        with pytest.raises(UserError, match=rf"does not hold its configuration and weights \({key}"):
            read_checkpoint(tmp_path / "other.ckpt")
    del group[last]
    torch.save(content, tmp_path / "less.ckpt")
    with pytest.raises(UserError, match=rf"\({key}.* is missing"):
        read_checkpoint(tmp_path / "less.ckpt")


def test_flipped_bytes_are_named_or_do_not_matter(run_dir: Path, tmp_path: Path) -> None:
    whole = (run_dir / "checkpoints" / "best.ckpt").read_bytes()
    with zipfile.ZipFile(run_dir / "checkpoints" / "best.ckpt") as archive:
        (pickled,) = (entry for entry in archive.infolist() if entry.filename.endswith("/data.pkl"))
    start, random, refused = pickled.header_offset + 30, Random(0), 0
    for _ in range(60):
        damaged = bytearray(whole)
        damaged[random.randrange(start, start + pickled.file_size)] ^= random.randrange(1, 256)
        (tmp_path / "damaged.ckpt").write_bytes(damaged)
        try:
            load_model(tmp_path / "damaged.ckpt")
        except UserError:
            refused += 1
    assert refused > 20
