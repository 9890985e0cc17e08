"""Files from which other programs run the network; written, read back and compared with it before they are kept."""

import importlib.util
import json
import logging
import tempfile
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from io import StringIO
from pathlib import Path

import torch
from torch import Tensor

from mnist_lit.errors import UserError
from mnist_lit.predictor import Predictor

# How far a probability may be from torch's. Sums of a few hundred float32 products, added in another order, differ
# by about 1e-6.
TOLERANCE = 1e-5

# The names of what goes in and comes out, and of the metadata that lists the classes as JSON.
IMAGES, PROBABILITIES, CLASS_NAMES = "images", "probabilities", "class_names"

# What exporters send through: two images, since a batch of one would be taken for a size that never changes.
EXAMPLE = (torch.zeros(2, 28, 28, dtype=torch.uint8),)
DYNAMIC_SHAPES = {IMAGES: {0: torch.export.Dim("batch")}}

Network = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Format:
    """A kind of file: its suffix, the modules it needs beside torch, and how it is written and run."""

    suffix: str
    needs: tuple[str, ...]
    write: Callable[[Predictor, Path], object]
    read: Callable[[Path], Network]


def find_format(name: str) -> Format:
    """Return one of FORMATS; raises UserError for modules that it needs and are missing."""
    missing = " ".join(module for module in FORMATS[name].needs if importlib.util.find_spec(module) is None)
    if missing:
        raise UserError(
            f"format={name}: needs what is not installed here; pip install {missing}, or set format=torch_export"
        )
    return FORMATS[name]


def write_checked(predictor: Predictor, path: Path, file_format: Format, digits: Tensor) -> float:
    """Write the network to `path`, if what was written gives its probabilities for all `digits` [N, 28, 28].

    They are sent through singly and all at once, as uint8 on the CPU. Returns the largest difference found; raises
    UserError if it is above TOLERANCE, or the network cannot be written and run. Then `path` is what it was before.
    """
    if not predictor(digits).isfinite().all():
        raise UserError(f"{path}: not written, since the network's probabilities are NaN: its training diverged")
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".export-") as folder:
        scratch = Path(folder) / path.name
        try:
            with _silence():
                file_format.write(predictor, scratch)
                difference = largest_difference(predictor, file_format.read(scratch), digits)
        except Exception as error:  # whatever a user's network makes an exporter raise
            raise UserError(f"model: cannot be written as {path.suffix}: {_first_line(error)}") from error
        if not difference <= TOLERANCE:  # a NaN, too
            raise UserError(
                f"{path}: not written, since its probabilities would be up to {difference:.1g} away from torch's "
                f"(allowed: {TOLERANCE:g}); try the other format, {' or '.join(FORMATS)}"
            )
        scratch.replace(path)
    return difference


@torch.no_grad()
def largest_difference(predictor: Predictor, network: Network, digits: Tensor) -> float:
    """Compare the probabilities of both for `digits` uint8 [N, 28, 28], sent singly and all at once."""
    expected = predictor(digits)
    singly = torch.cat([network(digit) for digit in digits.split(1)])
    found = torch.stack([singly, network(digits)])  # of equal shape, or this fails
    return float((found - expected).abs().max())


@contextmanager
def _silence() -> Iterator[None]:
    """Keep back what exporters print, warn of and log: every node left out, and whole programs after an error."""
    logging.disable()
    try:
        with warnings.catch_warnings(), redirect_stdout(StringIO()), redirect_stderr(StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(logging.NOTSET)


def _first_line(error: BaseException) -> str:
    """Return what went wrong at first, without the advice to exporters' authors that follows on more lines."""
    while error.__cause__ is not None:
        error = error.__cause__
    first_line, _, _ = str(error).strip().partition("\n")
    return f"{type(error).__name__}: {first_line}"


def _write_onnx(predictor: Predictor, path: Path) -> None:
    program = torch.onnx.export(
        predictor,
        EXAMPLE,
        dynamo=True,
        input_names=[IMAGES],
        output_names=[PROBABILITIES],
        dynamic_shapes=DYNAMIC_SHAPES,
        verbose=False,
    )
    assert program is not None
    program.model.metadata_props[CLASS_NAMES] = json.dumps(predictor.class_names)
    program.save(path, external_data=False)


def _read_onnx(path: Path) -> Network:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors only
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return lambda images: torch.from_numpy(session.run([PROBABILITIES], {IMAGES: images.numpy()})[0])


def _write_program(predictor: Predictor, path: Path) -> None:
    program = torch.export.export(predictor, EXAMPLE, dynamic_shapes=DYNAMIC_SHAPES)
    torch.export.save(program, path, extra_files={CLASS_NAMES: json.dumps(predictor.class_names)})


def _read_program(path: Path) -> Network:
    return torch.export.load(path).module()


FORMATS = {
    "onnx": Format(".onnx", ("onnx", "onnxscript", "onnxruntime"), _write_onnx, _read_onnx),
    "torch_export": Format(".pt2", (), _write_program, _read_program),
}
