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

from mnist_lit.errors import UserError
from mnist_lit.sweep.ledger import WORST


def take_up(
    storage: str,
    name: str,
    choices: Mapping[str, list[Any]],
    status_of: Callable[[Mapping[str, Any]], str | None],
) -> tuple[int, int]:
    """Queue the trials that were cut off or failed; return how many need no other try, and how many were begun.

    `storage` is a database's URL; the study is created in it if it is not there. No other process may be at
    work on it. `choices` has the values of each key that takes one of several; Optuna cannot change them, and UserError
    is raised if they are others than before. `status_of` gives, for a trial's parameters, how its job ended; one that
    failed got the worst value.
    """
    optuna.logging.set_verbosity(logging.WARNING)
    study = optuna.create_study(study_name=name, storage=storage, direction="maximize", load_if_exists=True)
    trials = study.get_trials(deepcopy=False)
    for key, distribution in trials[0].distributions.items() if trials else ():
        before, now = list(getattr(distribution, "choices", ())), choices.get(key, [])
        if before != now:
            told = f"has chosen from {before or 'a range'}, not {now or 'a range'}, and cannot change that"
            raise UserError(f"{key}: this search {told}; give it another sweep.name")
    again, num_done = [], 0
    for trial in trials:
        if trial.state == TrialState.RUNNING:
            study.tell(trial.number, state=TrialState.FAIL)
            again.append(trial.params)
        elif trial.state == TrialState.COMPLETE:
            status = status_of(trial.params)
            if status == "failed":
                again.append(trial.params)
            elif trial.value != WORST or status != "finished":  # else it failed, and another try has not
                num_done += 1
    queued = [trial.system_attrs["fixed_params"] for trial in trials if trial.state == TrialState.WAITING]
    for params in again:
        if params and params not in queued:
            queued.append(params)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", ExperimentalWarning)  # long since a part of Optuna
                study.enqueue_trial(params)
    return num_done, len(trials)
