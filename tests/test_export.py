"""Exported files give the network's answers to whoever runs them, or are not there."""

import importlib.util
import json
import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from conftest import Command, Main, Trained, compose_config, train
from torch import Tensor, nn

from mnist_lit import composition, export, formats, load_model
from mnist_lit.errors import UserError
from mnist_lit.formats import FORMATS, Format, Network, write_checked
from mnist_lit.predictor import Predictor

Opened = tuple[Network, dict[str, str]]


@pytest.fixture(scope="module")
def runs(trained: Trained, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One run's folder for each way to make probabilities of logits; the second has dropout, too."""
    composition.register_resolvers()
    folder = tmp_path_factory.mktemp("cross_entropy") / "run"
    overrides = ["loss=cross_entropy", "model.dropout=0.5", "callbacks.pictures=null", "logger=none"]
    train(compose_config(folder, *overrides))
    return {"one_hot_mse": trained.folder, "cross_entropy": folder}


def open_onnx(path: Path) -> Opened:
    """Open a file as somebody would who has never heard of this project."""
    onnxruntime = pytest.importorskip("onnxruntime")
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    described = [(node.name, node.type, node.shape) for node in (*session.get_inputs(), *session.get_outputs())]
    assert described == [
        ("images", "tensor(uint8)", ["batch", 28, 28]),
        ("probabilities", "tensor(float)", ["batch", 10]),
    ]
    return (
        lambda images: torch.from_numpy(session.run(["probabilities"], {"images": images.numpy()})[0]),
        session.get_modelmeta().custom_metadata_map,
    )


def open_program(path: Path) -> Opened:
    metadata = {"class_names": ""}
    program = torch.export.load(path, extra_files=metadata)
    assert program.graph_signature.user_inputs == ("images",)
    return program.module(), metadata


OPEN: dict[str, Callable[[Path], Opened]] = {"onnx": open_onnx, "torch_export": open_program}


@pytest.mark.parametrize("loss", ["one_hot_mse", "cross_entropy"])
@pytest.mark.parametrize("name", list(FORMATS))
def test_exported_file_gives_the_networks_probabilities(
    name: str, loss: str, runs: dict[str, Path], digits: Tensor, main: Main, tmp_path: Path
) -> None:
    if name == "onnx":
        pytest.importorskip("onnxscript")
    path = tmp_path / f"new/a,b=c{FORMATS[name].suffix}"
    outcome = main(f"ckpt={runs[loss]}", f"format={name}", f"output={path}", module="export")
    assert (outcome.code, outcome.err) == (0, "")
    assert "500 test digits, singly and at once" in outcome.out
    assert [found.name for found in tmp_path.rglob("*")] == ["new", path.name]  # no log, no scratch files
    network, metadata = OPEN[name](path)
    assert json.loads(metadata["class_names"]) == list("0123456789")
    with torch.no_grad():
        expected = load_model(runs[loss])(digits)
        for size in (1, 7, 500):
            torch.testing.assert_close(network(digits[:size]), expected[:size], atol=1e-5, rtol=0)


def test_default_is_onnx_in_the_run_folder_without_a_word_of_the_exporters(
    trained: Trained, command: Command, tmp_path: Path
) -> None:
    pytest.importorskip("onnxscript")
    path = trained.folder / "model.onnx"
    try:
        done = command("export", f"ckpt={trained.folder}")
        assert (done.returncode, done.stderr) == (0, "")
        assert [line.split()[0] for line in done.stdout.splitlines()] == ["file", "takes", "gives", "checked"]
        assert open_onnx(path)
        assert list(tmp_path.iterdir()) == []
    finally:
        path.unlink(missing_ok=True)


@pytest.mark.parametrize(
    ("checkpoint", "path"),
    [
        ("run/checkpoints/last.ckpt", "run/model"),
        ("checkpoints/best.ckpt", "model"),
        ("kept/mine.ckpt", "kept/mine.ckpt"),
    ],
)
def test_default_path_is_in_the_run_folder_or_beside_a_lone_checkpoint(checkpoint: str, path: str) -> None:
    assert export._default_path(Path(checkpoint)) == Path(path)


def always(images: Tensor, probabilities: Tensor) -> Tensor:
    return probabilities + 2e-5


def not_a_number(images: Tensor, probabilities: Tensor) -> Tensor:
    return probabilities * torch.nan


def for_the_last_digit(images: Tensor, probabilities: Tensor) -> Tensor:
    return torch.cat([probabilities[:-1], probabilities[-1:].flip(1)]) if len(images) > 1 else probabilities


def for_one_digit_alone(images: Tensor, probabilities: Tensor) -> Tensor:
    return probabilities + 1 if len(images) == 1 else probabilities


def not_a_number_at_once(images: Tensor, probabilities: Tensor) -> Tensor:
    return probabilities * torch.nan if len(images) > 1 else probabilities


@pytest.mark.parametrize("wrong", [not_a_number_at_once, always, not_a_number, for_the_last_digit, for_one_digit_alone])
def test_file_that_gives_other_answers_is_not_kept(
    wrong: Callable[[Tensor, Tensor], Tensor], trained: Trained, digits: Tensor, tmp_path: Path
) -> None:
    predictor = load_model(trained.folder)
    file_format = Format(
        suffix=".x",
        needs=(),
        write=lambda _, path: path.write_bytes(b"new"),
        read=lambda _: lambda images: wrong(images, predictor(images)),
    )
    (tmp_path / "model.x").write_text("old")
    with pytest.raises(UserError, match=r"model\.x: not written, since its probabilities would be up to .* away"):
        write_checked(predictor, tmp_path / "model.x", file_format, digits)
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("model.x", "old")]
    always_one = replace(file_format, read=lambda _: lambda images: predictor(images[:1]))
    with pytest.raises(UserError, match=r"model: cannot be written as \.x: RuntimeError: stack expects"):
        write_checked(predictor, tmp_path / "model.x", always_one, digits)
    with torch.no_grad():
        diverged = load_model(trained.folder)
        next(diverged.parameters()).fill_(torch.nan)
    with pytest.raises(UserError, match=r"model\.x: not written, since the network's probabilities are NaN"):
        write_checked(diverged, tmp_path / "model.x", file_format, digits)
    right = replace(file_format, read=lambda _: lambda images: predictor(images) + 5e-6)
    assert write_checked(predictor, tmp_path / "model.x", right, digits) == pytest.approx(5e-6, rel=0.1)
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("model.x", "new")]


