"""The runs of a sweep, read from the `result.json` that each leaves, as a table."""

import json
import math
import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from mnist_lit.errors import UserError
from mnist_lit.notation import count
from mnist_lit.result import FILE_NAME, SCHEMA_VERSION

METRIC = "val/acc"  # what settings are ranked by, unless another is named
NEVER_ENDED, UNREADABLE = "never ended", "unreadable"
# Overrides that make no setting: what tells repetitions apart, where files are, what is drawn, how the sweep works.
NOT_SETTINGS = re.compile(r"seed|run_dir|data\.root|(callbacks\.pictures|sweep)(\..*)?")


def read_runs(folders: Iterable[Path]) -> pd.DataFrame:
    """Read the `result.json` of all runs: one row a run.

    A folder is a run's own, or holds runs' folders or those of days (outputs/train); one that is missing is a run
    that never began. Columns: `folder`, `run` (its path below the closest folder above all runs), the fields of
    `mnist_lit.result.Result` (`metrics` one column each, `measured` their names, also of those that were no numbers,
    `overrides` a dict, `arguments` the same as they were given), `git_commit` and `versions`.
    A run without a result.json that can be read has the status "never ended" (not begun, killed, or still running) or
    "unreadable", and hardly more.

    Raises UserError if none of the runs has ended.
    """
    folders = list(folders)
    paths = list(dict.fromkeys(path.resolve() for folder in folders for path in _run_folders(folder)))
    records = [_read(path) for path in paths]
    if all(record["status"] == NEVER_ENDED for record in records):
        seen = "no run's folder; name a sweep's folder, outputs/sweeps/NAME"
        if records:
            seen = (
                f"{count(len(records), 'folder')} without {FILE_NAME}; wait until one is done, or name a folder below"
            )
        raise UserError(f"no run has ended in {', '.join(map(str, folders))}: found {seen}")
    parent = os.path.commonpath([path.parent for path in paths])
    for path, record in zip(paths, records, strict=True):
        record |= {"run": path.relative_to(parent).as_posix(), "folder": path}
    return pd.DataFrame(records)


def metric_tags(runs: pd.DataFrame) -> list[str]:
    """Return the names of the metrics, such as `val/acc`, those of the test images last."""
    return sorted((tag for tag in runs.columns if "/" in tag), key=lambda tag: (is_test(tag), tag))


def is_test(tag: str) -> bool:
    """Return whether a metric is one of the test images."""
    return tag.startswith("test/")


def parse_overrides(overrides: Iterable[str]) -> dict[str, str]:
    """Turn Hydra's `["optimizer.lr=0.1", "+seed=3"]` into keys and values; of a key's several, the last counts."""
    parts = (text.lstrip("+").partition("=") for text in overrides)
    return {key: value for key, _, value in parts}


def setting_of(overrides: Mapping[str, str]) -> dict[str, str]:
    """Return the overrides that make a run's setting, which the runs that repeat it with other seeds share."""
    return {key: value for key, value in overrides.items() if not NOT_SETTINGS.fullmatch(key)}


def _run_folders(folder: Path) -> list[Path]:
    if not folder.is_dir() or _is_run(folder):
        return [folder]
    below = [path for path in sorted(folder.iterdir()) if path.name != "figures" and not path.name.startswith(".")]
    folders = [path for path in below if path.is_dir()]
    # A day's folder stands for its runs; any other is a run's, which has left nothing yet.
    return [run for path in folders for run in (_run_folders(path) if any(map(_is_run, path.iterdir())) else [path])]


def _is_run(folder: Path) -> bool:
    return (folder / FILE_NAME).exists() or (folder / "config.yaml").exists()


def _read(folder: Path) -> dict[str, Any]:
    kept = ("status", "seed", "error", "config_hash", "setting_hash", "device", "num_parameters")
    numbers = ("best_epoch", "fit_seconds", "images_per_second")
    others = ("measured", "overrides", "arguments", "history", "git_commit", "versions")
    nothing = {**dict.fromkeys((*kept, *others)), **dict.fromkeys(numbers, math.nan)}
    try:
        record = json.loads((folder / FILE_NAME).read_text(encoding="utf-8"))
        if record["schema_version"] != SCHEMA_VERSION:
            raise ValueError(f"schema_version is {record['schema_version']}, this program reads {SCHEMA_VERSION}")
        return {
            **{key: record[key] for key in kept},
            **{key: _number(record[key]) for key in numbers},
            **{tag: _number(value) for tag, value in record["metrics"].items()},
            "measured": frozenset(record["metrics"]),
            "overrides": parse_overrides(record["overrides"]),
            "arguments": record["overrides"],
            "history": {
                tag: [(step, value) for step, value in curve if value is not None]
                for tag, curve in record["history"].items()
            },
            "git_commit": record["git_commit"],
            "versions": ", ".join(f"{name} {version}" for name, version in record["versions"].items()),
        }
    except FileNotFoundError:
        return nothing | {"status": NEVER_ENDED, "error": f"no {FILE_NAME}: not begun, killed, or still at work"}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return nothing | {"status": UNREADABLE, "error": f"{FILE_NAME}: {type(error).__name__}: {error}"}


def _number(value: float | None) -> float:
    return math.nan if value is None else float(value)
