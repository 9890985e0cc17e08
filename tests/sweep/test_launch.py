"""Ready sweeps, the search, and launchers: how jobs are chosen and where they run."""

import atexit
import os
import runpy
import signal
import sys
from collections.abc import Iterator
from multiprocessing import forkserver
from pathlib import Path
from typing import Any

import filelock
import pytest
from made_sweeps import Sweep, results

from mnist_lit.errors import UserError
from mnist_lit.notation import count
from mnist_lit.sweep import ledger, workers


@pytest.fixture
def no_forkserver() -> Iterator[None]:
    """Let joblib's workers, and the process they are forked from, be new ones, and leave none behind."""
    server: Any = forkserver._forkserver
    preloaded = server._preload_modules

    def stop() -> None:
        if "joblib" in sys.modules:
            from joblib.externals.loky import get_reusable_executor
            from joblib.externals.loky.backend.context import set_start_method

            get_reusable_executor(max_workers=1).shutdown(kill_workers=True)
            set_start_method(None, force=True)
        server._stop()

    stop()
    yield
    stop()
    server.set_forkserver_preload(preloaded)


@pytest.fixture
def as_main(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the entry point's functions be those of `python -m mnist_lit.train`, which launchers send by value."""
    name = "mnist_lit.train"
    for function in vars(sys.modules[name]).values():
        if getattr(function, "__module__", None) == name:
            monkeypatch.setattr(function, "__module__", "__main__")


@pytest.mark.parametrize("is_server", [True, False])
def test_only_the_process_that_workers_are_forked_from_ends_untidily(
    is_server: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    started = [sys.executable, "-c", "from multiprocessing.forkserver import main; main(5, 6)"]
    registered: list[Any] = []
    monkeypatch.setattr(atexit, "register", lambda *call: registered.append(call))
    monkeypatch.setattr(sys, "orig_argv", started if is_server else [sys.executable, "-m", "pytest"])
    before = signal.getsignal(signal.SIGINT)
    runpy.run_module(workers.PRELOADED)
    signal.signal(signal.SIGINT, before)
    assert ((os._exit, 0) in registered) == is_server


def test_ready_sweeps_know_their_keys(sweep: Sweep, capsys: pytest.CaptureFixture[str]) -> None:
    assert sweep("sweep=grid", "trainer.max_epochs=1,2", "optimizer.lr=0.1", "sweep.dry_run=true") == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "to do  batch_size=64,max_epochs=1"  # what the command line fixes is not swept
    assert lines[-1].startswith("6 jobs, 6 to do in outputs/sweeps/batch_size,max_epochs: about ")
    assert sweep("sweep=seeds", "seed=3,4", "trainer.max_epochs=1") == 0
    assert list(results("outputs/sweeps/seed")) == ["seed=3", "seed=4"]
    assert [job.name for job in ledger.read_jobs(Path("outputs/sweeps/seed"))] == ["seed=3", "seed=4"]


def test_a_search_goes_on_where_it_was_cut_off(
    sweep: Sweep, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("hydra_plugins.hydra_optuna_sweeper", reason="needs the extra optuna")
    monkeypatch.setenv("SQLALCHEMY_SILENCE_UBER_WARNING", "1")  # which the search sets too late for the next line
    import optuna

    search = ("sweep=tpe", "optimizer.lr=tag(log,interval(1e-10,1e7))", "trainer.max_epochs=1")
    folder = Path("outputs/sweeps/tpe-lr,batch_size")
    assert sweep(*search, "hydra.sweeper.n_trials=3", "sweep.dry_run=true") == 0
    told = f"a search over optimizer.lr, data.batch_size in {folder}: 3 trials, 3 to do: about 1 s of training"
    assert capsys.readouterr().out.startswith(told)
    assert not folder.exists()
    assert sweep(*search, "hydra.sweeper.n_trials=3") == 0
    assert "3/3  lr=" in capsys.readouterr().out
    found = results(str(folder))
    assert {"finished", "diverged"} == {result["status"] for result in found.values()}
    assert {job.name for job in ledger.read_jobs(folder)} == found.keys()
    study = optuna.load_study(study_name="tpe", storage=f"sqlite:///{folder}/study.db")
    assert [trial.value for trial in study.trials] == [
        found[f"lr={trial.params['optimizer.lr']:.6g},batch_size={trial.params['data.batch_size']}"]["metrics"].get(
            "val/acc", 0.0
        )
        for trial in study.trials
    ]

    # What a kill leaves: a trial without an end.
    cut_off = study.ask({"optimizer.lr": optuna.distributions.LogUniformDistribution(1e-10, 1e7)})
    before = {path: path.stat().st_mtime_ns for path in folder.glob("*/result.json")}
    capsys.readouterr()
    for num_trials, num_to_do in {3: "0 to do\n", 4: "1 to do: about 1 s"}.items():
        assert sweep(*search, f"hydra.sweeper.n_trials={num_trials}", "sweep.dry_run=true") == 0
        assert f"{num_trials} trials, {num_to_do}" in capsys.readouterr().out
    assert sweep(*search, "hydra.sweeper.n_trials=4") == 0
    assert all(path.stat().st_mtime_ns == time_before for path, time_before in before.items())
    (new,) = results(str(folder)).keys() - found.keys()
    assert new.startswith(f"lr={cut_off.params['optimizer.lr']:.6g},")
    assert sum(trial.state == optuna.trial.TrialState.COMPLETE for trial in study.trials) == 4


def test_a_search_tries_failed_jobs_again(sweep: Sweep, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("hydra_plugins.hydra_optuna_sweeper", reason="needs the extra optuna")
    Path("file").touch()
    search = ("sweep=tpe", "trainer.max_epochs=1", "hydra.sweeper.n_trials=1", "sweep.name=s")
    broken = "callbacks.checkpoint.dirpath=file/x"
    assert sweep(*search, broken) == 1
    failed = results("outputs/sweeps/s")
    assert [result["status"] for result in failed.values()] == ["failed"]
    Path("file").unlink()
    for _ in range(2):
        assert sweep(*search, broken) == 0
        assert {name: result["status"] for name, result in results("outputs/sweeps/s").items()} == dict.fromkeys(
            failed, "finished"
        )


def test_a_search_over_few_values_has_an_end(sweep: Sweep, capsys: pytest.CaptureFixture[str]) -> None:
    optuna = pytest.importorskip("optuna", reason="needs the extra optuna")
    fixed = ("data.batch_size=choice(256,512)", "optimizer.lr=0.1", "trainer.max_epochs=1")
    for _ in range(2):
        assert sweep("sweep=tpe", *fixed, "hydra.sweeper.n_trials=4", "sweep.name=s") == 0
        study = optuna.load_study(study_name="tpe", storage="sqlite:///outputs/sweeps/s/study.db")
        assert len(study.trials) == 4
    before = Path("outputs/sweeps/s", ledger.LEDGER).read_bytes()
    for other in ("choice(128,512)", "range(1,512)"):
        assert sweep("sweep=tpe", *fixed, f"data.batch_size={other}", "hydra.sweeper.n_trials=5", "sweep.name=s") == 2
        told = "data.batch_size: this search has drawn from [256, 512], and cannot from "
        printed = capsys.readouterr().err
        assert printed.startswith(f"error: {told}")
        assert printed.endswith("; give it another sweep.name\n")
    assert Path("outputs/sweeps/s", ledger.LEDGER).read_bytes() == before


def test_what_a_search_draws_from_is_known_from_all_of_its_trials(tmp_path: Path) -> None:
    optuna = pytest.importorskip("optuna", reason="needs the extra optuna")
    from mnist_lit.sweep.search import take_up

    storage = f"sqlite:///{tmp_path}/study.db"
    study = optuna.create_study(study_name="s", storage=storage, direction="maximize")
    drawn = optuna.distributions.UniformDistribution(0.1, 1)
    study.ask()  # killed before it had a value
    study.tell(study.ask({"optimizer.lr": drawn}), 0.5)
    with pytest.raises(
        UserError, match=r"^optimizer.lr: this search has drawn from UniformDistribution\(.*\), and cann"
    ):
        take_up(
            storage, "s", {"optimizer.lr": optuna.distributions.LogUniformDistribution(0.1, 1)}, lambda params: None
        )
    assert take_up(storage, "s", {"optimizer.lr": optuna.distributions.UniformDistribution(0.2, 2)}, lambda _: None)


def test_a_search_that_is_refused_leaves_the_other_alone(sweep: Sweep, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("hydra_plugins.hydra_optuna_sweeper", reason="needs the extra optuna")
    search = ("sweep=tpe", "trainer.max_epochs=1", "sweep.name=s")
    assert sweep(*search, "hydra.sweeper.n_trials=1") == 0
    folder = Path("outputs/sweeps/s")
    (folder / ledger.STOP).touch()
    before = (folder / ledger.LEDGER).read_bytes()
    with filelock.FileLock(folder / ".search.lock"):
        assert sweep(*search, "hydra.sweeper.n_trials=9") == 2
    assert "another process searches there" in capsys.readouterr().err
    assert (folder / ledger.STOP).exists()
    assert (folder / ledger.LEDGER).read_bytes() == before


def test_what_all_trials_share_is_checked_before_the_first(sweep: Sweep, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("hydra_plugins.hydra_optuna_sweeper", reason="needs the extra optuna")
    assert sweep("sweep=tpe", "trainer.strategy=nonsense") == 2
    assert "invalid strategy name" in capsys.readouterr().err
    assert sweep("sweep=tpe", "model.activation=choice(Tanh,nonsense)") == 2
    assert (
        "model.activation must name an activation of torch.nn, such as ReLU or Tanh, got nonsense"
        in capsys.readouterr().err
    )
    assert sweep("sweep=tpe", "experiment=tuned") == 2
    assert "a search goes by validation images, and there are none; data.val_size=5000" in capsys.readouterr().err
    assert sweep("sweep=tpe", "trainer.limit_val_batches=0", "callbacks.checkpoint.monitor=null") == 2
    assert "a search goes by validation images, and there are none" in capsys.readouterr().err
    assert sweep("sweep=tpe", "optimizer.momentum=interval(-0.5,0.9)") == 2
    assert "-0.5" in capsys.readouterr().err
    assert sweep("sweep=tpe", "data.val_size=choice(3000,500)") == 2
    assert capsys.readouterr().err == "error: data.val_size=3000: must be below the 2000 training images\n"
    assert sweep("sweep=tpe", "data=choice(mnist,sample)", "data.root=nowhere", "data.fetch_from=[]") == 2
    assert capsys.readouterr().err.startswith("error: MNIST is not in nowhere/MNIST/raw")
    for drawn, told in {
        "optimizer.lr=interval(1,0.1)": "The `low` value must be smaller than",
        "optimizer.momentum=tag(log,interval(0,0.9))": "The `low` value must be larger than 0",
        "data.batch_size=range(500,100)": "The `low` value must be smaller than",
        "data.batch_size=range(100,500,0)": "The `step` value must be non-zero",
        "optimizer=glob(ad*)": "a search takes choice(), range() and interval()",
        "data.batch_size=shuffle(64,128)": "a search draws its values anyway; leave out shuffle",
    }.items():
        assert sweep("sweep=tpe", drawn) == 2
        assert capsys.readouterr().err.startswith(f"error: {drawn}: {told}")
    for key in ("seed", "data.split_seed"):
        assert sweep("sweep=tpe", f"{key}=range(3)") == 2
        assert f"error: {key}: a search would choose the luckiest; leave it out" in capsys.readouterr().err
    assert sweep("sweep=tpe", "hydra.sweeper.direction=minimize") == 2
    assert "error: hydra.sweeper.direction=minimize: must be maximize" in capsys.readouterr().err
    assert sweep("sweep=tpe", "hydra.sweeper.n_trials=0") == 2
    assert capsys.readouterr().err == "error: hydra.sweeper.n_trials=0: must be at least 1\n"
    assert not Path("outputs").exists()


@pytest.mark.parametrize(
    ("launcher", "options"),
    [
        ("joblib", ["hydra.launcher.n_jobs=2"]),
        ("ray", ["+hydra.launcher.ray.init.num_cpus=2"]),
        ("submitit_local", []),
    ],
)
def test_launchers_give_the_same_sweep(
    launcher: str,
    options: list[str],
    sweep: Sweep,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    no_forkserver: None,
    as_main: None,
) -> None:
    extra = launcher.partition("_")[0]
    pytest.importorskip(f"hydra_plugins.hydra_{extra}_launcher", reason=f"needs the extra {extra}")
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    Path("file").touch()
    swept = "callbacks.checkpoint.dirpath=file/x,a,b,c"
    arguments = (f"hydra/launcher={launcher}", swept, "sweep.name=s", "trainer.accelerator=cpu", *options)
    try:
        assert sweep(*arguments) == 1
        captured = capsys.readouterr()
        found = results("outputs/sweeps/s")
        assert {name: result["status"] for name, result in found.items()} == {
            "dirpath=file_x": "failed",
            "dirpath=a": "finished",
            "dirpath=b": "finished",
            "dirpath=c": "finished",
        }
        num_threads = 1 if launcher != "joblib" else max(pytest.importorskip("joblib").cpu_count() // 2, 1)
        assert found["dirpath=a"]["device"].endswith(f"({count(num_threads, 'thread')})")
        assert sorted(line.split("  ")[1] for line in captured.out.splitlines() if "/4  " in line) == sorted(found)
        assert "failed: dirpath=file_x: " in captured.err
        assert "3 finished, 1 failed" in captured.out

        before = {path: path.stat().st_mtime_ns for path in Path("outputs/sweeps/s").glob("*/result.json")}
        Path("file").unlink()
        assert sweep(*arguments) == 0
        changed = [path.parent.name for path, time_before in before.items() if path.stat().st_mtime_ns != time_before]
        assert changed == ["dirpath=file_x"]
    finally:
        if launcher == "ray":
            import ray

            ray.shutdown()


@pytest.mark.skipif(sys.platform != "linux", reason="forks on Linux only")
@pytest.mark.parametrize("num_threads", [None, "3"])
def test_joblibs_workers_are_forked_from_one_that_has_imported_torch(
    num_threads: str | None, no_forkserver: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    joblib = pytest.importorskip("joblib", reason="needs the extra joblib")
    monkeypatch.setattr(joblib, "cpu_count", lambda: 8)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    if num_threads is not None:
        monkeypatch.setenv("OMP_NUM_THREADS", num_threads)
    workers.fork_from_one(n_jobs=2)
    worker = "__import__('os').getppid(), 'mnist_lit.build' in __import__('sys').modules"
    settings = "__import__('os').environ['OMP_NUM_THREADS'], __import__('signal').getsignal(2).__name__"
    filters = "__import__('os').environ['PYTHONWARNINGS']"
    found = joblib.Parallel(n_jobs=2)(joblib.delayed(eval)(f"({worker}, {settings}, {filters})") for _ in range(4))
    ((parent, has_imported, told, on_ctrl_c, ignored),) = set(found)
    assert parent != os.getpid()
    assert has_imported
    assert told == (num_threads or "4")
    assert on_ctrl_c == "default_int_handler"
    assert ignored.split(",")[-1] == "ignore:resource_tracker"


def test_no_workers_at_all_are_refused(sweep: Sweep, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("hydra_plugins.hydra_joblib_launcher", reason="needs the extra joblib")
    assert sweep("hydra/launcher=joblib", "hydra.launcher.n_jobs=0", "seed=0,1") == 2
    assert capsys.readouterr().err == "error: hydra.launcher.n_jobs=0: must be above 0, or -1: one a core\n"
    assert not Path("outputs").exists()


def test_an_interrupted_sweep_says_how_it_goes_on(
    sweep: Sweep, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(*args: object, **kwargs: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("mnist_lit.run.L.Trainer.fit", interrupted)
    assert sweep("seed=0,1") == 130
    assert capsys.readouterr().err.splitlines()[-1] == "interrupted; the same command again goes on"
    assert {name: result["status"] for name, result in results("outputs/sweeps/seed").items()} == {
        "seed=0": "interrupted"
    }
