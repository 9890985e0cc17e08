"""The page to draw on, in a real browser."""

import threading
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch

from mnist_lit.errors import UserError
from mnist_lit.photos.photo import Pixels, prepare
from mnist_lit.predictor import Predictor
from mnist_lit.server import Server


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


def test_browser_shows_why_there_is_no_answer(page: Any, server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(pixels: object) -> None:
        raise UserError("several digits")

    monkeypatch.setattr(server, "prepare", refuse)
    move_along(page, (0.5, 0.2), (0.5, 0.8))
    page.get_by_text("several digits").wait_for()
    assert page.locator(".best").count() == 0


def test_browser_drops_the_answer_to_what_was_cleared(
    page: Any, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    cleared = threading.Event()

    def wait(pixels: Pixels) -> Pixels:
        assert cleared.wait(60)
        return prepare(pixels)

    monkeypatch.setattr(server, "prepare", wait)
    move_along(page, (0.5, 0.2), (0.5, 0.8))
    page.get_by_role("button", name="Clear").click()
    cleared.set()
    page.wait_for_function("() => !asking")
    assert page.locator(".best").count() == 0
    assert page.locator("#detail").inner_text() == "Nothing drawn yet."
