"""A sweep as TensorBoard shows it: over HTTP, where its own pages fetch their data, and in a browser."""

import json
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlencode
from urllib.request import Request, urlopen

import numpy as np
import pytest
from conftest import forget_hydra, read_result

from mnist_lit.train import main

# The README's.
COMMAND = ["tensorboard", "--logdir", "outputs"]
SWEEP = "sweeps/lr,batch_size"
ARGUMENTS = ["optimizer.lr=0.1,0.03,0.01", "data.batch_size=50,100"]
# Four points a curve for batches of 100, eight for those of 50.
QUICK = ["data=sample", "trainer.max_epochs=1", "trainer.log_every_n_steps=4", "sweep.pictures=[loss_curve]"]
SETTINGS = {
    f"{SWEEP}/lr={lr},batch_size={batch_size}": (lr, batch_size) for lr in (0.1, 0.03, 0.01) for batch_size in (50, 100)
}
SCORES = {"test/acc", "test/loss", "train/loss", "val/acc", "val/loss"}


class Server:
    """A TensorBoard that runs, and the JSON it answers with."""

    def __init__(self, url: str) -> None:
        self.url = url

    def read(self, path: str, **query: str) -> bytes:
        content: bytes = urlopen(f"{self.url}/data/{path}?{urlencode(query)}").read()
        return content

    def get(self, path: str, **query: str) -> Any:
        return json.loads(self.read(path, **query))

    def post(self, path: str, **body: Any) -> Any:
        headers = {"Content-Type": "application/json"}
        return json.loads(urlopen(Request(f"{self.url}/data/{path}", json.dumps(body).encode(), headers)).read())


