"""The page to draw on: what it answers over HTTP, whom it refuses, and in a real browser."""

import contextlib
import http.client
import json
import shutil
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import Main, Trained, compose_config
from torch import Tensor

from mnist_lit import cli, load_model
from mnist_lit import server as serving
from mnist_lit.data.idx import read_idx
from mnist_lit.data.photo import Pixels, prepare
from mnist_lit.data.sources import SAMPLE_DIR, TEST_IMAGES
from mnist_lit.errors import UserError
from mnist_lit.predictor import Predictor
from mnist_lit.server import MAX_BODY_BYTES, PAGE, Server
from mnist_lit.train import train

JSON = {"Content-Type": "application/json"}


@pytest.fixture(scope="module")
def predictor(tmp_path_factory: pytest.TempPathFactory) -> Predictor:
    """A network that knows its digits: 9 of 10 in the sample's test set."""
    cli.register_resolvers()
    folder = tmp_path_factory.mktemp("trained") / "run"
    overrides = ["loss=cross_entropy", "optimizer.lr=0.1", "trainer.max_epochs=8"]
    train(compose_config(folder, *overrides, "callbacks.pictures=null", "logger=none"))
    return load_model(folder)


@pytest.fixture(scope="module")
def server(predictor: Predictor) -> Iterator[Server]:
    with Server(predictor, port=0) as server:
        thread = threading.Thread(target=server.serve_forever, args=[0.01])
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture(scope="module")
def digits() -> Tensor:
    return read_idx(SAMPLE_DIR / f"{TEST_IMAGES}.gz", num_dims=3, md5=None)


def ask(
    server: Server, method: str, path: str, body: bytes | None = None, headers: dict[str, str] | None = None
) -> tuple[int, http.client.HTTPMessage, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=30)
    connection.request(method, path, body, headers or {})
    answer = connection.getresponse()
    content = answer.read()
    connection.close()
    return answer.status, answer.headers, content


def draw(server: Server, image: Any, **headers: str) -> tuple[int, dict[str, Any]]:
    status, _, content = ask(server, "POST", "/predict", json.dumps({"image": image}).encode(), JSON | headers)
    return status, json.loads(content)


def is_alive(server: Server) -> bool:
    return ask(server, "GET", "/classes")[0] == 200


def test_page_needs_nothing_from_elsewhere(server: Server) -> None:
    status, headers, content = ask(server, "GET", "/")
    assert (status, headers["Content-Type"]) == (200, "text/html; charset=utf-8")
    assert content == PAGE.read_bytes()
    assert b"://" not in content
    assert "default-src 'none'" in headers["Content-Security-Policy"]


def test_classes_are_the_networks(server: Server) -> None:
    assert json.loads(ask(server, "GET", "/classes")[2]) == {"class_names": list("0123456789")}


def test_real_digit_gets_the_networks_own_answer(server: Server, predictor: Predictor, digits: Tensor) -> None:
    for digit in digits[:20]:
        status, answer = draw(server, digit.tolist())
        assert (status, answer["image"]) == (200, digit.tolist())
        assert answer["probabilities"] == predictor(digit[None])[0].tolist()


def test_large_drawing_gets_the_answer_to_the_picture_it_shows(
    server: Server, predictor: Predictor, digits: Tensor
) -> None:
    num_same = 0
    for digit in digits[:20]:
        drawing = np.pad(np.kron(digit.numpy(), np.ones((5, 5), dtype=np.uint8)), (60, 0))
        status, answer = draw(server, drawing.tolist())
        assert status == 200
        seen = torch.tensor(answer["image"], dtype=torch.uint8)
        assert seen.tolist() == prepare(drawing).tolist()
        assert answer["probabilities"] == predictor(seen[None])[0].tolist()
        num_same += int(np.argmax(answer["probabilities"]) == predictor(digit[None]).argmax())
    assert num_same >= 18


