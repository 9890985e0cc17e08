"""The sample's digits, others drawn as text, and the page to draw some on, served and in a browser."""

import shutil
import threading
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from matplotlib import get_data_path
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from mnist_lit.data.idx import read_idx
from mnist_lit.data.sources import SAMPLE_DIR, TEST_IMAGES
from mnist_lit.photos.photo import Pixels
from mnist_lit.predictor import Predictor
from mnist_lit.server import Server

# What matplotlib brings along.
FONTS = ("DejaVuSans", "DejaVuSans-Bold", "DejaVuSerif", "DejaVuSansMono-Oblique")


def rendered(text: str, size: int = 120, font: str = "DejaVuSans", margin: int = 40) -> Pixels:
    """Draw text, white on black."""
    letters = ImageFont.truetype(f"{get_data_path()}/fonts/ttf/{font}.ttf", size)
    left, top, right, bottom = map(int, ImageDraw.Draw(Image.new("L", (1, 1))).textbbox((0, 0), text, font=letters))
    image = Image.new("L", (right - left + 2 * margin, bottom - top + 2 * margin))
    ImageDraw.Draw(image).text((margin - left, margin - top), text, font=letters, fill=255)
    return np.asarray(image)


@pytest.fixture(scope="session")
def digits() -> Tensor:
    """The sample's test images, uint8 [500, 28, 28]."""
    return read_idx(SAMPLE_DIR / f"{TEST_IMAGES}.gz", num_dims=3, md5=None)


@pytest.fixture(scope="session")
def digit_images(digits: Tensor) -> Pixels:
    """The same as an array."""
    images: Pixels = digits.numpy()
    return images


def difference(a: Pixels, b: Pixels) -> float:
    """Return the mean absolute difference, of 255."""
    return float(np.abs(a.astype(int) - b.astype(int)).mean())


@pytest.fixture(scope="module")
def server(predictor: Predictor) -> Iterator[Server]:
    with Server(predictor, port=0) as server:
        thread = threading.Thread(target=server.serve_forever, args=[0.01])
        thread.start()
        yield server
        server.shutdown()
        thread.join()


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