@pytest.fixture(scope="module")
def outputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sweep of six in this process."""
    folder = tmp_path_factory.mktemp("tensorboard")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(sys, "argv", ["train", "-m", *ARGUMENTS, *QUICK])
        main()
    forget_hydra()
    return folder / "outputs"


@pytest.fixture(scope="module")
def server(outputs: Path) -> Iterator[Server]:
    """The README's TensorBoard over the sweep, once it has read all of it."""
    command = [sys.executable, "-m", "tensorboard.main", *COMMAND[1:], "--port", "0"]
    with subprocess.Popen(command, cwd=outputs.parent, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        try:
            printed = ""
            while not (found := re.search(r"at (http://\S+?)/? ", printed)):
                line = process.stderr.readline()
                assert line, printed
                printed += line
            server = Server(found[1])
            for _ in range(300):
                tags = server.get("plugin/scalars/tags")
                if len(tags) == 6 and all("test/acc" in run for run in tags.values()):
                    break
                time.sleep(0.2)
            else:
                pytest.fail(f"TensorBoard has read no more than {tags}")
            yield server
        finally:
            process.terminate()


@pytest.fixture(scope="module")
def experiment(server: Server) -> Any:
    return server.post("plugin/hparams/experiment")


def test_runs_are_named_by_their_settings(server: Server) -> None:
    assert set(server.get("runs")) == set(SETTINGS)


@pytest.mark.parametrize("tag", ["train/loss", "val/loss", "val/acc"])
def test_curves_are_those_of_each_run(server: Server, outputs: Path, tag: str) -> None:
    for run in SETTINGS:
        shown = server.get("plugin/scalars/scalars", run=run, tag=tag)
        history = read_result(outputs / run)["history"][tag]
        assert [[step, value] for _, step, value in shown] == [[step, np.float32(value)] for step, value in history]


def test_pictures_of_each_run_are_served(server: Server) -> None:
    tags = server.get("plugin/images/tags")
    assert set(tags) == set(SETTINGS)
    for run in tags:
        assert set(tags[run]) == {"loss_curve"}  # sweep.pictures
    (image,) = server.get("plugin/images/images", run=run, tag="loss_curve")
    assert server.read(f"plugin/images/individualImage?{image['query']}&").startswith(b"\x89PNG")


def test_graph_of_each_run_is_served(server: Server) -> None:
    assert set(server.get("plugin/graphs/info")) == set(SETTINGS)
    for run in SETTINGS:
        assert b"Linear" in server.read("plugin/graphs/graph", run=run)


def test_swept_columns_come_first_with_numeric_axes(experiment: Any) -> None:
    swept = [info for info in experiment["hparamInfos"] if info["differs"]]
    assert swept == experiment["hparamInfos"][: len(swept)]
    assert [(info["name"], info["type"], info["domainInterval"]) for info in swept] == [
        ("data.batch_size", "DATA_TYPE_FLOAT64", {"minValue": 50, "maxValue": 100}),
        ("optimizer.lr", "DATA_TYPE_FLOAT64", {"minValue": 0.01, "maxValue": 0.1}),
    ]


def test_every_column_has_a_domain(experiment: Any) -> None:
    # Without, the parallel coordinates draw no axis and the table offers no filter.
    for info in experiment["hparamInfos"]:
        assert "domainInterval" in info or "domainDiscrete" in info, info


def test_scores_are_among_the_metrics(experiment: Any) -> None:
    assert {info["name"]["tag"] for info in experiment["metricInfos"]} >= SCORES


def test_every_job_has_its_row(server: Server, outputs: Path) -> None:
    answer = server.post(
        "plugin/hparams/session_groups",
        startIndex=0,
        sliceSize=100,
        allowedStatuses=["STATUS_UNKNOWN", "STATUS_SUCCESS", "STATUS_FAILURE", "STATUS_RUNNING"],
    )
    rows = {group["name"]: group for group in answer["sessionGroups"]}
    assert set(rows) == set(SETTINGS)
    assert answer["totalSize"] == 6
    for run, (lr, batch_size) in SETTINGS.items():
        assert rows[run]["hparams"]["optimizer.lr"] == lr
        assert rows[run]["hparams"]["data.batch_size"] == batch_size
        shown = {metric["name"]["tag"]: metric["value"] for metric in rows[run]["metricValues"]}
        metrics = read_result(outputs / run)["metrics"]
        assert set(metrics) == {"val/acc", "val/loss", "test/acc", "test/loss"}
        assert {tag: shown[tag] for tag in metrics} == {tag: np.float32(value) for tag, value in metrics.items()}


@pytest.fixture(scope="module")
def page(browser: Any, request: pytest.FixtureRequest) -> Iterator[Any]:
    """A page of a headless Chromium; its locators look into shadow roots, which TensorBoard is built of."""
    # Only now, lest a sweep be trained for nothing where there is no browser.
    server: Server = request.getfixturevalue("server")
    page = browser.new_page(base_url=server.url, viewport={"width": 1600, "height": 1200})
    page.set_default_timeout(60_000)
    yield page
    page.close()


def open_tab(page: Any, tab: str) -> None:
    page.goto("about:blank")  # another fragment alone loads nothing
    page.goto(f"/#{tab}")


def test_browser_lists_the_runs(page: Any) -> None:
    open_tab(page, "timeseries")
    rows = page.locator("tb-data-table-content-row")
    rows.nth(5).wait_for()
    # The values of a chart that the mouse happens to be over stand behind the name.
    assert {row.inner_text().strip().split("\n")[0] for row in rows.all()} == set(SETTINGS)


def test_browser_draws_the_curves(page: Any) -> None:
    open_tab(page, "scalars&tagFilter=train%2Floss")
    curves = page.locator("tf-scalar-card", has_text="train/loss").locator("path[d*='L']")
    curves.nth(5).wait_for(state="attached")
    assert all(curve.get_attribute("d").count("L") >= 3 for curve in curves.all())


def test_browser_shows_a_picture(page: Any) -> None:
    open_tab(page, "images")
    picture = page.locator("tf-image-loader img").first
    picture.wait_for()
    assert picture.evaluate("async image => { await image.decode(); return image.naturalWidth; }") > 100


def test_browser_fills_the_hparams_table_and_parallel_coordinates(page: Any) -> None:
    open_tab(page, "hparams")
    cells = page.locator("tf-hparams-table-view vaadin-grid-cell-content")
    cells.get_by_text(f"{SWEEP}/lr=0.1,batch_size=50").wait_for()
    texts = [text.strip() for text in cells.all_inner_texts()]
    assert set(SETTINGS) <= set(texts)
    assert {"data.batch_size", "optimizer.lr", "test/acc"} <= set(texts)
    page.get_by_text("Parallel Coordinates View").click()
    lines = page.locator("tf-hparams-parallel-coords-plot g.foreground path")
    lines.nth(5).wait_for()
    assert lines.count() == 6
    assert all(line.get_attribute("d").count("L") >= 6 for line in lines.all())
