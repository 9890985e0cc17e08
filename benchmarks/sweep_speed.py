"""What a sweep costs, against separate processes and two threads measured in the same run.

    python benchmarks/sweep_speed.py            # real MNIST, about ten minutes, one table
    python benchmarks/sweep_speed.py --repeats 1
    python benchmarks/sweep_speed.py --quick    # the packaged sample, 12 jobs where it says 100, once

A job is one epoch of the default network. Wall times of whole processes, imports included, unless said otherwise;
ratios are medians over the repetitions, lowest to highest in brackets.
"""

import argparse
import importlib.util
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from itertools import pairwise
from pathlib import Path

import torch
from train_speed import data_root, experiment, machine

from mnist_lit.run import quiet

EIGHT = ["optimizer.lr=0.01,0.1", "data.batch_size=128,512", "seed=0,1"]
TRAIN = [sys.executable, "-m", "mnist_lit.train"]


class Bench:
    def __init__(self, folder: Path, *, is_quick: bool) -> None:
        self.folder = folder
        self.job = ["trainer.max_epochs=1", *(["data=sample"] if is_quick else [])]
        self.num_lrs = 2 if is_quick else 10
        self.seeds = 6 if is_quick else 10
        self.num_jobs = self.num_lrs * self.seeds
        self.span = min(10, self.num_jobs // 2 - 1)  # as many jobs at once, since a single one's time is mostly chance

    def seconds(self, *command: str, num_threads: int | None = None) -> float:
        started = time.perf_counter()
        subprocess.run(command, cwd=self.folder, env=self.env(num_threads), capture_output=True, check=True)
        return time.perf_counter() - started

    def env(self, num_threads: int | None = None) -> dict[str, str]:
        env = {key: value for key, value in os.environ.items() if key != "OMP_NUM_THREADS"}
        threads = {} if num_threads is None else {"OMP_NUM_THREADS": str(num_threads)}
        return env | {"MNIST_LIT_DATA": str(data_root())} | threads

    def processes_against_multirun(self, name: str) -> float:
        processes = 0.0
        for lr in ("0.01", "0.1"):
            for batch_size in ("128", "512"):
                for seed in ("0", "1"):
                    own = [f"optimizer.lr={lr}", f"data.batch_size={batch_size}", f"seed={seed}"]
                    processes += self.seconds(*TRAIN, *self.job, *own)
        return processes / self.seconds(*TRAIN, "-m", *self.job, *EIGHT, f"sweep.name=eight{name}")

    def many(self, name: str, num_lrs: int, num_seeds: int) -> list[str]:
        lrs = ",".join(f"0.{number + 1:02}" for number in range(num_lrs))
        return [*TRAIN, "-m", *self.job, f"optimizer.lr={lrs}", f"seed=range({num_seeds})", f"sweep.name={name}"]

    def growth(self, name: str) -> tuple[float, float]:
        """Return the time of a sweep's last jobs over that of another's first ones but one, and the MB it has added.

        A machine's speed drifts by more than what is looked for, so the two take turns, job by job.
        """
        old, young = f"many{name}", f"young{name}"
        for sweep in (old, young):
            os.mkfifo(self.folder / sweep)

        path = os.pathsep.join(filter(None, [str(Path(__file__).parent), os.environ.get("PYTHONPATH")]))

        def start(sweep: str, other: str, first: int, *jobs: str) -> "subprocess.Popen[bytes]":
            turns = {"_target_": "turns.Turns", "first": first, "own": sweep, "other": other, "log": f"{sweep}.log"}
            words = [f"+hydra.callbacks.turns.{key}={value}" for key, value in turns.items()]
            return subprocess.Popen(
                [*jobs, *words, f"+hydra.callbacks.turns.begins={sweep == young}"],
                cwd=self.folder,
                env=self.env() | {"PYTHONPATH": path},
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )

        aged = start(old, young, self.num_jobs - self.span + 1, *self.many(old, self.num_lrs, self.seeds))
        processes = [aged]
        try:
            memory = {number: self.memory_after(number, old, aged) for number in (2, self.num_jobs - self.span)}
            processes.append(start(young, old, 2, *self.many(young, 1, self.span + 2)))
            memory[self.num_jobs] = self.memory_after(self.num_jobs, old, aged)
            assert aged.wait() == 0
        finally:  # the young one waits for a turn that will not come
            for process in processes:
                process.kill()
                process.wait()
        last, first = ([float(line) for line in (self.folder / f"{sweep}.log").open()] for sweep in (old, young))
        assert len(last) == len(first) == self.span
        return sum(last) / sum(first), memory[self.num_jobs] - memory[2]

    def memory_after(self, number: int, name: str, process: "subprocess.Popen[bytes]") -> float:
        """Wait until that many jobs of a sweep have ended; return the process's MB then."""
        while len(list(self.folder.glob(f"outputs/sweeps/{name}/*/result.json"))) < number:
            assert process.poll() is None
            time.sleep(0.01)
        return resident(process.pid)

    def overhead(self) -> float:
        """Return the median seconds from one job's end to the next's, less its own fit and a test without pictures."""
        paths = self.folder.glob("outputs/sweeps/many0/*/result.json")
        ended = sorted((path.stat().st_mtime, json.loads(path.read_text())["fit_seconds"]) for path in paths)
        ended = ended[: -self.span]  # the last ones have waited for their turn
        beside_fit = statistics.median(end - before - fit for (before, _), (end, fit) in pairwise(ended))
        run = experiment(*self.job, "~callbacks.pictures", "logger=none")
        run.datamodule.prepare_data()
        tests = []
        with quiet():
            for _ in range(6):
                started = time.perf_counter()
                run.trainer.test(run.module, datamodule=run.datamodule, verbose=False)
                tests.append(time.perf_counter() - started)
        return float(beside_fit - statistics.median(tests[1:]))

    def joblib_against_threads(self, name: str) -> float:
        cores = torch.get_num_threads()
        eight = ["data.batch_size=128", "optimizer.lr=0.01,0.1", "seed=range(4)"]
        threads = self.seconds(*TRAIN, "-m", *self.job, *eight, f"sweep.name=threads{name}", num_threads=cores)
        joblib = ["hydra/launcher=joblib", f"hydra.launcher.n_jobs={cores}", f"sweep.name=joblib{name}"]
        return threads / self.seconds(*TRAIN, "-m", *self.job, *eight, *joblib)

    def report(self, num_copies: int) -> float:
        copies = self.folder / "copies"
        for path in self.folder.glob("outputs/sweeps/many0/*/result.json"):
            result = json.loads(path.read_text())
            for copy in range(num_copies):
                seed = result["seed"] + copy * self.seeds
                told = [f"seed={seed}" if line.startswith("seed=") else line for line in result["overrides"]]
                target = copies / f"{path.parent.name},copy={copy}" / "result.json"
                target.parent.mkdir(parents=True)
                own = {"seed": seed, "overrides": told, "config_hash": f"{result['config_hash']}-{seed}"}
                target.write_text(json.dumps(result | own))
        return self.seconds(sys.executable, "-m", "mnist_lit.report", str(copies))


def middle(ratios: list[float]) -> str:
    return f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"


def resident(pid: int) -> float:
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
        return next(float(line.split()[1]) / 1024 for line in lines if line.startswith("VmRSS"))
    except (OSError, StopIteration):  # it has just ended
        return float("nan")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="the packaged sample, fewer jobs")
    parser.add_argument("--repeats", type=int, default=3, help="how often what gives a ratio is measured")
    args = parser.parse_args()
    is_quick = args.quick
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(Path(folder), is_quick=is_quick)
        n = bench.num_jobs
        rounds = [str(number) for number in range(1 if is_quick else args.repeats)]
        processes = middle([bench.processes_against_multirun(name) for name in rounds])
        growth = [bench.growth(name) for name in rounds]
        overhead = bench.overhead()
        again = bench.seconds(*bench.many("many0", bench.num_lrs, bench.seeds))
        joblib = "not installed"
        if importlib.util.find_spec("hydra_plugins.hydra_joblib_launcher"):
            joblib = middle([bench.joblib_against_threads(name) for name in rounds])
        num_copies = 3 if is_quick else 5
        report = bench.report(num_copies)
    print(f"{machine()}; {'the packaged sample' if is_quick else 'MNIST'}, one epoch a job\n")
    print("| figure | must reach | measured |\n|---|---|---|")
    print(f"| 8 jobs: as 8 processes / as one multirun | >= 4 | {processes} |")
    print(f"| a job's cost beyond its own fit and test | <= 0.25 s | {overhead:.2f} s |")
    spans = f"jobs {n - bench.span + 1} to {n} / jobs 2 to {bench.span + 1} of another sweep, in turn"
    print(f"| {spans}: time | <= 1.05 | {middle([ratio for ratio, _ in growth])} |")
    print(f"| after job {n} - after job 2: memory | <= 30 MB | {max(added for _, added in growth):.0f} MB |")
    print(f"| the same command over {n} finished jobs | <= 15 s | {again:.1f} s |")
    print(f"| 8 jobs at batch 128: threads in one process / joblib, one thread each | >= 1.15 | {joblib} |")
    print(f"| report of {n * num_copies} jobs | <= 10 s | {report:.1f} s |")


if __name__ == "__main__":
    main()
