"""How the values of keys, numbers and counts are read and written."""

import json
import math
import re
from collections.abc import Iterable
from itertools import pairwise
from statistics import median
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # which takes a quarter of a second, and every run reads numbers
    import pandas as pd

Value = float | str  # of a swept key


def parsed(text: str) -> Value:
    """Return a finite number, or the text as it is, without quotes around its letters."""
    try:
        number = float(text)
    except ValueError:
        return re.sub(r"^(['\"])(\D.*)\1$", r"\2", text)
    return number if math.isfinite(number) else text


def split_override(override: str) -> tuple[str, str]:
    """Split `+KEY@PACKAGE=VALUE` into key and value, without what stands before and behind the key."""
    key, _, value = override.partition("=")
    return key.lstrip("+~").partition("@")[0], value


def in_yaml(value: Any) -> str:
    """Return a value of the configuration as it is written there: `null`, `true`."""
    return json.dumps(value) if value is None or isinstance(value, bool) else str(value)


def shown(value: Value) -> str:
    """Return a value as a person would type it: `0.1`, `128`, `adam`."""
    if isinstance(value, str):
        return value
    return f"{value:.12g}" if value.is_integer() else f"{value:.6g}"


def cut(text: str, most: int) -> str:
    """Return at most `most` characters of a text, dots in its middle where it was longer: ends differ, too."""
    num_first, num_last = most // 2 - 1, (most + 1) // 2 - 2
    return text if len(text) <= most else f"{text[:num_first]}...{text[-num_last:]}"


def count(number: int, name: str) -> str:
    """Return `1 run`, `2 runs`."""
    return f"{number} {name}{'' if number == 1 else 's'}"


def duration(seconds: float) -> str:
    """Return seconds in the unit that suits them: `90 s`, `12 min`, `2.5 h`."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def fixed(number: float, decimals: int) -> str:
    """Return a number with so many decimals, a dash for NaN."""
    return "-" if math.isnan(number) else f"{number:.{decimals}f}"


def plus_minus(mean: float, sd: float, decimals: int) -> str:
    """Return `0.9482 ± 0.0013`, or the mean alone where `sd` is NaN."""
    return fixed(mean, decimals) if math.isnan(sd) else f"{mean:.{decimals}f} ± {sd:.{decimals}f}"


def mean_and_sd(values: "pd.Series[float]") -> str:
    """Return mean and standard deviation (n - 1 below) of the values that are not NaN."""
    mean, sd = float(values.mean()), float(values.std())
    return plus_minus(mean, sd, num_decimals([mean], [sd]))


def num_decimals(means: Iterable[float], sds: Iterable[float] = ()) -> int:
    """Return how many decimals show the middle spread's first digit; at least 4, which accuracies need.

    The spread is the standard deviation, or the step from one mean to the next where there is none above 0.
    """
    spreads = [sd for sd in sds if sd > 0] or [step for a, b in pairwise(means) if (step := abs(b - a)) > 0]
    return min(max(math.ceil(-math.log10(median(spreads))), 4), 8) if spreads else 4
