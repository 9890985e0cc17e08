"""What a reader should know about a ranking, in sentences."""

import math
import re
from collections.abc import Iterator

import pandas as pd

from mnist_lit.notation import count, duration, parsed, shown
from mnist_lit.reports.comparison import ALPHA, least_effect
from mnist_lit.reports.ranking import ABSENT, Summary
from mnist_lit.reports.runs import NEVER_ENDED, UNREADABLE
from mnist_lit.result import FILE_NAME
from mnist_lit.sweep.identity import DRAWN_NUMBER

# Overrides that may change which images a run is validated on.
CHANGES_VAL_IMAGES = {
    "data",
    "data.name",
    "data.source_dir",
    "data.val_size",
    "data.split_seed",
    "experiment",
    "trainer.limit_val_batches",
    "trainer.overfit_batches",
    "debug",
}

# Below which a key cannot go; others can go down to 0.
SMALLEST_VALUES = {"data.batch_size": 1, "trainer.max_epochs": 1}

SEEDS = "-m 'seed=range(5)'"
NOT_RANKED = "No run was validated, so nothing is ranked. On the test images:"


def warnings(summary: Summary) -> Iterator[str]:
    """Yield what makes the ranking, or the best setting, doubtful."""
    settings, runs = summary.settings, summary.runs
    if len(summary.ranked) == 1 and settings["n"].iloc[0] == 1:
        yield f"With one seed nothing is known of how far chance moves the result. Repeat with several: {SEEDS}."
    if len(summary.ranked) > 1:
        if settings["n"].iloc[0] == 1:
            who = "With one seed a setting" if settings["n"].max() == 1 else "The best setting has one seed only:"
            yield f"{who} the order may be luck, so nothing is marked. Repeat the best with several: {SEEDS}."
        if settings["bad"].iloc[0] > 0:
            yield "Every setting has a diverged run, the best one too: do not rely on it."
    if elsewhere := [key for key in summary.keys if key in CHANGES_VAL_IMAGES]:
        yield (
            f"The runs differ in {', '.join(elsewhere)}, so they may have been scored on different validation images, "
            "and the ranking be one of the images."
        )
    if {"loss", "experiment"} & {*summary.keys} and summary.metric.endswith("loss"):
        yield f"The runs may minimise different losses, and {summary.metric} is each one's own: rank by val/acc."
    yield from _edge_warnings(summary)
    if _is_unbalanced(summary):
        yield (
            "The values of a key did not all run with the same values of the other keys, so that effects of keys "
            "may mix; the ranking is not touched."
        )
    ended = runs[runs["setting"] >= 0]
    if ended.duplicated(["setting", "seed"]).any() or (ended.groupby("setting")["setting_hash"].nunique() > 1).any():
        yield "Some runs of one setting have different configurations: were defaults changed? Their mean is of both."
    ranked = ended[ended["score"].notna() & (settings["bad"].reindex(ended["setting"]) == 0).to_numpy()]
    if len(set(ranked.groupby("setting")["seed"].agg(frozenset))) > 1:
        yield "The settings did not all run with the same seeds, whose luck is in their means: run the missing ones."
    for column in ("git_commit", "versions", "device"):
        if runs[column].dropna().nunique() > 1:
            yield f"The runs differ in {column} ({FILE_NAME} says how): so may their numbers."


def _edge_warnings(summary: Summary) -> Iterator[str]:
    """Warn where the best value of a numeric key is the smallest or the largest one tried."""
    tried = summary.values[(summary.settings["n"] > 0) | (summary.settings["bad"] > 0)]
    for key in summary.keys:
        best = {*summary.values[key].iloc[summary.winners]}
        value = parsed(str(best.pop())) if len(best) == 1 else ""
        # Without null and other texts among them.
        numbers = [number for number in map(parsed, tried[key].astype(str)) if isinstance(number, float)]
        if isinstance(value, str) or len({*numbers}) < 2 or ABSENT in {*tried[key]}:  # whose number is not known
            continue
        if re.fullmatch(DRAWN_NUMBER, repr(value)):  # by a search, which knows its bounds
            continue
        if value == max(numbers):
            yield f"The best {key}={shown(value)} is the largest value tried: try larger ones too."
        # Nothing in a configuration is negative: 0 (no momentum, no dropout) is where a key ends.
        elif value == min(numbers) and value > SMALLEST_VALUES.get(key, 0):
            yield f"The best {key}={shown(value)} is the smallest value tried: try smaller ones too."


