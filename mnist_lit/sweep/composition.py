"""The configurations of a multirun's jobs, composed in a tenth of the time that Hydra takes for each."""

import os
import pickle
from pathlib import Path
from typing import Any

from hydra._internal.config_loader_impl import ConfigLoaderImpl, get_overrides_dirname
from hydra.core.config_loader import ConfigLoader
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from omegaconf import DictConfig

from mnist_lit import cli


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
        cli.register_resolvers()
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