def test_blank_drawing_is_told_so(server: Server) -> None:
    status, answer = draw(server, [[0] * 140] * 140)
    assert status == 422
    assert answer["error"].startswith("blank")


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"\xff\xfe",
        b"[]",
        b"7",
        b"{}",
        b'{"image": null}',
        b'{"image": []}',
        b'{"image": [[]]}',
        b'{"image": [1, 2]}',
        b'{"image": [[1, 2], [3]]}',
        b'{"image": [[[1]]]}',
        b'{"image": [[0, 256]]}',
        b'{"image": [[-1, 0]]}',
        b'{"image": [[0.5]]}',
        b'{"image": [[NaN]]}',
        b'{"image": [["1"]]}',
        b'{"image": [[true]]}',
        b'{"image": [[1e400]]}',
        b'{"image": [[' + b"9" * 30 + b"]]}",
        b'{"image": ' + b"[" * 200_000,
    ],
    ids=lambda body: str(body[:30]),
)
def test_malformed_drawing_is_refused(body: bytes, server: Server) -> None:
    status, _, content = ask(server, "POST", "/predict", body, JSON)
    assert status == 400
    assert set(json.loads(content)) == {"error"}
    assert is_alive(server)


def test_drawing_of_one_pixel_is_answered(server: Server) -> None:
    for image in ([[255]], [[0, 255]], [[0]] * 1000):
        assert draw(server, image)[0] in (200, 422)
    assert is_alive(server)


def test_oversized_drawing_is_refused(server: Server) -> None:
    status, _, content = ask(server, "POST", "/predict", b"0" * (5 * MAX_BODY_BYTES), JSON)
    assert status == 413
    assert json.loads(content)["error"] == "the body has 5000000 bytes, allowed are 1000000"
    status, _, _ = ask(server, "POST", "/predict", b" " * MAX_BODY_BYTES, JSON)
    assert status == 400  # not too large, but no JSON


@pytest.mark.parametrize(
    "host", ["evil.example", "127.0.0.1.evil.example:80", "evil.example:127.0.0.1", "[::1]:80", ""]
)
@pytest.mark.parametrize("method", ["GET", "POST"])
def test_other_hosts_are_refused(method: str, host: str, server: Server) -> None:
    path = "/" if method == "GET" else "/predict"
    status, _, content = ask(server, method, path, b'{"image": [[0, 255]]}', JSON | {"Host": host})
    assert status == 403
    assert b"must be 127.0.0.1 or localhost" in content
    for own in ("localhost", "localhost:9000", "127.0.0.1"):
        assert ask(server, "GET", "/classes", headers={"Host": own})[0] == 200


def test_other_requests_are_refused(server: Server) -> None:
    assert ask(server, "GET", "/../server.py")[0] == 404
    assert ask(server, "POST", "/", b"{}", JSON)[0] == 404
    assert ask(server, "PUT", "/predict", b"{}", JSON)[0] == 501
    # What a form of another site's can send without being asked.
    assert ask(server, "POST", "/predict", b'{"image": [[0, 255]]}', {"Content-Type": "text/plain"})[0] == 415


@pytest.mark.parametrize(
    ("lines", "status"),
    [
        ("Host: localhost\r\nContent-Type: application/json\r\n\r\n{}", b"411"),
        ("Host: localhost\r\nContent-Length: -1\r\n\r\n{}", b"411"),
        ("Host: localhost\r\nContent-Length: ten\r\n\r\n{}", b"411"),
        ("Host: localhost\r\nContent-Length: 10\r\n\r\n{}", b"400"),
        (f"Host: localhost\r\nContent-Length: {10**30}\r\n\r\n{{}}", b"413"),
        ("Content-Length: 2\r\n\r\n{}", b"403"),
    ],
)
def test_raw_requests_are_refused(lines: str, status: bytes, server: Server) -> None:
    with socket.create_connection(("127.0.0.1", server.server_port), timeout=30) as connection:
        connection.sendall(f"POST /predict HTTP/1.1\r\n{lines}".encode())
        with contextlib.suppress(OSError):  # where the refusal came first
            connection.shutdown(socket.SHUT_WR)
        assert connection.recv(100).split()[1] == status
    assert is_alive(server)


def test_caller_that_hangs_up_leaves_no_trace(server: Server, capfd: pytest.CaptureFixture[str]) -> None:
    for _ in range(3):
        with socket.create_connection(("127.0.0.1", server.server_port)) as connection:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")  # close means reset
            connection.sendall(b"POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000\r\n\r\n{")
    assert is_alive(server)
    assert capfd.readouterr() == ("", "")


