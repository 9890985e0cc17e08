"""Regenerate the README's results: the seeds of each experiment, scored once on the official test images.

    python benchmarks/results.py                 # all of them, 45 minutes on two cores; goes on if it is killed
    python benchmarks/results.py tuned blog      # these only
    python benchmarks/results.py --search tuned  # how its settings were chosen: benchmarks/searches/tuned.md
    python benchmarks/results.py --time          # only what an epoch costs, on a machine that does nothing else
    python benchmarks/results.py --table         # only the table and the chart, from benchmarks/results/*.json

The runs are multiruns of `mnist_lit.train`, so what is finished is never trained again. Each experiment leaves a small
JSON file in benchmarks/results/, from which README.md's table, the experiments' own line and docs/results.png are made;
a test holds them equal.
"""

import argparse
import json
import os
import platform
import re
import shlex
import shutil
import statistics
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from scipy.stats import ttest_rel

from mnist_lit import run_folder
from mnist_lit.result import read_result

ROOT = Path(__file__).parents[1]
RECORDS = ROOT / "benchmarks" / "results"
SEARCHES = ROOT / "benchmarks" / "searches"
EXPERIMENTS = ROOT / "conf" / "experiment"
README = ROOT / "README.md"
BEGIN, END = "<!-- results: benchmarks/results.py -->\n", "<!-- end of results -->\n"


@dataclass(frozen=True)
class Row:
    """One experiment: what its network and loss are, and the test error in percent that was published for it.

    `search` says among what its settings were searched, if they were.
    """

    network: str
    published: str
    arguments: tuple[str, ...] = ("seed=range(5)",)
    search: tuple[str, ...] = ()


# 16 trials, two at once, scored on 5,000 images held out of the training images; the test images are not looked at.
SEARCH = (
    "sweep=tpe",
    "hydra.sweeper.n_trials=16",
    "hydra/launcher=joblib",
    "hydra.launcher.n_jobs=2",
    "hydra.sweeper.n_jobs=2",
    "data.batch_size=128",
    "data.val_size=5000",
    "callbacks.checkpoint.monitor=val/acc",
    "test=false",
    "trainer.max_epochs=20",
)


def log_range(key: str, low: float, high: float) -> str:
    return f"{key}=tag(log,interval({low:g},{high:g}))"


