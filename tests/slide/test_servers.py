"""Slides on servers: those that answer, and those that do not, or not as they should."""

from __future__ import annotations

import re
import socket
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
from make_slides import halves, texture, write_slide

from wsi2ihc.errors import SlideNotFoundError, UnreadableSlideError
from wsi2ihc.geometry import Region
from wsi2ihc.slide import open as open_module
from wsi2ihc.slide import open_slide

pytest.importorskip("aiohttp")

WHOLE = Region(0, 0, 700, 600)


class Handler(BaseHTTPRequestHandler):
    """Serves one file, by ranges."""

    protocol_version = "HTTP/1.1"
    content = b""
    bytes_per_s = 0

    def do_HEAD(self) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(len(self.content)))
        self.send_header("Accept-Ranges", "bytes")
        self.end_headers()

    def do_GET(self) -> None:
        match = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
        start, stop = (int(match[1]), int(match[2]) + 1) if match else (0, len(self.content))
        body = self.content[start:stop]
        self.send_response(206 if match else 200)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Content-Range", f"bytes {start}-{start + len(body) - 1}/{len(self.content)}")
        self.end_headers()
        self.send_body(body)

    def send_body(self, body: bytes) -> None:
        self.wfile.write(body)

    def log_message(self, *args: object) -> None:
        """Say nothing."""


class NoRanges(Handler):
    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(len(self.content)))
        self.end_headers()
        self.wfile.write(self.content)


class Stalling(Handler):
    """Answers, and sends the first half of what it promised."""

    def send_body(self, body: bytes) -> None:
        self.wfile.write(body[: len(body) // 2])
        self.wfile.flush()
        time.sleep(3)


class Slow(Handler):
    """Pauses often, but never for long."""

    def send_body(self, body: bytes) -> None:
        for start in range(0, len(body), 1 + len(body) // 5):
            self.wfile.write(body[start : start + 1 + len(body) // 5])
            self.wfile.flush()
            time.sleep(0.2)


class Cutting(Handler):
    """Ends the connection in the middle."""

    def send_body(self, body: bytes) -> None:
        self.wfile.write(body[: len(body) // 2])
        self.close_connection = True


class Redirecting(Handler):
    target = ""

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        self.send_response(302)
        self.send_header("Location", self.target)
        self.send_header("Content-Length", "0")
        self.end_headers()


class Missing(Handler):
    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        self.send_response(404)
        self.send_header("Content-Length", "0")
        self.end_headers()


Serve = Callable[[type[Handler]], str]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return write_slide(tmp_path / "a.tif", halves(texture(700, 600), 2), tile=128)


@pytest.fixture
def serve(path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Serve]:
    """Start a server of a kind; gives the slide's address."""
    monkeypatch.setattr(open_module, "_SILENCE_S", 0.6)
    servers: list[ThreadingHTTPServer] = []

    def start(kind: type[Handler]) -> str:
        handler = type("Chosen", (kind,), {"content": path.read_bytes()})
        server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        server.daemon_threads = True
        servers.append(server)
        threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        return f"http://127.0.0.1:{server.server_port}/folder/a.tif"

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def refusal(address: str) -> str:
    started = time.monotonic()
    with pytest.raises(UnreadableSlideError) as caught, open_slide(address) as slide:
        slide.read_level(0, WHOLE)
    text = str(caught.value)
    assert time.monotonic() - started < 15
    assert text.startswith("a.tif: ")
    assert "\n" not in text
    return text


@pytest.mark.parametrize("kind", [Handler, Slow])
def test_a_server_that_sends_something_is_waited_for(path: Path, serve: Serve, kind: type[Handler]) -> None:
    with open_slide(serve(kind)) as slide, open_slide(path) as local:
        np.testing.assert_array_equal(slide.read_level(0, WHOLE), local.read_level(0, WHOLE))


def test_a_server_that_never_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(open_module, "_SILENCE_S", 0.6)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        assert "has sent nothing" in refusal(f"http://127.0.0.1:{silent.getsockname()[1]}/a.tif")


def test_a_server_that_stops_in_the_middle(serve: Serve) -> None:
    assert "has sent nothing" in refusal(serve(Stalling))


@pytest.mark.parametrize("kind", [Cutting, NoRanges])
def test_a_server_that_does_not_send_what_it_was_asked_for(serve: Serve, path: Path, kind: type[Handler]) -> None:
    with path.open("r+b") as file:  # larger than what is read ahead
        file.seek(12_000_000)
        file.write(b"end")
    refusal(serve(kind))


@pytest.mark.parametrize("scheme", ["file", "ftp"])
def test_redirects_lead_to_servers_only(serve: Serve, path: Path, scheme: str) -> None:
    kind = type("Kind", (Redirecting,), {"target": f"{scheme}://{path}"})
    with pytest.raises((UnreadableSlideError, SlideNotFoundError), match=r"^a\.tif: "):
        open_slide(serve(kind))


def test_nothing_there(serve: Serve) -> None:
    with pytest.raises(SlideNotFoundError, match="no slide under this address"):
        open_slide(serve(Missing))
    with pytest.raises(UnreadableSlideError, match=r"^a\.tif: the server cannot be reached"):
        open_slide("http://127.0.0.1:9/a.tif")
