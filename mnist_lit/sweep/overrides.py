"""What the command line of a sweep changes: what it sweeps, and what all of its jobs share."""

from collections.abc import Iterable
from typing import Any

from hydra.core.config_loader import ConfigLoader
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import IntervalSweep, Override, RangeSweep
from omegaconf import DictConfig, OmegaConf

from mnist_lit.notation import Value, parsed, split_override
from mnist_lit.result import flatten


def all_overrides(loader: ConfigLoader, config: DictConfig) -> list[Override]:
    """Return what `hydra.sweeper.params` and the command line change; of a key's several, the last counts."""
    params = config.hydra.sweeper.get("params") or {}
    arguments: list[str] = OmegaConf.to_container(config.hydra.overrides.task)  # type: ignore[assignment]
    lines = [*(f"{key}={value}" for key, value in params.items()), *arguments]
    parsed = OverridesParser.create(config_loader=loader).parse_overrides(lines)
    return list({override.get_key_element(): override for override in parsed}.values())


def known_values(override: Override) -> list[str]:
    """Return, as overrides, the values that a search may choose for a key, or the ends of a range."""
    if not override.is_sweep_override():
        return []
    swept = override.value()
    values: Iterable[float | str | None]
    if isinstance(swept, IntervalSweep):
        values = [swept.start, swept.end]
    elif isinstance(swept, RangeSweep):  # a search takes the end too
        values = [swept.start, swept.stop]
    else:
        values = override.sweep_string_iterator()
    return [f"{override.get_key_element()}={value}" for value in values]


def key_and_value(override: str) -> tuple[str, Value]:
    """Split the override of a job, so that 1 and 1.0 are the same."""
    key, value = split_override(override)
    return key, parsed(value)


def key_of(override: Override) -> str:
    """Return the key that an override changes, without its package or the + before it."""
    return str(override.key_or_group)


def unswept_settings(config: DictConfig, overrides: list[Override]) -> dict[str, Any]:
    """Map the dotted keys that a sweep does not change to their values, interpolations left as they stand.

    Below a swept group, only the keys that were overridden for all its options count.
    """
    given = {key_of(override) for override in overrides if not override.is_sweep_override()}
    plain = OmegaConf.to_container(
        OmegaConf.masked_copy(config, [key for key in map(str, config) if key not in ("hydra", "run_dir", "sweep")])
    )
    params = config.hydra.sweeper.get("params") or {}
    fixed = {
        override.get_key_element(): override.value()  # of the command line, they are in the configuration already
        for override in overrides
        if not override.is_sweep_override() and override.get_key_element() in params
    }
    swept_keys = [key_of(override) for override in overrides if override.is_sweep_override()]
    elsewhere = ("data.root", *swept_keys)  # where the data lies does not matter
    return {
        key: value
        for key, value in [*flatten(plain), *flatten(fixed)]
        if not any(key == swept or (key.startswith(f"{swept}.") and key not in given) for swept in elsewhere)
    }