def test_bug_is_told_in_one_line(
    server: Server, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(pixels: object) -> None:
        raise ZeroDivisionError("by\nzero")

    monkeypatch.setattr(serving, "prepare", broken)
    assert draw(server, [[0, 255]]) == (500, {"error": "ZeroDivisionError: by zero"})
    assert capsys.readouterr().err == "error: ZeroDivisionError: by zero\n"


def test_port_that_is_taken_or_none_is_named(server: Server, predictor: Predictor) -> None:
    with pytest.raises(
        UserError, match=rf"^port={server.server_port}: Address already in use; name another, or port=0"
    ):
        Server(predictor, port=server.server_port)
    for port in (-1, 65536):
        with pytest.raises(UserError, match=f"^port={port}: must be from 0"):
            Server(predictor, port=port)


def test_ctrl_c_ends_it_with_one_line(
    main: Main, trained: Trained, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    served = []

    def interrupted(server: Server) -> None:
        served.append(server)
        raise KeyboardInterrupt

    monkeypatch.setattr(Server, "serve_forever", interrupted)
    outcome = main(f"ckpt={trained.folder}", "port=0", module="demo")
    (server,) = served
    assert server.server_address[0] == "127.0.0.1"  # seen from this machine alone
    assert server.socket.fileno() == -1
    assert (outcome.code, outcome.err) == (0, "")
    assert outcome.out == f"draw at {server.url} until Ctrl-C\nstopped\n"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        ([], "ckpt is missing: add ckpt=PATH"),
        (["ckpt=x"], "ckpt=x: no such file or folder"),
        (["ckpt=x", "port=abc"], "port=abc: must be a whole number"),
        (["ckpt={run}", "port=70000"], "port=70000: must be from 0"),
    ],
)
def test_mistakes_are_told_in_one_line(
    arguments: list[str], line: str, main: Main, trained: Trained, tmp_path: Path
) -> None:
    outcome = main(*(argument.format(run=trained.folder) for argument in arguments), module="demo")
    assert (outcome.code, outcome.out) == (2, "")
    assert outcome.err.startswith(f"error: {line}")
    assert outcome.err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_help_fits_the_screen(main: Main) -> None:
    outcome = main("--help", module="demo")
    assert outcome.code == 0
    assert "port=8000" in outcome.out
    assert max(map(len, outcome.out.splitlines())) <= 105


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """A headless Chromium."""
    playwright = pytest.importorskip("playwright.sync_api", reason="no playwright: pip install -e '.[dev]'")
    chromium = shutil.which("chromium")
    if chromium is None:
        pytest.skip("no chromium on PATH: apt-get install chromium")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=chromium)
        yield browser
        browser.close()


@pytest.fixture
def page(browser: Any, server: Server) -> Iterator[Any]:
    """The page, as it shows once it has loaded; it must raise no error and ask nothing elsewhere."""
    context = browser.new_context(has_touch=True)
    page = context.new_page()
    page.set_default_timeout(60_000)
    events: list[str] = []
    page.on("pageerror", lambda error: events.append(str(error)))
    page.on("request", lambda request: events.append(request.url))
    page.goto(server.url)
    page.locator("li").nth(9).wait_for()
    yield page
    # What it asks for, and the icon that there is none of.
    assert set(events) <= {f"{server.url}/", f"{server.url}/classes", f"{server.url}/predict", "data:,"}
    context.close()


def move_along(page: Any, *points: tuple[float, float]) -> None:
    """Draw a line with the mouse through points of the sheet, which is 1 wide and high."""
    box = page.locator("#pad").bounding_box()
    (x, y), *others = [(box["x"] + x * box["width"], box["y"] + y * box["height"]) for x, y in points]
    page.mouse.move(x, y)
    page.mouse.down()
    for x, y in others:
        page.mouse.move(x, y, steps=10)
    page.mouse.up()


