"""The event file, read back by TensorBoard's own reader."""

import os
from io import BytesIO
from pathlib import Path
from time import perf_counter, sleep
from typing import Any

import numpy as np
import pytest
from conftest import Train, Trained
from matplotlib.image import imread
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.backend.event_processing.event_file_loader import EventFileLoader
from tensorboard.plugins.hparams import metadata
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

from mnist_lit.logger import TensorBoard

STEPS = [10, 20, 30, 40]


def read_events(run: Trained) -> Any:
    (path,) = run.folder.glob("events.out.tfevents.*")
    accumulator = EventAccumulator(str(path), size_guidance={"scalars": 0, "images": 0, "tensors": 0})
    return accumulator.Reload()


@pytest.fixture(scope="module")
def events(trained: Trained) -> Any:
    return read_events(trained)


def points(events: Any, tag: str) -> list[tuple[int, float]]:
    return [(event.step, event.value) for event in events.Scalars(tag)]


def float32(values: list[tuple[int, float]]) -> list[tuple[int, float]]:
    """Round as the event file does."""
    return [(step, float(np.float32(value))) for step, value in values]


def test_an_interrupted_write_holds_nobody_up(tmp_path: Path) -> None:
    logger = TensorBoard(save_dir=str(tmp_path), hparams=[])
    writer = logger.experiment._get_file_writer().event_writer._async_writer
    sleep(0.1)  # until its thread waits for something to write
    queue = writer._byte_queue
    with queue.mutex:  # `put`, cut off by a signal before it wakes that thread
        queue._put(b"an event")
        queue.unfinished_tasks += 1
    started = perf_counter()
    logger.close()
    assert perf_counter() - started < 10  # TensorBoard's default would be 120