def test_failed_check_ends_with_2_and_one_line(
    trained: Trained, main: Main, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(formats, "TOLERANCE", -1)
    outcome = main(f"ckpt={trained.folder}", "format=torch_export", "output=x.pt2", module="export")
    assert (outcome.code, outcome.out) == (2, "")
    assert outcome.err.startswith("error: x.pt2: not written, since its probabilities would be up to")
    assert outcome.err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_what_is_compared_on_is_the_checkpoints_data_or_another(
    trained: Trained, digits: Tensor, main: Main, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def note(predictor: Predictor, path: Path, file_format: Format, digits: Tensor) -> float:
        asked.append(digits)
        return 0.0

    monkeypatch.setattr(formats, "write_checked", note)
    monkeypatch.setattr(export, "NUM_DIGITS", 4)
    (Path.cwd() / "x.onnx").touch()
    for arguments in ([], ["data=sample", "data.val_size=0"]):
        assert main(f"ckpt={trained.folder}", "output=x.onnx", *arguments, module="export").code == 0
    assert [images.tolist() for images in asked] == [digits[:4].tolist()] * 2
    outcome = main(f"ckpt={trained.folder}", "data=sample", "data.source_dir=nowhere", module="export")
    assert outcome.code == 2
    assert "nowhere/train-images-idx3-ubyte is missing" in outcome.err


class Undecided(nn.Module):
    """A network that takes another way for other images, which no exporter can follow."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(784, 10)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.layer(images.flatten(1))
        return logits if logits.sum() > 0 else -logits


@pytest.mark.parametrize("name", list(FORMATS))
def test_network_that_cannot_be_exported_is_refused(
    name: str, digits: Tensor, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    if name == "onnx":
        pytest.importorskip("onnxscript")
    predictor = Predictor(
        model=Undecided(),
        mean=0.1,
        std=0.3,
        probabilities=lambda logits: logits.softmax(1),
        class_names=list("0123456789"),
    )
    with pytest.raises(UserError, match=r"^model: cannot be written as ") as refused:
        write_checked(predictor, tmp_path / "x", FORMATS[name], digits)
    assert "\n" not in str(refused.value)
    assert len(str(refused.value)) < 400
    assert list(tmp_path.iterdir()) == []
    assert capfd.readouterr() == ("", "")


def test_missing_packages_are_named_before_anything_is_done(
    main: Main, trained: Trained, monkeypatch: pytest.MonkeyPatch
) -> None:
    there = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name.startswith("onnx") else there(name))
    outcome = main(f"ckpt={trained.folder}", module="export")
    assert outcome.code == 2
    assert outcome.err == (
        "error: format=onnx: needs what is not installed here; pip install onnx onnxscript onnxruntime, or set "
        "format=torch_export\n"
    )


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        ([], "ckpt is missing: add ckpt=PATH, a .ckpt file or a run's folder (outputs/train/DATE/TIME)"),
        (["ckpt=.", "format=pickle"], "format=pickle: must be onnx or torch_export"),
        (["ckpt=.", "format=1"], "format=1: must be onnx or torch_export"),
        (["ckpt=x", "formt=onnx"], "formt is not a key: there are "),
        (["ckpt=x"], "ckpt=x: no such file or folder; "),
        (["ckpt={run}", "output=x.pt2"], "output=x.pt2: must end in .onnx, as a file of format=onnx does"),
        (["ckpt={run}", "output=x.onnx/", "format=torch_export"], "output=x.onnx: must end in .pt2, as a file of "),
        (["ckpt={run}", "output={run}/x.pt2", "format=torch_export"], "output={run}/x.pt2: is a folder; name a file"),
    ],
)
def test_mistakes_are_told_in_one_line(
    arguments: list[str], line: str, main: Main, trained: Trained, tmp_path: Path
) -> None:
    (trained.folder / "x.pt2").mkdir(exist_ok=True)
    outcome = main(*(argument.format(run=trained.folder) for argument in arguments), module="export")
    assert (outcome.code, outcome.out) == (2, "")
    assert outcome.err.startswith(f"error: {line.format(run=trained.folder)}")
    assert outcome.err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_logging_goes_on_after_the_exporters() -> None:
    with formats._silence():
        assert not logging.getLogger().isEnabledFor(logging.CRITICAL)
    assert logging.getLogger().isEnabledFor(logging.CRITICAL)
