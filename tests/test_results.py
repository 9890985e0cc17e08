"""The README's results are those of the records in benchmarks/results/, and every experiment can be run."""

import importlib.util
from pathlib import Path
from typing import Any

import pytest
from conftest import Compose
from omegaconf import OmegaConf

from mnist_lit import build
from mnist_lit.composition import CONF_DIR

ROOT = Path(__file__).parents[1]
EXPERIMENTS = sorted(path.stem for path in (CONF_DIR / "experiment").glob("*.yaml"))


@pytest.fixture(scope="module")
def results() -> Any:
    spec = importlib.util.spec_from_file_location("results", ROOT / "benchmarks" / "results.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_experiment_has_its_row(results: Any) -> None:
    assert sorted(results.ROWS) == EXPERIMENTS


def test_readmes_table_is_made_of_the_records(results: Any) -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    records = results.read_records()
    assert records
    assert results.with_table(readme, records) == readme


def test_a_record_that_changes_changes_the_table(results: Any) -> None:
    records = results.read_records()
    for name, record in records.items():
        worse = records | {name: record | {"test_acc": [accuracy - 0.01 for accuracy in record["test_acc"]]}}
        assert results.table(worse) != results.table(records)


def test_experiments_say_what_the_records_do(results: Any) -> None:
    for name, record in results.read_records().items():
        text = (CONF_DIR / "experiment" / f"{name}.yaml").read_text(encoding="utf-8")
        assert f"Measured: {results.in_percent(record)} % test error" in text
        assert results.with_measured(text, record) == text


def test_losses_are_compared_over_the_same_seeds(results: Any) -> None:
    one = {"seeds": [0, 1, 2], "test_acc": [0.98, 0.981, 0.982]}
    sentence = results.compare(one, one | {"test_acc": [0.970, 0.9712, 0.9721]})
    assert sentence.startswith("Of the two losses, squared error has the lower error, by 0.99 points (paired t-test ")
    assert sentence.endswith("significant at 5 %).")
    assert "not significant" not in sentence
    assert "not significant" in results.compare(one, one | {"test_acc": [0.981, 0.98, 0.983]})


# Not `augmented`: its settings are older than its search, which did not try them.
@pytest.mark.parametrize("experiment", ["tuned", "cross_entropy", "lecun1998_300", "simard2003_800"])
def test_settings_are_what_the_search_found(experiment: str, results: Any, make_config: Compose) -> None:
    report = (results.SEARCHES / f"{experiment}.md").read_text(encoding="utf-8")
    (best,) = (line for line in report.splitlines() if line.startswith("| 1 |"))
    config = make_config(f"experiment={experiment}", sample=False)
    for found, searched in zip(best.split(" | ")[1:3], results.ROWS[experiment].search, strict=True):
        assert OmegaConf.select(config, searched.partition("=")[0]) == pytest.approx(float(found), rel=0.05)


def test_every_search_has_its_report(results: Any) -> None:
    searched = [name for name, row in results.ROWS.items() if row.search]
    assert sorted(path.stem for path in results.SEARCHES.iterdir()) == sorted(searched)


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_experiment_can_be_built(experiment: str, make_config: Compose) -> None:
    config = make_config(f"experiment={experiment}", sample=False)
    run = build.build(config)
    assert run.datamodule.val_size == 0
    assert sum(parameter.numel() for parameter in run.module.parameters()) > 200_000