def _is_unbalanced(summary: Summary) -> bool:
    ranked = summary.values.loc[summary.ranked.index]
    for key in summary.averaged_keys:
        others = ranked.drop(columns=key)
        rests = {frozenset(group.itertuples(index=False, name=None)) for _, group in others.groupby(ranked[key])}
        if len(rests) > 1:
            return True
    return False


def counts(summary: Summary) -> str:
    """Say how many settings and runs there are, and how the runs ended."""
    statuses = summary.runs["status"].value_counts().to_dict()
    never_ended = statuses.pop(NEVER_ENDED, 0)
    kinds = ("finished", "diverged", "failed", "interrupted", UNREADABLE)
    ends = ", ".join(f"{statuses[kind]} {kind}" for kind in kinds if kind in statuses)
    fitting = duration(float(summary.runs["fit_seconds"].sum()))
    num_settings = count(len(summary.settings), "setting")
    text = f"{num_settings}, {count(sum(statuses.values()), 'run')}: {ends}; {fitting} of fitting."
    if never_ended:
        text += f" {count(never_ended, 'job')} without {FILE_NAME}: not begun, killed, or still running."
    if summary.repetitions:
        repeated = count(summary.repetitions, "run")
        text += f" Left out: {repeated} with the seed and the configuration, or the very numbers, of another."
    return text


def counts_without_ranking(runs: pd.DataFrame) -> str:
    """Say how many of the runs that were never validated finished."""
    return f"{(runs['status'] == 'finished').sum()} of {count(len(runs), 'run')} finished."


def selection(summary: Summary) -> str:
    """Say what chose the best setting, and what its test score is worth."""
    which, rivals = "highest" if summary.mode == "max" else "lowest", len(summary.ranked)
    text = f"Selected on validation: {which} mean {summary.metric}. " if rivals > 1 else ""
    if not summary.test_tags:
        return f"{text}The best setting's runs hold no score on the test images."
    if rivals == 1:
        tried = len(summary.settings)
        only = "There is one setting" if tried == 1 else f"Of {tried} settings only this one has a {summary.metric}"
        return f"{only}, so nothing was selected."
    whom = "the selected setting" if len(summary.winners) == 1 else "those of rank 1"
    return (
        f"{text}Chosen as the best of {rivals}, it has a {summary.metric} that is likely a little too good; the score "
        f"on the test images, shown for {whom} only, is fair."
    )


def method(summary: Summary) -> str:
    """Say how the marks in the ranking came about; nothing if there are none."""
    settings = summary.settings
    tested = settings[settings["p_value"].notna()]
    constant = "Differences that are the same for every seed cannot be tested."
    untestable = constant if (settings["test"].ne("") & settings["p_value"].isna()).any() else ""
    if tested.empty:
        return untestable
    names = {"paired": "paired t-test over the seeds", "Welch": "Welch's t-test where their seeds differ"}
    tests = " or ".join(name for test, name in names.items() if test in set(tested["test"]))
    fewest = int(tested["num_scores"].min())
    num_settings = len(tested) + len(summary.winners)
    is_paired = set(tested["test"]) == {"paired"}
    factor = least_effect(fewest, num_settings) if is_paired else math.nan
    if factor > 10:
        hidden = f"With n = {fewest}, all but huge differences stay hidden: repeat with more seeds."
    elif is_paired:
        hidden = (
            f"With n = {fewest}, an observed difference below about {factor:.1f} times its spread over the seeds stays "
            + ("hidden: repeat with more seeds." if factor > 2 else "hidden.")
        )
    else:
        hidden = f"With n = {fewest}, small differences stay hidden."
    is_clear = (tested["verdict"] == "worse").all()
    hidden = "" if is_clear else f"{hidden} "
    first = f"All that can be tested are worse than the best by more than the luck of the seeds explains: p < {ALPHA}"
    if not is_clear:
        first = f"Where it says not told apart, luck may be all the difference, which does not mean equal: p >= {ALPHA}"
    told = (
        f"{first} in a two-sided {tests}. The best of the {num_settings} that can be tested was picked by the same "
        f"numbers, so p-values are corrected step by step (Holm, Shaffer); some become equal. {hidden}"
        f"The test allows for the luck of the seeds, not for that of the validation images. {untestable}"
    )
    return told.strip()


def bad_runs(summary: Summary) -> str:
    """Say what a diverged run means for its setting; nothing if there is none."""
    if not summary.settings["bad"].any():
        return ""
    return (
        f"A diverged run has no {summary.metric}: it is missing from the mean, but counts against its setting, which "
        "ranks after every setting without one. Failed and interrupted runs say nothing about theirs."
    )
