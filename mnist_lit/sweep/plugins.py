"""Hydra's plugins that are treated apart, by the names that it has for them, so that it alone imports them."""

IN_PROCESS = "hydra._internal.core_plugins.basic_launcher.BasicLauncher"
JOBLIB = "hydra_plugins.hydra_joblib_launcher.joblib_launcher.JoblibLauncher"
SUBMITIT_LOCAL = "hydra_plugins.hydra_submitit_launcher.submitit_launcher.LocalLauncher"

GRIDS = (
    "hydra_plugins.mnist_lit_sweeper.GridSweeper",
    "hydra._internal.core_plugins.basic_sweeper.BasicSweeper",  # launches jobs that are done, too: they end at once
)
OPTUNA = "hydra_optuna_sweeper"
