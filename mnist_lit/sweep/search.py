"""The study of a search by Optuna, taken up where an earlier call left it."""

import logging
import os
import warnings
from collections.abc import Callable, Mapping
from typing import Any

# Optuna 2 is written for SQLAlchemy 1, which announces that there is a newer one.
os.environ.setdefault("SQLALCHEMY_SILENCE_UBER_WARNING", "1")

import optuna
from optuna.exceptions import ExperimentalWarning
from optuna.trial import TrialState


def take_up(storage: str, name: str, has_failed: Callable[[Mapping[str, Any]], bool]) -> tuple[int, int]:
    """Queue the trials that were cut off or failed; return how many need no other try, and how many were begun.

    `storage` is a database's URL; the study is created in it if it is not there. No other process may be at
    work on it. `has_failed` tells by a trial's parameters whether its job has; it got a value for that, the worst.
    """
    optuna.logging.set_verbosity(logging.WARNING)
    study = optuna.create_study(study_name=name, storage=storage, direction="maximize", load_if_exists=True)
    trials = study.get_trials(deepcopy=False)
    again, done = [], set()
    for trial in trials:
        if trial.state == TrialState.RUNNING:
            study.tell(trial.number, state=TrialState.FAIL)
            again.append(trial.params)
        elif trial.state == TrialState.COMPLETE and has_failed(trial.params):
            again.append(trial.params)
        elif trial.state == TrialState.COMPLETE:
            done.add(tuple(sorted(trial.params.items())))
    queued = [trial.system_attrs["fixed_params"] for trial in trials if trial.state == TrialState.WAITING]
    for params in again:
        if params and params not in queued:
            queued.append(params)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", ExperimentalWarning)  # long since a part of Optuna
                study.enqueue_trial(params)
    return len(done), len(trials)
