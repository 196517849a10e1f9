"""Servers that are slow, endless, or lead elsewhere: a download has a least rate, an end, and one kind of address."""

from __future__ import annotations

import contextlib
import threading
import time
import urllib.request
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from cmapkd.data.sources.public import download as subject
from cmapkd.data.sources.public.download import PublicFile, download
from cmapkd.errors import UserError

BODY = b"0123456789" * 1_000


class Handler(BaseHTTPRequestHandler):
    """Answers by the path that is asked for; `to/<address>` redirects."""

    protocol_version = "HTTP/1.0"

    def do_GET(self) -> None:
        with contextlib.suppress(OSError):
            getattr(self, f"_{self.path.split('/')[1]}")()

    def _to(self) -> None:
        self.send_response(302)
        self.send_header("Location", self.path.removeprefix("/to/"))
        self.end_headers()

    def _good(self) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(len(BODY)))
        self.end_headers()
        self.wfile.write(BODY)

    def _unknown(self) -> None:
        self.send_response(200)
        self.end_headers()
        self.wfile.write(BODY)

    def _endless(self) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(10**15))
        self.end_headers()
        while True:
            self.wfile.write(BODY)

    def _drip(self) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(len(BODY)))
        self.end_headers()
        for byte in BODY:
            self.wfile.write(bytes([byte]))
            time.sleep(0.05)

    def _head(self) -> None:
        while True:
            self.wfile.write(b"H")
            time.sleep(0.05)

    def log_message(self, *arguments: object) -> None:
        pass


@pytest.fixture
def address(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    for name, value in (("PAUSE", 0.0), ("WINDOW", 0.3), ("ATTEMPTS", 2), ("LARGEST", 1e6)):
        monkeypatch.setattr(subject, name, value)
    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    http.daemon_threads = True
    threading.Thread(target=http.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{http.server_port}"
    http.shutdown()
    http.server_close()


def refused(url: str, folder: Path, size: int | None = len(BODY)) -> str:
    with pytest.raises(UserError) as error:
        download(PublicFile("x.bin", url, size=size), folder / "x.bin")
    assert not (folder / "x.bin").exists() and error.value.fix
    return str(error.value)


def test_a_redirect_stays_within_http(address: str, tmp_path: Path) -> None:
    for place in ("ftp://127.0.0.1:1/x", "file:///etc/hostname", "data:text/plain,hello", "gopher://127.0.0.1/"):
        assert "redirect" in refused(f"{address}/to/{place}", tmp_path).lower()
    download(PublicFile("x.bin", f"{address}/to/{address}/good", size=len(BODY)), tmp_path / "x.bin")
    assert (tmp_path / "x.bin").read_bytes() == BODY


def test_https_is_not_left() -> None:
    follow = subject._SameKind().redirect_request
    for new, followed in (("https://b/x", True), ("http://b/x", False), ("ftp://b/x", False)):
        request = urllib.request.Request("https://a/x")
        with contextlib.nullcontext() if followed else pytest.raises(UserError, match="from https to"):
            assert follow(request, None, 302, "Found", {}, new).full_url == new


@pytest.mark.parametrize("what", ["drip", "head"])
def test_a_slow_server_is_given_up(what: str, address: str, tmp_path: Path) -> None:
    told = refused(f"{address}/{what}", tmp_path)
    assert ("bytes a second" if what == "drip" else "no answer came within") in told


def test_a_download_has_an_end(address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "its size is not known" in refused(f"{address}/endless", tmp_path, size=None)
    (tmp_path / "x.bin.part").unlink()
    assert "does not say how long" in refused(f"{address}/unknown", tmp_path, size=None)
    monkeypatch.setattr(subject, "LONGEST", -1)
    monkeypatch.setattr(subject, "_check_room", lambda *_: None)
    assert "hours" in refused(f"{address}/endless", tmp_path, size=10**15)


def test_what_is_no_address_is_told(address: str, tmp_path: Path) -> None:
    for url in ("http://[::1", "http://a b/", "https://", "http://\x00"):
        refused(url, tmp_path)
