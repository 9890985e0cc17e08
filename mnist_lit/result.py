"""result.json: what a run found, written atomically and last."""

import json
import math
import os
import platform
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cache
from hashlib import sha256
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

from lightning_utilities.core.apply_func import apply_to_collection

from mnist_lit.version import __version__

SCHEMA_VERSION = 2  # since 2, `best_epoch` counts from 1
FILE_NAME = "result.json"
SCRATCH = ".part"  # how the name of a file ends that is being written

Status = Literal["finished", "diverged", "failed", "interrupted"]


@dataclass(frozen=True)
class Result:
    """One run, as reports read it.

    `history` is the run's curves (`train/loss`, `val/loss`, `val/acc`): lists of [step, value].
    `metrics` are those of the chosen checkpoint (`val/*`) and of the official test images (`test/*`).
    `fit_seconds` is the wall time of training with its validation, checkpoints and logging;
    `images_per_second` is training images over it. `best_epoch`, counted from 1, is the one in or after which the
    chosen checkpoint was saved. `setting_hash` is `config_hash` less the seed. A run that failed before it was built
    has no `setting_hash`, `device` or `num_parameters`.
    """

    status: Status
    config_hash: str
    overrides: Sequence[str]
    seed: int
    setting_hash: str | None = None
    device: str | None = None
    num_parameters: int | None = None
    metrics: Mapping[str, float] = field(default_factory=dict)
    best_epoch: int | None = None
    fit_seconds: float | None = None
    images_per_second: float | None = None
    error: str | None = None
    history: Mapping[str, Sequence[tuple[int, float]]] = field(default_factory=dict)

    def write(self, run_dir: Path) -> None:
        """Write `result.json` whole or not at all."""
        record = {
            "schema_version": SCHEMA_VERSION,
            **asdict(self),
            "versions": versions(),
            "git_commit": git_commit(),
        }
        write_json(run_dir / FILE_NAME, record)


def config_hash(config: Mapping[str, Any]) -> str:
    """Return 16 hex digits that are equal for equal resolved configurations, wherever run and data lie.

    Pictures do not count: they change nothing in what is trained.
    """
    content = {key: value for key, value in config.items() if key not in ("run_dir", "resume", "sweep")}
    content["data"] = {key: value for key, value in config["data"].items() if key != "root"}
    content["callbacks"] = {key: value for key, value in config["callbacks"].items() if key != "pictures"}
    folder = config["run_dir"]

    def elsewhere(text: str) -> str:
        """Cut the run folder off the paths below it, such as where checkpoints go."""
        return text[len(folder) :] if text == folder or text.startswith(f"{folder}/") else text

    text = json.dumps(apply_to_collection(content, str, elsewhere), sort_keys=True)
    return sha256(text.encode()).hexdigest()[:16]


def flatten(node: Any, prefix: str = "") -> Iterator[tuple[str, bool | int | float | str]]:
    """Yield the dotted key and value of every leaf of nested dictionaries; other leaves become text."""
    if isinstance(node, Mapping):
        for key, value in node.items():
            yield from flatten(value, f"{prefix}.{key}" if prefix else str(key))
    else:
        yield prefix, node if isinstance(node, bool | int | float | str) else str(node)


@cache
def versions() -> dict[str, str]:
    """Return the versions of Python and of what computes."""
    packages = ("torch", "lightning", "hydra-core")
    own = {"python": platform.python_version(), "mnist-lit": __version__}
    return own | {package: version(package) for package in packages}


@cache
def git_commit() -> str | None:
    """Return the commit of the checkout this package runs from (`-dirty` if changed), or None outside one.

    As it was when this process asked first, since what is changed later does not run in it.
    """
    checkout = Path(__file__).parents[1]
    if not (checkout / "pyproject.toml").exists():  # an installed package may lie in some other repository
        return None
    try:
        described = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"],
            cwd=checkout,
            capture_output=True,
            text=True,
            timeout=10,
            check=False,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return described.stdout.strip() or None


def read_result(run_dir: Path) -> dict[str, Any] | None:
    """Return `result.json` of a run folder as plain data, or None where it is not there yet, or damaged."""
    try:
        result: dict[str, Any] = json.loads((run_dir / FILE_NAME).read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):  # after a power cut, files may be empty
        return None
    return result if isinstance(result, dict) and {"config_hash", "status"} <= result.keys() else None


def newest_run(holds: str) -> str:
    """Name the newest folder below outputs/train that holds a file, or how such folders are named."""
    found = max(Path("outputs/train").glob(f"*/*/{holds}"), key=lambda path: path.lstat().st_mtime, default=None)
    return str(Path(*found.parts[:4])) if found else "outputs/train/DATE/TIME"


def write_json(path: Path, record: Mapping[str, Any]) -> None:
    """Write `record` whole or not at all; NaN and infinity become null."""
    record = apply_to_collection(record, float, lambda number: number if math.isfinite(number) else None)
    # One line for each field: readable, and short for curves of any length.
    lines = [f"  {json.dumps(key)}: {json.dumps(value, allow_nan=False)}" for key, value in record.items()]
    write_atomically(path, "{\n" + ",\n".join(lines) + "\n}\n")


def write_atomically(path: Path, content: str | bytes) -> None:
    """Write `content` to `path` so that readers see the old file or the new one, never a part; text becomes UTF-8."""
    scratch = path.with_name(f".{path.name}.{os.getpid()}{SCRATCH}")
    try:
        scratch.write_bytes(content.encode() if isinstance(content, str) else content)
        scratch.replace(path)
    finally:
        scratch.unlink(missing_ok=True)


def remove_scratch(folder: Path) -> None:
    """Remove what writers that were killed have left in a run's folder, which no other process may be writing to."""
    for path in folder.rglob(f".*.*.*{SCRATCH}"):
        path.unlink(missing_ok=True)
