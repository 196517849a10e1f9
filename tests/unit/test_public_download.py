"""Downloads against a server on this machine: resumed, verified, refused; nothing is ever half there under its own name."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import public_fixtures as make
import pytest
import yaml
from config_examples import CONFIG
from typer.testing import CliRunner

from cmapkd.cli import app
from cmapkd.config import sources as options
from cmapkd.data.sources import build_source
from cmapkd.data.sources.public import download as subject
from cmapkd.data.sources.public.download import PublicFile, download, fetch_files
from cmapkd.errors import UserError

CONTENT = np.random.default_rng(0).bytes(3_000_000)
SHA256 = hashlib.sha256(CONTENT).hexdigest()


@dataclass
class Server:
    """What the server does, and the ranges that it was asked for."""

    address: str = ""
    content: bytes = CONTENT
    etag: str = '"one"'
    ranges: bool = True
    stop_after: list[int] = field(default_factory=list)  # bytes after which the next answers break off
    errors: list[int] = field(default_factory=list)  # status of the next answers
    asked: list[str | None] = field(default_factory=list)

    def file(self, name: str = "data.zip", **keys: object) -> PublicFile:
        about = {"size": len(CONTENT), "hashes": (("sha256", SHA256),), **keys}
        return PublicFile(name, f"{self.address}/{name}", **about)  # type: ignore[arg-type]


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    state = Server()
    monkeypatch.setattr(subject, "PAUSE", 0.0)

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked = self.headers.get("Range")
            state.asked.append(asked)
            if state.errors:
                self.send_error(state.errors.pop(0))
                return
            start = int(asked.removeprefix("bytes=").rstrip("-")) if asked and state.ranges else 0
            if (wanted := self.headers.get("If-Range")) and wanted != state.etag:
                start = 0
            if start >= len(state.content):
                self.send_response(416)
                self.send_header("Content-Range", f"bytes */{len(state.content)}")
                self.end_headers()
                return
            body = state.content[start:]
            self.send_response(206 if start else 200)
            if start:
                self.send_header("Content-Range", f"bytes {start}-{len(state.content) - 1}/{len(state.content)}")
            self.send_header("ETag", state.etag)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body[: state.stop_after.pop(0)] if state.stop_after else body)

        def log_message(self, *arguments: object) -> None:
            pass

    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    state.address = f"http://127.0.0.1:{http.server_port}"
    thread = threading.Thread(target=http.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    yield state
    http.shutdown()
    http.server_close()


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if not path.name.endswith(".verified.json"))


def test_a_file_is_fetched_once_and_then_only_verified(server: Server, tmp_path: Path) -> None:
    first = fetch_files([server.file()], tmp_path, source="test")
    again = fetch_files([server.file()], tmp_path, source="test")
    assert [(f.fetched, f.sha256) for f in first + again] == [(True, SHA256), (False, SHA256)]
    assert (tmp_path / "data.zip").read_bytes() == CONTENT
    assert names(tmp_path) == ["data.zip"]
    assert len(server.asked) == 1


def test_a_broken_connection_is_resumed_where_it_broke(server: Server, tmp_path: Path) -> None:
    server.stop_after = [1_000_000, 500_000]
    download(server.file(), tmp_path / "data.zip")
    assert server.asked == [None, "bytes=1000000-", "bytes=1500000-"]
    assert (tmp_path / "data.zip").read_bytes() == CONTENT


def test_a_killed_download_goes_on_in_the_next_process(server: Server, tmp_path: Path) -> None:
    (tmp_path / "data.zip.part").write_bytes(CONTENT[:2_000_000])
    (tmp_path / "data.zip.part.etag").write_text(server.etag)
    download(server.file(), tmp_path / "data.zip")
    assert server.asked == ["bytes=2000000-"]
    assert names(tmp_path) == ["data.zip"]


@pytest.mark.parametrize("ranges", [True, False])
def test_halves_of_two_versions_are_never_joined(ranges: bool, server: Server, tmp_path: Path) -> None:
    """Another version on the server, or a server that knows no ranges: the download starts anew."""
    server.ranges = ranges
    (tmp_path / "data.zip.part").write_bytes(bytes(2_000_000))
    (tmp_path / "data.zip.part.etag").write_text('"old"')
    download(server.file(hashes=(), size=None), tmp_path / "data.zip")
    assert (tmp_path / "data.zip").read_bytes() == CONTENT


def test_a_whole_part_only_gets_its_name(server: Server, tmp_path: Path) -> None:
    (tmp_path / "data.zip.part").write_bytes(CONTENT)
    download(server.file(), tmp_path / "data.zip")
    assert server.asked == ["bytes=3000000-"]
    assert (tmp_path / "data.zip").read_bytes() == CONTENT


@pytest.mark.parametrize(
    ("keys", "reason"),
    [
        ({"hashes": (("md5", "0" * 32),)}, "its md5 is .* instead of 0000"),
        ({"hashes": (("sha256", "0" * 64),)}, "its sha256 is"),
        ({"size": 2_999_999}, "3000000 bytes instead of 2999999"),
        ({"size": 3_000_001}, "3000000 bytes instead of 3000001"),
    ],
)
def test_another_file_is_refused_and_not_kept(keys: dict[str, object], reason: str, server: Server, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=reason):
        download(server.file(**keys), tmp_path / "data.zip")
    assert names(tmp_path) == []


def test_a_missing_file_and_a_dead_server_say_what_to_do(server: Server, tmp_path: Path) -> None:
    server.errors = [404]
    with pytest.raises(UserError, match=r"the server answered 404 .*\n.*by hand"):
        download(server.file(), tmp_path / "data.zip")
    assert len(server.asked) == 1
    server.stop_after = [1_000_000]
    server.errors = []
    busy = Server(address="http://127.0.0.1:9")
    with pytest.raises(UserError, match=r"could not be fetched: .*; 0 bytes are in"):
        download(busy.file(), tmp_path / "other.zip")


def test_an_overloaded_server_is_asked_again(server: Server, tmp_path: Path) -> None:
    server.errors = [503, 429]
    download(server.file(), tmp_path / "data.zip")
    assert len(server.asked) == 3


def test_other_addresses_than_http_are_refused(tmp_path: Path) -> None:
    make.write(tmp_path / "secret", b"secret")
    with pytest.raises(UserError, match="only http and https"):
        download(PublicFile("a", f"file://{tmp_path}/secret"), tmp_path / "a")


def test_a_damaged_file_that_is_there_is_found(server: Server, tmp_path: Path) -> None:
    (tmp_path / "data.zip").write_bytes(CONTENT[:-1] + b"?")
    with pytest.raises(UserError, match="is not the publisher's file: its sha256"):
        fetch_files([server.file()], tmp_path, source="test")


def test_what_was_unpacked_needs_no_archive(server: Server, tmp_path: Path) -> None:
    (tmp_path / "pictures").mkdir()
    fetch_files([server.file(instead=("pictures",))], tmp_path, source="test")
    assert server.asked == []


def test_no_room_is_said_before_anything_is_fetched(server: Server, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=f"needs {10**18} bytes"):
        download(server.file(size=10**18), tmp_path / "data.zip")
    assert server.asked == []


@pytest.mark.parametrize(
    ("config", "told"),
    [
        (options.ImagenetConfig(), "accept the terms at https://image-net.org"),
        (options.Flickr30kConfig(partition="whole"), "fill in the form"),
        (options.ConceptualCaptionsConfig(), "img2dataset --url_list"),
    ],
)
def test_what_may_not_be_downloaded_is_explained(config: options.PublicConfig, told: str, tmp_path: Path) -> None:
    source = build_source(config, tmp_path)
    source.may_download = True  # type: ignore[attr-defined]
    with pytest.raises(UserError, match=told) as raised:
        source.fetch()
    assert str(tmp_path / source.name) in str(raised.value)


def test_a_wrong_root_is_not_downloaded_into(tmp_path: Path) -> None:
    make.write(tmp_path / "holiday.txt", "sun")
    source = build_source(options.CocoCaptionsConfig(root=str(tmp_path)), tmp_path)
    source.may_download = True  # type: ignore[attr-defined]
    with pytest.raises(UserError, match=r"holds none of annotations_trainval2017\.zip"):
        source.fetch()
    assert names(tmp_path) == ["holiday.txt"]


def test_the_command_lists_files_sizes_and_terms(tmp_path: Path) -> None:
    content = yaml.safe_load((CONFIG / "mini.yaml").read_text())
    content.pop("tuned", None)
    content.pop("paper")
    content["datasets"]["coco"] = {"source": "coco_captions", "root": str(tmp_path)}
    (tmp_path / "experiment.yaml").write_text(yaml.safe_dump(content))
    done = CliRunner().invoke(app, ["data", "fetch", "coco", "--list", "--experiment", str(tmp_path / "experiment.yaml")])
    assert done.exit_code == 0, done.output
    assert "CC-BY-4.0" in done.output
    assert "missing       19.34 GB  train2017.zip  http://images.cocodataset.org/zips/train2017.zip" in done.output
