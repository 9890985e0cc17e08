"""The study of a search by Optuna, taken up where an earlier call left it."""

import logging
import os
import warnings
from collections.abc import Callable, Iterable, Mapping
from typing import Any

# Optuna 2 is written for SQLAlchemy 1, which announces that there is a newer one.
os.environ.setdefault("SQLALCHEMY_SILENCE_UBER_WARNING", "1")

import optuna
from hydra.core.override_parser.types import ChoiceSweep, IntervalSweep, Override, RangeSweep
from hydra_plugins.hydra_optuna_sweeper._impl import create_optuna_distribution_from_override
from optuna.distributions import BaseDistribution, check_distribution_compatibility
from optuna.exceptions import ExperimentalWarning
from optuna.trial import TrialState

from mnist_lit.errors import UserError
from mnist_lit.sweep.ledger import WORST


def distributions(overrides: Iterable[Override]) -> dict[str, BaseDistribution]:
    """Return what the values of each swept key are drawn from; raises UserError for what Optuna cannot draw from."""
    found = {}
    for override in overrides:
        if not override.is_sweep_override():
            continue
        drawn = override.value()
        if not isinstance(drawn, ChoiceSweep | RangeSweep | IntervalSweep):
            raise UserError(f"{override.input_line}: a search takes choice(), range() and interval()")
        if getattr(drawn, "shuffle", False):
            raise UserError(f"{override.input_line}: a search draws its values anyway; leave out shuffle")
        try:
            with warnings.catch_warnings(action="ignore"):  # which come again when it starts
                found[override.get_key_element()] = create_optuna_distribution_from_override(override)
        except ValueError as error:
            raise UserError(f"{override.input_line}: {' '.join(str(error).split())}") from error
    return found


def take_up(
    storage: str,
    name: str,
    now: Mapping[str, BaseDistribution],
    status_of: Callable[[Mapping[str, Any]], str | None],
) -> tuple[int, int]:
    """Queue the trials that were cut off or failed; return how many need no other try, and how many were begun.

    `storage` is a database's URL; the study is created in it if it is not there. No other process may be at work on it.
    `now` has what each key is drawn from; of choices Optuna cannot take others, of ranges it can. `status_of` gives,
    for a trial's parameters, how its job ended; one that failed got the worst value.

    Raises UserError if a key was drawn from something else before.
    """
    optuna.logging.set_verbosity(logging.WARNING)
    study = optuna.create_study(study_name=name, storage=storage, direction="maximize", load_if_exists=True)
    trials = study.get_trials(deepcopy=False)
    before = {key: distribution for trial in trials for key, distribution in trial.distributions.items()}
    for key in before.keys() & now.keys():
        try:
            check_distribution_compatibility(before[key], now[key])
        except ValueError:
            earlier, later = (list(getattr(drawn, "choices", ())) or drawn for drawn in (before[key], now[key]))
            told = f"has drawn from {earlier}, and cannot from {later}"
            raise UserError(f"{key}: this search {told}; give it another sweep.name") from None
    again, num_done = [], 0
    for trial in trials:
        if trial.state == TrialState.RUNNING:
            study.tell(trial.number, state=TrialState.FAIL)
            again.append(trial.params)
        elif trial.state == TrialState.COMPLETE:
            status = status_of(trial.params)
            has_succeeded_since = trial.value == WORST and status == "finished"  # in a trial of its own
            if status == "failed":
                again.append(trial.params)
            elif not has_succeeded_since:
                num_done += 1
    queued = [trial.system_attrs["fixed_params"] for trial in trials if trial.state == TrialState.WAITING]
    for params in again:
        if params and params not in queued:
            queued.append(params)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", ExperimentalWarning)  # long since a part of Optuna
                study.enqueue_trial(params)
    return num_done, len(trials)
