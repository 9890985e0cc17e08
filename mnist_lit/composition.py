"""How Hydra's configurations are composed from `conf/`: once, and those of a multirun's jobs from one another."""

import logging
import os
import pickle
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hydra._internal.config_loader_impl import ConfigLoaderImpl, get_overrides_dirname
from hydra.core.config_loader import ConfigLoader
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from mnist_lit import run_folder
from mnist_lit.sweep.identity import job_name, sweep_name

PACKAGE = Path(__file__).parent
# A wheel carries conf/ inside the package; in a checkout it lies beside it.
CONF_DIR = PACKAGE / "conf" if (PACKAGE / "conf").is_dir() else PACKAGE.parent / "conf"


def register_resolvers() -> None:
    """Make the `${mnist_lit.NAME:...}` of the configuration files known to OmegaConf."""
    OmegaConf.register_new_resolver("mnist_lit.job_name", job_name, replace=True)
    OmegaConf.register_new_resolver("mnist_lit.sweep_name", sweep_name, replace=True)
    OmegaConf.register_new_resolver("mnist_lit.in_multirun", in_multirun, replace=True)
    OmegaConf.register_new_resolver("mnist_lit.run_dir", run_folder.run_dir, use_cache=True, replace=True)


def in_multirun(value: Any, otherwise: Any) -> Any:
    """Return `value` in a job of a multirun, `otherwise` in a single run."""
    is_job = HydraConfig.initialized() and HydraConfig.get().mode == RunMode.MULTIRUN
    chosen = value if is_job else otherwise
    return OmegaConf.create(chosen) if isinstance(chosen, list) else chosen  # --resolve takes no plain list


class Loader(ConfigLoaderImpl):
    """Composes once what Hydra composes twice, 80 ms each: to see whether a file sets `hydra.mode`, then to run."""

    kept: tuple[tuple[str | None, Sequence[str]], DictConfig] | None = None

    def load_configuration(
        self,
        config_name: str | None,
        overrides: list[str],
        run_mode: RunMode,
        from_shell: bool = True,
        validate_sweep_overrides: bool = True,
    ) -> DictConfig:
        """Compose, or return what was composed for the same command line the first time."""
        if not validate_sweep_overrides:  # Hydra's first time, whose errors it ignores
            try:
                cfg = super().load_configuration(config_name, overrides, RunMode.RUN, from_shell, False)
            except Exception:  # a sweep's leaves out what is missing in a list of defaults
                return super().load_configuration(config_name, overrides, run_mode, from_shell, False)
            self.kept = ((config_name, tuple(overrides)), cfg)
            return cfg
        chosen = [word for word in overrides[-1:] if word.startswith("hydra.mode=")]  # by Hydra, after the first time
        given = (config_name, tuple(overrides[: len(overrides) - len(chosen)]))
        if self.kept is None or self.kept[0] != given:
            return super().load_configuration(config_name, overrides, run_mode, from_shell, True)
        cfg, self.kept = self.kept[1], None
        parsed = OverridesParser.create().parse_overrides(overrides)
        self.validate_sweep_overrides_legal(parsed, run_mode, from_shell)
        self._apply_overrides_to_config(parsed[len(given[1]) :], cfg)
        cfg.hydra.overrides.hydra.extend(chosen)
        return cfg


class JobLoader(ConfigLoaderImpl):
    """Composes from files once for each choice of them, and puts a job's own values into a copy.

    Takes the place of Hydra's loader, goes with it to other processes and machines, and gives the same
    configurations: Hydra too puts values in last.
    """

    def __init__(self, loader: ConfigLoader) -> None:
        super().__init__(loader.get_search_path())
        self.folder = Path.cwd()
        self.composed: dict[tuple[str, ...], bytes] = {}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Prepare another process for the jobs it will be given."""
        self.__dict__ = state
        register_resolvers()
        logging.raiseExceptions = False  # as in `cli.run`
        os.chdir(self.folder)  # so that relative paths, the sweep's and the data's, mean the same there

    def load_sweep_config(self, master_config: DictConfig, sweep_overrides: list[str]) -> DictConfig:
        """Return the configuration of the job with these overrides."""
        parsed = OverridesParser.create().parse_overrides(sweep_overrides)
        choices = [override for override in parsed if self._changes_files(override)]
        chosen = tuple(str(override.input_line) for override in choices)
        if chosen not in self.composed:
            # Pickled: copying a configuration by copy.deepcopy takes five times as long as reading it.
            self.composed[chosen] = pickle.dumps(super().load_sweep_config(master_config, list(chosen)))
        config: DictConfig = pickle.loads(self.composed[chosen])
        self._apply_overrides_to_config([override for override in parsed if override not in choices], config)
        own = [override for override in parsed if not override.is_hydra_override()]
        config.hydra.overrides.task = [override.input_line for override in own]
        naming = config.hydra.job.config.override_dirname
        config.hydra.job.override_dirname = get_overrides_dirname(
            overrides=own, kv_sep=naming.kv_sep, item_sep=naming.item_sep, exclude_keys=naming.exclude_keys
        )
        return config

    def _changes_files(self, override: Override) -> bool:
        """Return whether an override affects which files are composed, or is best left to Hydra."""
        if override.is_sweep_override() or override.is_hydra_override():
            return True
        is_group: bool = self.repository.group_exists(str(override.key_or_group))
        return is_group and not isinstance(override.value(), dict)