def settled(page: Any) -> dict[str, Any]:
    """Wait until the last stroke is answered; return what the page shows, as the server would say it."""
    page.wait_for_function("() => !asking && document.querySelector('.best')")
    shown: dict[str, Any] = page.evaluate(
        """() => {
          const pixels = find("seen").getContext("2d").getImageData(0, 0, 28, 28).data;
          return {
            image: Array.from({length: 28}, (_, y) => Array.from({length: 28}, (_, x) => pixels[4 * (28 * y + x)])),
            percents: bars.map(({ percent }) => percent.textContent),
            widths: bars.map(({ bar }) => bar.style.width),
            best: document.querySelector(".best span").textContent,
            verdict: verdict.textContent,
            drawing: drawing(),
          };
        }"""
    )
    return shown


def check_shown(shown: dict[str, Any], predictor: Predictor) -> None:
    """The page shows the picture that was made of the drawing, and what the network says to that picture."""
    image = prepare(np.array(shown["drawing"], dtype=np.uint8))
    assert shown["image"] == image.tolist()
    (probabilities,) = predictor(torch.from_numpy(image)[None])
    assert shown["percents"] == [f"{100 * share:.1f} %" for share in probabilities.tolist()]
    assert shown["widths"] == [f"{100 * share:.1f}".removesuffix(".0") + "%" for share in probabilities.tolist()]
    assert shown["best"] == shown["verdict"] == str(int(probabilities.argmax()))


def test_browser_answers_a_stroke(page: Any, predictor: Predictor) -> None:
    move_along(page, (0.5, 0.2), (0.5, 0.8))
    one = settled(page)
    check_shown(one, predictor)
    assert one["verdict"] == "1"
    page.get_by_role("button", name="Clear").click()
    assert page.locator(".best").count() == 0
    assert page.locator("#detail").inner_text() == "Nothing drawn yet."
    move_along(page, (0.3, 0.25), (0.7, 0.25), (0.5, 0.8))
    seven = settled(page)
    check_shown(seven, predictor)
    assert seven["verdict"] == "7"


def test_browser_answers_the_keyboard(page: Any, predictor: Predictor) -> None:
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.id") == "pad"
    page.keyboard.press("ArrowDown")  # with the pen up
    page.keyboard.press("Space")
    for _ in range(14):
        page.keyboard.press("ArrowDown")
    shown = settled(page)
    check_shown(shown, predictor)
    assert shown["verdict"] == "1"
    drawn = np.array(shown["drawing"])
    assert drawn[:25].sum() == 0
    assert drawn[40:100, 70].min() == 255
    page.keyboard.press("Escape")
    assert page.locator(".best").count() == 0


def test_browser_answers_a_finger(page: Any, predictor: Predictor) -> None:
    page.set_viewport_size({"width": 390, "height": 450})  # so low that a finger would scroll the page
    box = page.locator("#pad").bounding_box()
    finger = page.context.new_cdp_session(page)
    for share in (0.2, 0.4, 0.6, 0.8):
        point = {"x": box["x"] + box["width"] / 2, "y": box["y"] + share * box["height"]}
        kind = "touchStart" if share == 0.2 else "touchMove"
        finger.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": [point]})
    finger.send("Input.dispatchTouchEvent", {"type": "touchEnd", "touchPoints": []})
    shown = settled(page)
    check_shown(shown, predictor)
    assert shown["verdict"] == "1"
    assert np.array(shown["drawing"])[40:100, 70].min() == 255
    assert page.evaluate("scrollY") == 0


def test_browser_shows_why_there_is_no_answer(page: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(pixels: object) -> None:
        raise UserError("several digits")

    monkeypatch.setattr(serving, "prepare", refuse)
    move_along(page, (0.5, 0.2), (0.5, 0.8))
    page.get_by_text("several digits").wait_for()
    assert page.locator(".best").count() == 0


def test_browser_drops_the_answer_to_what_was_cleared(page: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    cleared = threading.Event()

    def wait(pixels: Pixels) -> Pixels:
        assert cleared.wait(60)
        return prepare(pixels)

    monkeypatch.setattr(serving, "prepare", wait)
    move_along(page, (0.5, 0.2), (0.5, 0.8))
    page.get_by_role("button", name="Clear").click()
    cleared.set()
    page.wait_for_function("() => !asking")
    assert page.locator(".best").count() == 0
    assert page.locator("#detail").inner_text() == "Nothing drawn yet."
