"""Images from URLs that a person passes: http(s) only, limited in size and time. Dataset files are never fetched."""

from __future__ import annotations

import re
import time
from threading import Thread
from typing import Any
from urllib.parse import urljoin

import requests
import urllib3
from PIL import Image

from ..images import open_image

MAX_BYTES = 50_000_000
TIMEOUT = 20.0  # seconds for a complete download
_MAX_REDIRECTS = 5
_CHUNK = 1 << 16


def fetch_image(url: str, *, max_bytes: int = MAX_BYTES, timeout: float = TIMEOUT) -> Image.Image:
    """Download and decode an image; EXIF orientation is applied.

    Args:
        url: address that starts with http:// or https://.
        max_bytes: maximum size of the file.
        timeout: seconds after which the download is given up.

    Raises:
        OSError: the server cannot be reached, answers with an error, or is too slow.
        ValueError: the URL is invalid, or the file is too large or not an image.
    """
    name = shown_url(url)
    return open_image(_download(url, name, max_bytes, timeout), name)


def shown_url(url: str) -> str:
    """Return a URL for messages: without user name, password, query, fragment and line breaks."""
    address = re.sub(r"(?<=//)[^/]*@", "", re.split(r"[?#]", url)[0])
    return " ".join(address.split())


def _download(url: str, name: str, max_bytes: int, timeout: float) -> bytes:
    """Return what a server sends within the time: the timeout of requests is for each packet, and each redirect."""
    outcome: list[bytes | Exception] = []

    def run() -> None:
        try:
            outcome.append(_receive(url, name, max_bytes, timeout))
        except Exception as error:
            outcome.append(error)

    thread = Thread(target=run, name="download", daemon=True)
    thread.start()
    thread.join(timeout)
    result = outcome[0] if outcome else _too_slow(name, timeout)
    if isinstance(result, Exception):
        raise result
    return result


def _receive(url: str, name: str, max_bytes: int, timeout: float) -> bytes:
    if not re.match(r"https?://", url, re.IGNORECASE):
        raise ValueError(f"{name}: expected a URL that starts with http:// or https://, got another one; change it.")
    end = time.monotonic() + timeout
    # Uncompressed, so that a small download cannot become a large one.
    headers = {"Accept-Encoding": "identity", "User-Agent": "detris-peft"}
    options: dict[str, Any] = {"headers": headers, "stream": True, "timeout": timeout, "allow_redirects": False}
    try:
        with requests.Session() as session:
            # One by one: requests would read the complete content of a redirect, however large it is.
            for _ in range(_MAX_REDIRECTS + 1):
                with session.get(url, **options) as response:
                    response.raise_for_status()
                    target = session.get_redirect_target(response)
                    if target is None:
                        return _content(response, name, max_bytes, end)
                    url = urljoin(url, target)
            raise requests.TooManyRedirects
    except (requests.exceptions.InvalidURL, UnicodeError):
        raise ValueError(f"{name}: expected a valid http(s) URL, got one without a valid host; check it.") from None
    except requests.exceptions.InvalidSchema:
        raise ValueError(
            f"{name}: expected a valid http(s) URL, got one that leads to another kind of address; check it."
        ) from None
    except requests.HTTPError as error:
        status = getattr(error.response, "status_code", "unknown")
        raise OSError(f"{name}: expected an image, got the HTTP status {status}; check the URL.") from None
    except (requests.Timeout, urllib3.exceptions.TimeoutError):
        raise _too_slow(name, timeout) from None
    except (requests.RequestException, urllib3.exceptions.HTTPError, OSError) as error:
        raise OSError(
            f"{name}: the image cannot be downloaded ({_reason(error)}); check the URL and the network."
        ) from None


def _content(response: requests.Response, name: str, max_bytes: int, end: float) -> bytes:
    content = bytearray()
    while chunk := response.raw.read1(_CHUNK):  # returns what has arrived, also from a slow server
        content += chunk
        if len(content) > max_bytes:
            raise ValueError(
                f"{name}: expected an image of at most {max_bytes / 1e6:g} MB, got a larger file; download and shrink "
                "it."
            )
        if time.monotonic() > end:
            raise requests.Timeout
    return bytes(content)


def _too_slow(name: str, timeout: float) -> OSError:
    return OSError(
        f"{name}: expected an image within {timeout:g} s, got no complete answer; try again, or download it."
    )


def _reason(error: Exception) -> str:
    """Return the cause of an error in a few words, without the addresses and passwords in the messages of requests."""
    if isinstance(error, urllib3.exceptions.ProtocolError):
        return "the connection was closed too early"
    if isinstance(error, requests.TooManyRedirects):
        return f"more than {_MAX_REDIRECTS} redirects"
    reason = re.search(r"Name or service not known|Connection refused|[\w ]+ unreachable", str(error))
    return reason[0].strip().lower() if reason else "no connection"
