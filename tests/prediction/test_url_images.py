"""Images from URLs: formats, limits and errors, against a server on loopback."""

from __future__ import annotations

import threading
import time
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
from PIL import Image

from detris_peft.prediction import load_image
from detris_peft.prediction.pairs import cross_pairs
from detris_peft.prediction.url_images import fetch_image, shown_url


@pytest.fixture(scope="module")
def server(photo):
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            path = self.path.split("?")[0]
            if path == "/loop":
                return self.answer(302, location="/loop")
            if path == "/moved":
                return self.answer(302, location="/photo.png")
            if path == "/local":
                return self.answer(302, location=f"file://{photo}")
            if path == "/missing":
                return self.answer(404)
            if path == "/text":
                return self.answer(200, b"<html>not an image</html>")
            if path == "/large":
                return self.answer(200, b"x" * 300_000)
            if path == "/slow":
                self.answer(200, b"", length=10**6)
                for _ in range(20):
                    time.sleep(0.1)
                    self.wfile.write(b"x")
                return None
            if path == "/headers":  # each packet is in time
                for _ in range(20):
                    time.sleep(0.1)
                    self.wfile.write(b"x")
                return None
            if path == "/redirects":
                time.sleep(0.2)
                return self.answer(302, location="/redirects")
            if path == "/large_redirect":
                return self.answer(302, b"x" * 10, location="/photo.png", length=10**12)
            if path == "/cut":
                return self.answer(200, photo.read_bytes()[:100], length=10**6)
            return self.answer(200, photo.read_bytes())

        def answer(self, status, content=b"", location=None, length=None):
            self.send_response(status)
            if location:
                self.send_header("Location", location)
            self.send_header("Content-Length", str(len(content) if length is None else length))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_):
            pass

        def handle(self):
            with suppress(OSError):  # the client has given up
                super().handle()

    httpd = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    httpd.daemon_threads = True
    threading.Thread(target=httpd.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{httpd.server_port}"
    httpd.shutdown()
    httpd.server_close()


def test_an_image_is_downloaded_also_after_a_redirect(server, photo, predictor):
    expected = np.asarray(Image.open(photo))
    for path in ("/photo.png", "/moved", "/large_redirect"):
        assert np.array_equal(np.asarray(load_image(server + path)), expected)
    assert np.array_equal(np.asarray(load_image(f"HTTP{server[4:]}/photo.png?size=1")), expected)
    assert predictor(f"{server}/photo.png", "red").score == predictor(photo, "red").score


@pytest.mark.parametrize(
    ("path", "error", "message"),
    [
        ("/missing", OSError, "expected an image, got the HTTP status 404"),
        ("/loop", OSError, "more than 5 redirects"),
        ("/local", ValueError, "expected a valid http.s. URL"),
        ("/text", ValueError, "cannot be decoded"),
        ("/cut", OSError, "closed too early"),
        ("/large", ValueError, "expected an image of at most 0.2 MB, got a larger file"),
        ("/slow", OSError, "expected an image within 0.6 s, got no complete answer"),
        ("/headers", OSError, "expected an image within 0.6 s, got no complete answer"),
        ("/redirects", OSError, "expected an image within 0.6 s, got no complete answer"),
    ],
)
def test_what_cannot_be_downloaded_is_one_line(server, path, error, message):
    with pytest.raises(error, match=message) as raised:
        fetch_image(server + path, max_bytes=200_000, timeout=0.6 if "0.6 s" in message else 10)
    assert str(raised.value).startswith(server + path)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("url", "error"),
    [
        ("ftp://host/a.png", ValueError),
        ("file:///etc/passwd", ValueError),
        ("http://", ValueError),
        ("http://127.0.0.1:1/a.png", OSError),
        ("http://no-such-host.invalid/a.png", OSError),
    ],
)
def test_other_urls_are_refused(url, error):
    with pytest.raises(error) as raised:
        load_image(url)
    assert str(raised.value).startswith(url.split("?")[0])
    assert "\n" not in str(raised.value)
    assert "0x" not in str(raised.value)


def test_the_cause_is_named():
    with pytest.raises(OSError, match=r"cannot be downloaded \(connection refused\)"):
        load_image("http://127.0.0.1:1/a.png")


def test_urls_are_read_only_where_they_are_allowed(server):
    with pytest.raises(ValueError, match="expected a local image file, got a URL"):
        load_image(f"{server}/photo.png", allow_urls=False)


@pytest.mark.parametrize(
    "url",
    [
        "http://me:secret@127.0.0.1:1/a.png?token=secret",
        "http://me:se@secret@127.0.0.1:1/a.png#secret",
        "http://me:secret@[/a.png",
        "http://me:secret@127.0.0.1:99999/a.png",
        "ftp://me:secret@host/a.png?secret",
    ],
)
def test_messages_hide_passwords(url):
    for allowed in (True, False):
        with pytest.raises((OSError, ValueError)) as raised:
            load_image(url, allow_urls=allowed)
        assert "secret" not in str(raised.value)
    (pair,) = cross_pairs([url], ["red"])
    assert "secret" not in (pair.error or "")
    assert shown_url("https://me:secret@host/a@b.png?token=1") == "https://host/a@b.png"
