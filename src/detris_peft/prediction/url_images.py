"""Images from URLs that a person passes: http(s) only, limited in size and time. Dataset files are never fetched."""

from __future__ import annotations

import re
import time

import requests
import urllib3
from PIL import Image

from ..errors import one_line
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
    """Return a URL for messages: without user name, password, query and line breaks."""
    return re.sub(r"//[^/@\s]*@", "//", " ".join(url.split("?")[0].split()))


def _download(url: str, name: str, max_bytes: int, timeout: float) -> bytes:
    if not re.match(r"https?://", url, re.IGNORECASE):
        raise ValueError(f"{name}: expected a URL that starts with http:// or https://, got another one; change it.")
    end = time.monotonic() + timeout
    try:
        with requests.Session() as session:
            session.max_redirects = _MAX_REDIRECTS
            # Uncompressed, so that a small download cannot become a large one.
            headers = {"Accept-Encoding": "identity", "User-Agent": "detris-peft"}
            with session.get(url, headers=headers, stream=True, timeout=timeout) as response:
                response.raise_for_status()
                content = bytearray()
                while chunk := response.raw.read1(_CHUNK):  # returns what has arrived, also from a slow server
                    content += chunk
                    if len(content) > max_bytes:
                        raise ValueError(
                            f"{name}: expected an image of at most {max_bytes / 1e6:g} MB, got a larger file; "
                            "download and shrink it."
                        )
                    if time.monotonic() > end:
                        raise requests.Timeout(f"no complete answer in {timeout:g} s")
                return bytes(content)
    except (requests.exceptions.InvalidURL, requests.exceptions.InvalidSchema, UnicodeError) as error:
        raise ValueError(f"{name}: expected a valid http(s) URL ({_reason(error)}); check it.") from None
    except requests.HTTPError as error:
        status = getattr(error.response, "status_code", "unknown")
        raise OSError(f"{name}: expected an image, got the HTTP status {status}; check the URL.") from None
    except (requests.Timeout, urllib3.exceptions.TimeoutError):
        raise OSError(
            f"{name}: expected an image within {timeout:g} s, got no complete answer; try again, or download it."
        ) from None
    except (requests.RequestException, urllib3.exceptions.HTTPError) as error:
        raise OSError(
            f"{name}: the image cannot be downloaded ({_reason(error)}); check the URL and the network."
        ) from None


def _reason(error: Exception) -> str:
    """Return the cause of an error in a few words, without memory addresses of the objects of requests."""
    if isinstance(error, urllib3.exceptions.ProtocolError):
        return "the connection was closed too early"
    if isinstance(error, requests.ConnectionError):
        match = re.search(
            r"(Name or service not known|[A-Z][\w ]+ refused|[\w ]+ unreachable|Max retries)", str(error)
        )
        return match[1].strip().lower() if match else "no connection"
    return one_line(error, first_line=True)[:100]
