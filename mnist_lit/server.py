"""The page to draw on, and the network behind it, for this machine alone."""

import json
import sys
from collections.abc import Callable
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mnist_lit.errors import UserError, in_one_line
from mnist_lit.photos.photo import Pixels, prepare
from mnist_lit.predictor import Predictor

PAGE = Path(__file__).with_name("page.html")

# A drawing of 500 x 500 pixels as JSON.
MAX_BODY_BYTES = 1_000_000
MAX_SIDE = 1000  # to prepare one takes as much memory as a square of its longer side
# What is read of a larger one, so that its sender hears the refusal instead of a broken connection.
MAX_DRAINED_BYTES = 32_000_000
# A connection that sends nothing for so long is closed.
STALL_SECONDS = 10

# The Host headers that are accepted. Any other may be of a site that has had its own name resolved to 127.0.0.1 (DNS
# rebinding).
HOSTS = {"127.0.0.1", "localhost"}

# The page fetches from nowhere but here, and is shown in no other page.
HEADERS = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; "
    "connect-src 'self'; img-src data:; frame-ancestors 'none'; base-uri 'none'; form-action 'none'",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}


class RequestError(Exception):
    """A request that is refused, with its HTTP status and one line that says why."""

    def __init__(self, status: HTTPStatus, reason: str) -> None:
        super().__init__(reason)
        self.status = status


class Server(ThreadingHTTPServer):
    """Serves the page at `url`, on 127.0.0.1, and answers drawings with what `predictor` makes of them.

    `prepare` makes 28 x 28 pixels of a drawing; its UserError, for a blank one, say, is the answer.

    GET /classes gives the names of the classes. POST /predict takes {"image": rows of grey values 0..255} of any
    size, light on dark or dark on light, as JSON, and gives {"image": the 28 x 28 pixels that the network sees,
    "probabilities": one a class}; {"error": why} comes with every status but 200.

    `port` 0 takes any free one. Raises UserError for a port that cannot be had.
    """

    def __init__(self, predictor: Predictor, *, port: int, prepare: Callable[[Pixels], Pixels] = prepare) -> None:
        self.predictor = predictor
        self.prepare = prepare
        if not 0 <= port < 2**16:
            raise UserError(f"port={port}: must be from 0 (any free one) to 65535")
        try:
            super().__init__(("127.0.0.1", port), Handler)
        except OSError as error:
            raise UserError(f"port={port}: {error.strerror}; name another, or port=0 for any free one") from error

    @property
    def url(self) -> str:
        """Where the page is."""
        return f"http://127.0.0.1:{self.server_port}"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing of a caller that hung up."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)


class Handler(BaseHTTPRequestHandler):
    """One request to a Server."""

    server: Server
    timeout = STALL_SECONDS

    def do_GET(self) -> None:
        """Answer with the page or the names of the classes."""
        self._answer(self._get)

    def do_POST(self) -> None:
        """Answer a drawing with its probabilities."""
        self._answer(self._post)

    def _answer(self, find: Callable[[], tuple[str, bytes]]) -> None:
        """Send the content type and body that `find` returns, or the status and reason of its refusal."""
        status = HTTPStatus.OK
        try:
            content_type, body = find()
        except RequestError as error:
            status = error.status
            content_type, body = _json({"error": str(error)})
        except (ConnectionError, TimeoutError):
            raise
        except Exception as error:
            print(f"error: {in_one_line(error)}", file=sys.stderr)
            status = HTTPStatus.INTERNAL_SERVER_ERROR
            content_type, body = _json({"error": in_one_line(error)})
        self.send_response(status)
        for name, value in {**HEADERS, "Content-Type": content_type, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def _get(self) -> tuple[str, bytes]:
        self._check_host()
        if self.path == "/":
            return "text/html; charset=utf-8", PAGE.read_bytes()
        if self.path == "/classes":
            return _json({"class_names": self.server.predictor.class_names})
        raise RequestError(HTTPStatus.NOT_FOUND, f"{self.path}: there are / and /classes, and /predict for drawings")

    def _post(self) -> tuple[str, bytes]:
        body = self._read_body()
        self._check_host()
        if self.path != "/predict":
            raise RequestError(HTTPStatus.NOT_FOUND, f"{self.path}: drawings go to /predict")
        # A page of another site cannot send this type without asking first (CORS).
        if self.headers.get_content_type() != "application/json":
            raise RequestError(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, "Content-Type: must be application/json")
        return _json(predict(self.server.predictor, self.server.prepare, parse_image(body)))

    def _check_host(self) -> None:
        host = self.headers.get("Host", "")
        if host.rpartition(":")[0] not in HOSTS and host not in HOSTS:  # with or without a port
            raise RequestError(
                HTTPStatus.FORBIDDEN, f"Host: must be {' or '.join(sorted(HOSTS))}, got {host or 'none'}"
            )

    def _read_body(self) -> bytes:
        length = self.headers.get("Content-Length", "")
        if not (length.isascii() and length.isdigit()):
            raise RequestError(HTTPStatus.LENGTH_REQUIRED, "Content-Length: must be the body's number of bytes")
        if len(length) > 12 or int(length) > MAX_BODY_BYTES:
            left = min(int(length[:12]), MAX_DRAINED_BYTES)
            while left > 0 and (part := self.rfile.read(min(left, 2**16))):
                left -= len(part)
            raise RequestError(
                HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"the body has {length[:12]} bytes, allowed are {MAX_BODY_BYTES}"
            )
        body = self.rfile.read(int(length))
        if len(body) < int(length):
            raise RequestError(HTTPStatus.BAD_REQUEST, f"the body ends after {len(body)} of {length} bytes")
        return body

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
        """Keep the screen quiet: a drawing makes many requests."""


def _json(content: dict[str, Any]) -> tuple[str, bytes]:
    return "application/json", json.dumps(content).encode()


def parse_image(body: bytes) -> Pixels:
    """Return the pixels uint8 [H, W] of a JSON body {"image": rows}; raises RequestError for anything else."""
    try:
        pixels = np.array(json.loads(body)["image"])
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise RequestError(HTTPStatus.BAD_REQUEST, 'the body must be JSON, {"image": rows of grey values}') from error
    if max(pixels.shape, default=0) > MAX_SIDE:
        raise RequestError(HTTPStatus.BAD_REQUEST, f"image: must have at most {MAX_SIDE} rows and columns")
    if pixels.ndim != 2 or pixels.size == 0 or pixels.dtype.kind != "i" or pixels.min() < 0 or pixels.max() > 255:
        raise RequestError(
            HTTPStatus.BAD_REQUEST, "image: must be rows of the same length, of whole numbers from 0 to 255"
        )
    return pixels.astype(np.uint8)


def predict(predictor: Predictor, prepare: Callable[[Pixels], Pixels], pixels: Pixels) -> dict[str, Any]:
    """Prepare a drawing uint8 [H, W], and return the picture and what the network says to it.

    Raises RequestError for a drawing that `prepare` refuses.
    """
    try:
        image = torch.from_numpy(prepare(pixels))
    except UserError as error:
        raise RequestError(HTTPStatus.UNPROCESSABLE_ENTITY, str(error)) from error
    with torch.inference_mode():
        (probabilities,) = predictor(image[None])
    return {"image": image.tolist(), "probabilities": probabilities.tolist()}
