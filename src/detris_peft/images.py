"""Opening image files: known formats only, EXIF orientation applied, one-line errors."""

from __future__ import annotations

import os
import re
import stat
import sys
from functools import cache
from io import BytesIO
from typing import IO

from PIL import ExifTags, Image, UnidentifiedImageError

from .errors import one_line

# Only formats whose decoders run inside Pillow: for EPS and others Pillow starts an external program.
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "PPM", "TIFF", "JPEG2000", "AVIF")
# EXIF orientations that swap width and height.
QUARTER_TURNS = (5, 6, 7, 8)

_TRANSPOSITIONS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_EXIF_KEYS = ("exif", "Raw profile type exif", "XML:com.adobe.xmp", "xmp")

Source = str | os.PathLike[str] | bytes | IO[bytes]


def open_image(source: Source, name: str | None = None) -> Image.Image:
    """Open and decode an image, and apply its EXIF orientation; the first frame of an animation.

    Args:
        source: path, bytes, or file opened in binary mode.
        name: name of the image in error messages; by default its path.

    Returns:
        The decoded image in the color mode of the file. Damaged EXIF data are ignored.

    Raises:
        FileNotFoundError: the file does not exist.
        ValueError: the file is not an image of one of the `FORMATS`, is damaged, has more pixels than Pillow's limit
            (see `max_pixels`), or has floating-point or 32-bit values.
    """
    name = name or default_name(source)
    with open_header(source, name) as image:
        return decode(image, name)


def open_header(source: Source, name: str | None = None, any_depth: bool = False) -> Image.Image:
    """Open an image without decoding its pixels; arguments and errors as for `open_image`.

    With `any_depth`, an image of floating-point or 32-bit values is accepted.
    """
    name = name or default_name(source)
    if isinstance(source, (str, os.PathLike)):
        _check_path(os.fspath(source), name)
    try:
        image = Image.open(BytesIO(source) if isinstance(source, bytes) else source, formats=_formats())
    except MemoryError:
        raise
    except Exception as error:  # for damaged files Pillow raises OSError, SyntaxError, struct.error, ...
        raise _undecodable(error, name) from None
    if not any_depth and (problem := unknown_range(image)):
        image.close()
        raise ValueError(f"{name}: {problem}")
    return image


def decode(image: Image.Image, name: str) -> Image.Image:
    """Decode an image from `open_header`, and apply its EXIF orientation.

    Raises:
        ValueError: the image is damaged.
    """
    try:
        # Read first: decoding a PNG would add EXIF data from the end of the file, which `upright_size` does not read.
        method = _TRANSPOSITIONS.get(orientation(image))
        image.load()
        return image if method is None else _transposed(image, method)
    except MemoryError:
        raise
    except Exception as error:  # for damaged files Pillow raises OSError, SyntaxError, struct.error, ...
        raise _undecodable(error, name) from None


def upright_size(image: Image.Image) -> tuple[int, int]:
    """Return (height, width) in pixels after applying the EXIF orientation, without decoding the image."""
    turned = orientation(image) in QUARTER_TURNS
    return (image.width, image.height) if turned else (image.height, image.width)


def orientation(image: Image.Image) -> int:
    """Return the EXIF orientation of an image, 1 to 8; 1 also for images without EXIF data or with damaged ones."""
    if image.format == "TIFF":  # Pillow applies the orientation when it decodes a TIFF
        return 1
    # If a PNG has no EXIF block in its header, Pillow would decode all pixels to look for one after them.
    if image.format == "PNG" and not any(key in image.info for key in _EXIF_KEYS):
        return 1
    try:
        value = image.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception:  # damaged EXIF data: Pillow raises SyntaxError, struct.error, ValueError, KeyError, ...
        return 1
    return value if isinstance(value, int) and value in _TRANSPOSITIONS else 1


def unknown_range(image: Image.Image) -> str | None:
    """Return an error message if an image has values whose range is unknown, else None."""
    # Pillow opens 16-bit PNG and PPM in mode "I" as well, depending on its version.
    if image.mode == "F" or (image.mode.startswith("I") and "16" not in image.mode and image.format == "TIFF"):
        kind = "floating-point" if image.mode == "F" else "32-bit or signed"
        return (
            f"expected an image of 8 or 16 bits per channel, got {kind} values, whose range is unknown; convert it to "
            "8 bits."
        )
    return None


def max_pixels() -> int:
    """Return the number of pixels above which Pillow refuses an image: 178,956,970 unless the caller changed it."""
    return sys.maxsize if Image.MAX_IMAGE_PIXELS is None else 2 * Image.MAX_IMAGE_PIXELS


def default_name(source: Source) -> str:
    """Return the path of an image, or a description of an image without one."""
    if isinstance(source, bytes):
        return f"an image of {len(source)} bytes"
    return str(source if isinstance(source, (str, os.PathLike)) else getattr(source, "name", "an image file"))


def is_url(path: str) -> bool:
    """Return whether a path is a URL, which is never fetched."""
    return "://" in path and re.match(r"[\w+.-]+://", path) is not None


def _check_path(path: str, name: str) -> None:
    if is_url(path):
        raise ValueError(f"{name}: expected a local image file, got a URL; download the image and pass the file.")
    try:
        mode = os.stat(path).st_mode
    except FileNotFoundError:
        raise FileNotFoundError(f"{name}: expected an image, found no such file; check the path.") from None
    except (OSError, ValueError) as error:  # ValueError: a null byte, or half a surrogate pair
        raise _unreadable(error, name) from None
    if stat.S_ISDIR(mode):
        raise ValueError(f"{name}: expected an image, got a folder; pass an image file.")
    if not stat.S_ISREG(mode):  # opening a named pipe would wait for its writer
        raise ValueError(f"{name}: expected an image, got a device or a pipe; pass an image file.")


def _undecodable(error: BaseException, name: str) -> ValueError:
    if isinstance(error, (Image.DecompressionBombError, Image.DecompressionBombWarning)):
        size = re.search(r"\((\d+) pixels\)", str(error))
        got = f"{int(size[1]):,}" if size else "more"
        limit = max_pixels() // (1 if isinstance(error, Image.DecompressionBombError) else 2)
        return ValueError(f"{name}: expected an image of at most {limit:,} pixels, got {got}; scale it down.")
    if isinstance(error, OSError) and error.strerror:
        return _unreadable(error, name)
    reason = one_line(error)
    if isinstance(error, UnidentifiedImageError):
        reason = f"not one of the formats {', '.join(_formats())}, or damaged"
    return ValueError(
        f"{name}: expected an image, got a file that cannot be decoded ({reason}); download it again or pass another "
        "file."
    )


def _unreadable(error: OSError | ValueError, name: str) -> ValueError:
    reason = (error.strerror if isinstance(error, OSError) else None) or one_line(error)
    return ValueError(
        f"{name}: expected an image, got a file that cannot be read ({reason}); check it, or pass another file."
    )


def _transposed(image: Image.Image, method: Image.Transpose) -> Image.Image:
    turned = image.transpose(method)
    for key in _EXIF_KEYS:  # otherwise the result would be rotated a second time
        turned.info.pop(key, None)
    return turned


@cache
def _formats() -> tuple[str, ...]:
    """Return those of the `FORMATS` that this build of Pillow can read."""
    Image.init()
    return tuple(name for name in FORMATS if name in Image.OPEN)
