"""What the folders of a sweep and of its jobs are called."""

import re
from collections.abc import Sequence
from hashlib import sha256

from mnist_lit.notation import split_override

MAX_NAME_LENGTH = 120  # characters; TensorBoard shows them all
MAX_NAME_BYTES = 255  # what file systems allow
FORBIDDEN = r'[<>:"/\\|?*]'  # by Windows; elsewhere it is the slash alone
DRAWN_NUMBER = r"\d+\.\d{9,}(e-?\d+)?"  # by a search; nobody types so many decimals


def short_keys(keys: Sequence[str]) -> dict[str, str]:
    """Map each dotted key to its last part, or to itself where two keys would share that."""
    last_parts = [key.rpartition(".")[2] for key in keys]
    return {key: last if last_parts.count(last) == 1 else key for key, last in zip(keys, last_parts, strict=True)}


def sweep_name(keys: Sequence[str], experiment: str | None) -> str:
    """Return the default name of a sweep over `keys`, of an experiment if there is one: `tuned,lr,batch_size,seed`.

    A swept `experiment` is left out: each job has a different one.
    """
    fixed = [experiment] if experiment and "experiment" not in keys else []
    return _as_folder(",".join([*fixed, *short_keys(keys).values()]))


def job_name(keys: Sequence[str], overrides: Sequence[str]) -> str:
    """Return the swept part of a job's overrides, legibly: `lr=0.1,batch_size=128,seed=3`.

    Numbers that a search drew have six digits: trials that agree in these are one job, which is trained once. What
    cannot stand in a folder's name becomes `_`.
    """
    overrides = [re.sub(DRAWN_NUMBER, lambda number: f"{float(number[0]):.6g}", override) for override in overrides]
    values = dict(split_override(override) for override in overrides if not override.startswith("~"))
    names = short_keys(keys)
    return _as_folder(",".join(f"{names[key]}={values[key]}" for key in keys))


def _as_folder(name: str) -> str:
    if len(name) > MAX_NAME_LENGTH or len(name.encode()) > MAX_NAME_BYTES:
        start = name[: MAX_NAME_LENGTH - 9].encode()[: MAX_NAME_BYTES - 9].decode(errors="ignore")
        name = f"{start}-{sha256(name.encode()).hexdigest()[:8]}"  # which keeps it unique
    return re.sub(FORBIDDEN, "_", name) or "single"
