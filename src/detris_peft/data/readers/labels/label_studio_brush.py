"""Masks that are painted in Label Studio: the run lengths of its brush, and the PNG of its bitmask.

The run lengths are a bit stream, most significant bit first, in the layout of @thi.ng/rle-pack:

    32 bits    number of values
    5 bits     bits per value, minus 1
    4 x 4 bits bits of a length in each of four classes, minus 1
    runs       1 bit: 1 for a repeated value, 0 for different values; 2 bits: class of the length; the length minus 1;
               the value, or as many values as the length says

The values are the bytes of an RGBA image, row by row; the mask is where it is not transparent, as in
`label_studio_sdk.converter.brush` (https://github.com/HumanSignal/label-studio-sdk).
"""

from __future__ import annotations

import base64
import binascii
from typing import Any

import numpy as np

from .... import images
from ...errors import BadRowError, short

_CHANNELS, _ALPHA = 4, 3
_PREFIX = "data:image/png;base64,"


def decode_brush(rle: Any, height: int, width: int, where: str) -> np.ndarray:
    """Return the mask of a brush, a bool array (H, W).

    Args:
        rle: the run lengths, as a list of bytes.
        height, width: size of the image in pixels.
        where: prefix of error messages.

    Raises:
        BadRowError: the run lengths are damaged, or belong to an image of another size.
    """
    try:
        stream = _BitStream(bytes(rle if isinstance(rle, list) else [rle]))
        count = stream.read(32)
        bits = stream.read(5) + 1
        sizes = [stream.read(4) + 1 for _ in range(4)]
        if count != height * width * _CHANNELS:
            raise _error(f"run lengths for an image of {width}x{height} pixels", f"{count:,} values", where)
        ends, visible = _runs(stream, count, bits, sizes)
    except (TypeError, ValueError, EOFError) as error:
        if isinstance(error, BadRowError):
            raise
        got = "ones that end too early" if isinstance(error, EOFError) else short(rle)
        raise _error("run lengths as a list of bytes", got, where) from None
    # Only the runs' shares of the alpha channel: value i is in channel i % 4.
    alpha = np.diff(np.array([0, *ends], dtype=np.int64) // _CHANNELS)
    return np.repeat(np.array(visible, dtype=bool), alpha).reshape(height, width)


def decode_bitmask(url: Any, where: str) -> np.ndarray:
    """Return the opaque pixels of a PNG in a data URL, a bool array (H, W).

    Raises:
        BadRowError: the value is not a PNG in a data URL.
    """
    if not isinstance(url, str) or not url.startswith(_PREFIX):
        raise _error(f"text that starts with {_PREFIX!r}", short(url), where)
    try:
        image = images.open_image(base64.b64decode(url[len(_PREFIX) :], validate=True), where)
    except binascii.Error:
        raise _error("a PNG in base64", "other text", where) from None
    except ValueError as error:
        raise BadRowError(str(error).removesuffix("."), "mask_malformed") from None
    return np.asarray(image.convert("RGBA"))[..., _ALPHA] > 0


def _runs(stream: _BitStream, count: int, bits: int, sizes: list[int]) -> tuple[list[int], list[bool]]:
    """Return where each run ends, and whether its values are not zero; arguments as in the header of the stream."""
    ends: list[int] = []
    visible: list[bool] = []
    position = 0
    while position < count:
        repeated = stream.read(1)
        length = stream.read(sizes[stream.read(2)]) + 1
        for _ in range(1 if repeated else length):
            position += length if repeated else 1
            ends.append(min(position, count))
            visible.append(stream.read(bits) > 0)
    return ends, visible


class _BitStream:
    """Reads numbers of any number of bits from bytes."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._position = 0  # in bits

    def read(self, bits: int) -> int:
        """Return the next bits as a number; raise an EOFError after the end."""
        start, self._position = self._position, self._position + bits
        last = (self._position + 7) // 8
        if last > len(self._data):
            raise EOFError
        number = int.from_bytes(self._data[start // 8 : last], "big")
        return number >> (8 * last - self._position) & (1 << bits) - 1


def _error(expected: str, got: str, where: str) -> BadRowError:
    return BadRowError(f"{where}: expected {expected}, got {got}; export the annotations again", "mask_malformed")
