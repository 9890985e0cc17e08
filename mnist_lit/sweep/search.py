"""The study of a search by Optuna, taken up where an earlier call left it."""

import logging
import os
import warnings

# Optuna 2 is written for SQLAlchemy 1, which announces that there is a newer one.
os.environ.setdefault("SQLALCHEMY_SILENCE_UBER_WARNING", "1")

import optuna
from optuna.exceptions import ExperimentalWarning
from optuna.trial import TrialState


def take_up(storage: str, name: str) -> tuple[int, int]:
    """Queue the trials that were cut off; return how many trials have a value, and how many were begun.

    `storage` is a database's URL; the study is created in it if it is not there. No other process may be at
    work on it.
    """
    optuna.logging.set_verbosity(logging.WARNING)
    study = optuna.create_study(study_name=name, storage=storage, direction="maximize", load_if_exists=True)
    trials = study.get_trials(deepcopy=False)
    for trial in trials:
        if trial.state == TrialState.RUNNING:
            study.tell(trial.number, state=TrialState.FAIL)
            if trial.params:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore", ExperimentalWarning)  # long since a part of Optuna
                    study.enqueue_trial(trial.params)
    return sum(trial.state == TrialState.COMPLETE for trial in trials), len(trials)