def test_an_event_file_comes_after_earlier_ones_of_its_second(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [1e9]
    monkeypatch.setattr("time.time", lambda: clock[0])
    monkeypatch.setattr("time.sleep", lambda seconds: clock.append(clock.pop() + seconds))
    for step in (5, 10):
        logger = TensorBoard(save_dir=str(tmp_path), hparams=[])
        logger.forget_after(step - 1, {})
        logger.log_metrics({"train/loss": 1.0}, step)
        logger.close()
        if step == 5:
            (path,) = tmp_path.iterdir()
            path.rename(str(path).replace(f".{os.getpid()}.", ".z."))  # that of a process whose number sorts last
    assert [step for step, _ in points(EventAccumulator(str(tmp_path)).Reload(), "train/loss")] == [5, 10]


def test_an_event_file_comes_after_earlier_ones_though_the_clock_was_set_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = [1e9]
    monkeypatch.setattr("time.time", lambda: clock[0])
    for steps, now in (((5, 10), 1e9), ((10, 15), 1e9 - 3600), ((15, 20), 1e9 - 7200)):
        clock[0] = now
        logger = TensorBoard(save_dir=str(tmp_path), hparams=[])
        logger.forget_after(steps[0] - 1, {"val/loss": float(now), "epoch": 1})
        logger.log_hyperparams({})  # as at the start of every fit
        for step in steps:
            logger.log_metrics({"train/loss": now}, step)
        logger.close()
    read = EventAccumulator(str(tmp_path)).Reload()
    expected = [(5, 1e9), (10, 1e9 - 3600), (15, 1e9 - 7200), (20, 1e9 - 7200)]
    assert points(read, "train/loss") == float32(expected)
    assert [step for step, _ in points(read, "val/loss")] == [4, 9, 14]
    assert "epoch" not in read.Tags()["scalars"]  # of Lightning's, which has no images_seen beside it


def test_what_callbacks_logged_at_the_very_step_stays_and_test_scores_go(tmp_path: Path) -> None:
    (tmp_path / "events.out.tfevents.backup").touch()
    for _ in range(2):
        logger = TensorBoard(save_dir=str(tmp_path), hparams=[])
        logger.forget_after(10, {"val/loss": 0.5})
        logger.log_hyperparams({})
        for step in (5, 10, 15):
            if step > 10 or len(list(tmp_path.iterdir())) == 2:
                logger.log_metrics({"mine/gap": step}, step)
        logger.log_metrics({"test/acc": 0.9}, 10)
        logger.close()
    read = EventAccumulator(str(tmp_path)).Reload()
    assert points(read, "mine/gap") == [(5, 5), (10, 10), (15, 15)]
    assert [step for step, _ in points(read, "val/loss")] == [10]
    assert [step for step, _ in points(read, "test/acc")] == [10]


def test_scalars_are_these_and_no_others(events: Any) -> None:
    assert set(events.Tags()["scalars"]) == {
        "train/loss",
        "val/loss",
        "val/acc",
        "test/loss",
        "test/acc",
        "lr",
        "epoch",
        "images_seen",
    }


@pytest.mark.parametrize("tag", ["train/loss", "val/loss", "val/acc"])
def test_curves_are_those_of_the_run(events: Any, trained: Trained, tag: str) -> None:
    assert [step for step, _ in points(events, tag)] == (STEPS if tag == "train/loss" else [16, 32, 48])
    assert points(events, tag) == float32(trained.history[tag])


@pytest.mark.parametrize("tag", ["test/loss", "test/acc"])
def test_test_scores_stand_at_the_last_step(events: Any, trained: Trained, tag: str) -> None:
    assert points(events, tag) == float32([(48, trained.result["metrics"][tag])])


def test_learning_rate_epoch_and_images_seen_are_logged_with_the_loss(events: Any) -> None:
    assert points(events, "lr") == float32([(step, 0.01) for step in STEPS])
    assert points(events, "epoch") == float32([(step, step / 16) for step in STEPS])
    assert points(events, "images_seen") == [(step, 100.0 * step) for step in STEPS]


def test_last_step_of_an_epoch_counts_its_own_images(train_run: Train) -> None:
    # 1,600 images in batches of 150: the eleventh has 100.
    run = train_run(
        "logger=tensorboard", "data.batch_size=150", "trainer.log_every_n_steps=11", "test=false", full=True
    )
    events = read_events(run)
    assert points(events, "images_seen") == [(11, 1600.0), (22, 3200.0), (33, 4800.0)]
    assert points(events, "epoch") == [(11, 1.0), (22, 2.0), (33, 3.0)]


@pytest.mark.parametrize(
    ("tag", "step"),
    [
        ("samples", 0),
        ("loss_curve", 48),
        ("first_layer_weights", 48),
        ("predictions", 48),
        ("confusion_matrix", 48),
    ],
)
def test_pictures_are_those_of_the_run_folder(events: Any, trained: Trained, tag: str, step: int) -> None:
    (image,) = events.Images(tag)
    assert image.step == step
    ours = imread(trained.folder / "figures" / f"{tag}.png")[..., :3]
    logged = imread(BytesIO(image.encoded_image_string), format="png")[..., :3]
    assert (image.height, image.width) == ours.shape[:2]
    assert np.array_equal(logged, ours)


def test_no_other_pictures_are_logged(events: Any) -> None:
    assert len(events.Tags()["images"]) == 5


def test_graph_and_row_are_written_once(trained: Trained) -> None:
    (path,) = trained.folder.glob("events.out.tfevents.*")
    events = list(EventFileLoader(str(path)).Load())
    assert sum(event.WhichOneof("what") == "graph_def" for event in events) == 1
    assert [value.tag for event in events for value in event.summary.value].count(metadata.SESSION_START_INFO_TAG) == 1


def test_graph_shows_the_layers(events: Any) -> None:
    names = [node.name for node in events.Graph().node]
    operations = {node.op for node in events.Graph().node}
    for layer in ("layers/Linear[0]", "layers/Linear[2]", "layers/Linear[4]"):
        assert any(layer.replace("layers/", "Sequential[layers]/") in name for name in names), (layer, names)
    assert "aten::linear" in operations
    assert "aten::relu" in operations


def hparams(events: Any) -> dict[str, Any]:
    content = events.PluginTagToContent(metadata.PLUGIN_NAME)
    return {tag: HParamsPluginData.FromString(value) for tag, value in content.items()}


def test_hparams_row_has_the_columns_with_their_values(events: Any) -> None:
    row = hparams(events)[metadata.SESSION_START_INFO_TAG].session_start_info.hparams
    values = {key: getattr(value, value.WhichOneof("kind")) for key, value in row.items()}
    assert (
        values
        | {
            "data.name": "MNIST",
            "data.batch_size": 100,
            "data.val_size": 400,
            "model.hidden_sizes": "[256, 64]",
            "model.activation": "ReLU",
            "model.dropout": 0.0,
            "loss": "mnist_lit.loss.OneHotMSE",
            "optimizer": "torch.optim.SGD",
            "optimizer.lr": 0.01,
            "optimizer.momentum": 0.9,
            "optimizer.nesterov": False,
            "trainer.max_epochs": 3,
            "trainer.precision": "32-true",
            "trainer.gradient_clip_val": "None",
            "seed": 0,
        }
        == values
    )
    assert not [key for key in values if key.startswith(("callbacks", "logger", "data.checksums", "run_dir"))]
    assert not [key for key in values if key.endswith("_")]


def test_columns_are_left_to_tensorboard(events: Any) -> None:
    # A list of columns in an event file would be taken for all runs: those of other sweeps would lose theirs.
    assert metadata.EXPERIMENT_TAG not in hparams(events)


def test_no_metric_starts_at_a_zero_that_nobody_measured(events: Any) -> None:
    for tag in events.Tags()["scalars"]:
        assert all(step > 0 for step, _ in points(events, tag)), tag


def test_values_change_with_the_configuration(train_run: Train) -> None:
    run = train_run(
        "scheduler=cosine", "optimizer=adam", "logger=tensorboard", "debug=fast", "callbacks.pictures=null", full=True
    )
    events = read_events(run)
    row = hparams(events)[metadata.SESSION_START_INFO_TAG].session_start_info.hparams
    assert row["optimizer"].string_value == "torch.optim.Adam"
    assert row["optimizer.lr"].number_value == 0.001
    assert row["scheduler.length_argument"].string_value == "T_max"
    assert events.Tags()["images"] == []