LECUN, SIMARD, CIRESAN = "LeCun et al. 1998", "Simard et al. 2003", "Ciresan et al. 2010"
ROWS = {
    "blog": Row("256-64, MSE, 3 epochs at learning rate 0.01", "about 12 (the blog)"),
    "lecun1998_300": Row(
        "300, MSE",
        f"4.7 ({LECUN})",
        search=(log_range("optimizer.lr", 0.25, 2), log_range("optimizer.weight_decay", 5e-6, 1.5e-4)),
    ),
    "lecun1998_300_100": Row("300-100, MSE", f"3.05 ({LECUN})"),
    "lecun1998_500_150": Row("500-150, MSE", f"2.95 ({LECUN})"),
    "tuned": Row(
        "256-64, MSE",
        "none found",
        search=(log_range("optimizer.lr", 0.5, 4), log_range("optimizer.weight_decay", 1e-5, 3e-4)),
    ),
    "cross_entropy": Row(
        "256-64, cross-entropy; rate and decay of its own, else as `tuned`",
        "about 1.6 to 1.8",
        search=(log_range("optimizer.lr", 0.03, 0.5), log_range("optimizer.weight_decay", 3e-5, 1e-3)),
    ),
    "augmented": Row(
        "256-64, MSE, affine and elastic distortions",
        "none found",
        search=(log_range("optimizer.lr", 0.25, 4), "augmentation.alpha=interval(10,40)"),
    ),
    "simard2003_800": Row(
        "800, MSE of a softmax, elastic distortions",
        f"0.9 ({SIMARD})",
        search=(log_range("optimizer.lr", 3e-4, 3e-3), "augmentation.alpha=interval(20,46)"),
    ),
    # One seed, 24 minutes; the published run took 800 epochs on a GPU.
    "ciresan2010": Row(
        "2500-2000-1500-1000-500, MSE, distortions; 100 epochs", f"0.35 ({CIRESAN}, 800 epochs)", ("seed=0",)
    ),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("experiments", nargs="*", metavar="EXPERIMENT", help=f"of {', '.join(ROWS)}; default: all")
    parser.add_argument("--search", action="store_true", help="search for settings instead; needs .[optuna,joblib]")
    parser.add_argument("--time", action="store_true", help="train no seed, only measure the time again")
    parser.add_argument("--table", action="store_true", help="train nothing")
    options = parser.parse_args()
    if unknown := [name for name in options.experiments if name not in ROWS]:
        parser.error(f"{unknown[0]} is none of {', '.join(ROWS)}")
    if options.search:
        if unsearched := [name for name in options.experiments if not ROWS[name].search]:
            parser.error(f"{unsearched[0]} has no search")
        for name in options.experiments or [name for name, row in ROWS.items() if row.search]:
            search(name)
        return
    findings: dict[str, dict[str, Any]] = {}
    for name in [] if options.table else options.experiments or ROWS:
        findings[name] = {} if options.time else score(name)
        if not options.time:
            print(f"{name}: {in_percent(findings[name])} % test error", flush=True)
        findings[name] |= cost(name)
    for name, found in findings.items():  # now, since runs say whether the checkout was changed
        write_record(name, found)
    records = read_records()
    README.write_text(with_table(README.read_text(encoding="utf-8"), records), encoding="utf-8")
    for name, record in records.items():
        path = EXPERIMENTS / f"{name}.yaml"
        path.write_text(with_measured(path.read_text(encoding="utf-8"), record), encoding="utf-8")
    draw(records).savefig(ROOT / "docs" / "results.png")


def search(name: str) -> None:
    """Search for an experiment's settings, as far as that is not done, and keep the report without its pictures."""
    folder = ROOT / "outputs" / "sweeps" / f"search_{name}"
    arguments = [f"experiment={name}", *SEARCH, *ROWS[name].search]
    run(name, ["-m", *arguments, f"sweep.name={folder.name}"])
    report = re.sub(
        r"## Pictures.*?(?=^## )", "", (folder / "report.md").read_text("utf-8"), flags=re.DOTALL | re.MULTILINE
    )
    SEARCHES.mkdir(exist_ok=True)
    command = shlex.join(["python", "-m", "mnist_lit.train", "-m", *arguments])
    (SEARCHES / f"{name}.md").write_text(f"{report.rstrip()}\n\nThe search: `{command}`\n", encoding="utf-8")


def score(name: str) -> dict[str, Any]:
    """Train an experiment with all its seeds, as far as that is not done, and sum up what they scored."""
    # An experiment's command is the README's; the sweep's name keeps these runs apart from a reader's own.
    command = ["python", "-m", "mnist_lit.train", "-m", f"experiment={name}", *ROWS[name].arguments]
    folder = ROOT / "outputs" / "sweeps" / f"results_{name}"
    run(name, [*command[3:], f"sweep.name={folder.name}"])
    found = (read_result(path.parent) for path in folder.glob("*/result.json"))
    finished = (result for result in found if result is not None and result["status"] == "finished")
    results = sorted(finished, key=lambda result: result["seed"])
    return {
        "command": " ".join(f"'{word}'" if "(" in word else word for word in command),
        "seeds": [result["seed"] for result in results],
        "test_acc": [result["metrics"]["test/acc"] for result in results],
        "test_loss": [result["metrics"]["test/loss"] for result in results],
        "num_parameters": results[0]["num_parameters"],
        "num_epochs": run_folder.read_config(next(folder.glob("*/config.yaml")).parent).trainer.max_epochs,
        "versions": results[0]["versions"],
        "git_commit": results[0]["git_commit"],
    }


def cost(name: str) -> dict[str, Any]:
    """Train two epochs of an experiment alone, without test and pictures, and return what an epoch costs."""
    folder = ROOT / "outputs" / "timing" / name
    shutil.rmtree(folder, ignore_errors=True)
    bare = ["test=false", "callbacks.pictures=null", f"hydra.run.dir={folder}"]
    peak_memory_mb = run(name, [f"experiment={name}", "trainer.max_epochs=2", *bare])
    result = read_result(folder)
    assert result is not None
    return {
        "seconds_per_epoch": round(result["fit_seconds"] / 2, 2),
        "peak_memory_mb": peak_memory_mb,
        "machine": machine(result["device"]),
    }


def run(name: str, arguments: Sequence[str]) -> int:
    """Run `mnist_lit.train` in a process of its own, and return its peak memory in MB."""
    process = subprocess.Popen([sys.executable, "-m", "mnist_lit.train", *arguments], cwd=ROOT)
    _, status, usage = os.wait4(process.pid, 0)
    if os.waitstatus_to_exitcode(status):
        sys.exit(f"{name}: a run failed; see outputs/")
    return usage.ru_maxrss // 1024


def write_record(name: str, findings: dict[str, Any]) -> None:
    """Put findings into an experiment's record, beside what it holds already."""
    path = RECORDS / f"{name}.json"
    RECORDS.mkdir(exist_ok=True)
    before = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    path.write_text(json.dumps(before | findings, indent=1) + "\n", encoding="utf-8")


def machine(device: str) -> str:
    """Name the processor, its cores, and what Lightning trained on."""
    cpuinfo = Path("/proc/cpuinfo")
    found = re.search(r"model name\s*:\s*(.+)", cpuinfo.read_text()) if cpuinfo.exists() else None
    return f"{found[1].strip() if found else platform.processor()}, {os.cpu_count()} cores; {device}"


def read_records() -> dict[str, dict[str, Any]]:
    """Read what was measured, in the table's order."""
    paths = {name: RECORDS / f"{name}.json" for name in ROWS}
    return {name: json.loads(path.read_text(encoding="utf-8")) for name, path in paths.items() if path.exists()}


def fit_seconds(record: dict[str, Any]) -> float:
    """What a run takes by the time of two of its epochs."""
    return float(record["num_epochs"] * record["seconds_per_epoch"])


def errors(record: dict[str, Any]) -> list[float]:
    """Test errors in percent, one a seed; the test set has 10,000 images, so two decimals are exact."""
    return [round(100 * (1 - accuracy), 2) for accuracy in record["test_acc"]]


def in_percent(record: dict[str, Any]) -> str:
    found = errors(record)
    if len(found) == 1:
        return f"{found[0]:.2f}"
    return f"{statistics.mean(found):.2f} ± {statistics.stdev(found):.2f}"


def table(records: dict[str, dict[str, Any]]) -> str:
    lines = [
        "| `experiment=` | network, loss | test error %, mean ± sd | n | published % | fit, s |",
        "|---|---|---|---|---|---|",
    ]
    for name, record in records.items():
        row = ROWS[name]
        lines.append(
            f"| `{name}` | {row.network} | {in_percent(record)} | {len(record['seeds'])} | {row.published} "
            f"| {fit_seconds(record):.0f} |"
        )
    machines = sorted({record["machine"] for record in records.values()})
    where = "; ".join(machines)
    lines += [
        "",
        f"n is the number of seeds; fit times are extrapolated from two epochs of a single run: {where}.",
    ]
    if {"tuned", "cross_entropy"} <= records.keys():
        lines.append(compare(records["tuned"], records["cross_entropy"]))
    return "\n".join(lines) + "\n"


def compare(mse: dict[str, Any], cross_entropy: dict[str, Any]) -> str:
    """Say whether the loss matters, by a paired t-test over the seeds that both have."""
    assert mse["seeds"] == cross_entropy["seeds"]
    one, other = errors(mse), errors(cross_entropy)
    difference = statistics.mean(one) - statistics.mean(other)
    p_value = float(ttest_rel(one, other).pvalue)
    better = "squared error" if difference < 0 else "cross-entropy"
    verdict = "significant at 5 %" if p_value < 0.05 else "not significant at 5 %"
    return (
        f"Of the two losses, {better} has the lower error, by {abs(difference):.2f} points (paired t-test over "
        f"{len(one)} seeds: p = {p_value:.2g}, {verdict})."
    )


def with_table(readme: str, records: dict[str, dict[str, Any]]) -> str:
    """Replace the table between the two marks."""
    before, rest = readme.split(BEGIN)
    after = rest.split(END)[1]
    return f"{before}{BEGIN}{table(records)}{END}{after}"


def with_measured(experiment: str, record: dict[str, Any]) -> str:
    """Replace an experiment's line that says what was measured."""
    measured = (
        f"# Measured: {in_percent(record)} % test error (n = {len(record['seeds'])}); {record['num_epochs']} epochs "
        f"take {fit_seconds(record):.0f} s and {record['peak_memory_mb'] / 1000:.1f} GB on {record['machine']}."
    )
    return re.sub("^# Measured: .*$", measured, experiment, flags=re.MULTILINE)


def draw(records: dict[str, dict[str, Any]]) -> Figure:
    """Draw test error against training time, a point an experiment, its bar from the least to the greatest."""
    figure = Figure(figsize=(8, 4.2), dpi=120, layout="constrained")
    axes = figure.subplots()
    for (name, record), marker in zip(records.items(), cycle("osD^v<>Pp"), strict=False):
        found = errors(record)
        mean = statistics.mean(found)
        spread: Sequence[Sequence[float]] = [[mean - min(found)], [max(found) - mean]]
        axes.errorbar(fit_seconds(record), mean, yerr=spread, fmt=marker, capsize=3, label=f"{mean:5.2f} %  {name}")
    axes.set(xscale="log", yscale="log", xlabel="fit, seconds", ylabel="test error, %")
    axes.set_xticks([1, 3, 10, 30, 100, 300, 1000, 3000], ["1", "3", "10", "30", "100", "300", "1000", "3000"])
    axes.set_yticks([0.5, 0.7, 1, 1.5, 2, 3, 5, 8, 12], ["0.5", "0.7", "1", "1.5", "2", "3", "5", "8", "12"])
    axes.minorticks_off()
    axes.margins(x=0.2)
    axes.grid(alpha=0.3)
    figure.legend(loc="outside right upper")
    return figure


if __name__ == "__main__":
    main()
