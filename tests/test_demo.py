"""The page to draw on: what it answers over HTTP, and whom it refuses."""

import contextlib
import http.client
import json
import socket
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import Main, Trained
from torch import Tensor

from mnist_lit import server as serving
from mnist_lit.errors import UserError
from mnist_lit.photos.photo import as_whole, prepare
from mnist_lit.predictor import Predictor
from mnist_lit.server import MAX_BODY_BYTES, PAGE, Server

JSON = {"Content-Type": "application/json"}


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


def test_drawings_of_no_digits_are_seen_as_a_whole(
    main: Main, trained: Trained, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    content = torch.load(trained.folder / "checkpoints" / "last.ckpt", weights_only=True)
    content["hyper_parameters"]["data"]["name"] = "KMNIST"
    torch.save(content, tmp_path / "kuzushiji.ckpt")
    strokes = np.zeros((140, 140), dtype=np.uint8)
    strokes[10:130, 20:30] = strokes[10:130, 100:110] = 255
    answered = []
    monkeypatch.setattr(
        Server,
        "serve_forever",
        lambda server: answered.append(serving.predict(server.predictor, server.prepare, strokes)),
    )
    assert main(f"ckpt={tmp_path / 'kuzushiji.ckpt'}", "port=0", module="demo").code == 0
    assert answered[0]["image"] == as_whole(strokes).tolist()
    # One of digits refuses them.
    assert "2 marks that lie apart" in main(f"ckpt={trained.folder}", "port=0", module="demo").err


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
        b'{"image": [[' + b"0," * 10_000 + b"255]]}",
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
    assert draw(server, [[0]] * 1001) == (400, {"error": "image: must have at most 1000 rows and columns"})
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
        ("Host: localhost\r\nContent-Length: \xb2\r\n\r\n{}", b"411"),  # a digit, too: a superscript two
        (f"Host: localhost\r\nContent-Length: {10**30}\r\n\r\n{{}}", b"413"),
        (f"Host: localhost\r\nContent-Length: {'9' * 5000}\r\n\r\n{{}}", b"413"),  # more than int() reads
        ("Content-Length: 2\r\n\r\n{}", b"403"),
    ],
)
def test_raw_requests_are_refused(lines: str, status: bytes, server: Server) -> None:
    with socket.create_connection(("127.0.0.1", server.server_port), timeout=30) as connection:
        connection.sendall(f"POST /predict HTTP/1.1\r\n{lines}".encode("latin-1"))
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

    monkeypatch.setattr(server, "prepare", broken)
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
    flushed: list[str] = []
    screen: Any = sys.stdout
    monkeypatch.setattr(screen, "flush", lambda: flushed.append(screen.getvalue()))

    def interrupted(server: Server) -> None:
        assert "draw at" in "".join(flushed)  # where stdout is a pipe, too
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
        (["ckpt=.", "port=abc"], "port=abc: must be a whole number"),
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
