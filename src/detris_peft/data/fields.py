"""What people write into a row (sentences, masks in many forms, ids), read into the columns `FEATURES`."""

import hashlib
import io
import json
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from PIL import ExifTags, Image

from .errors import BadRowError, MissingImageError
from .masks import encode_mask, mask_area, outside_frame

_QUARTER_TURNS = (5, 6, 7, 8)
_NUMBER = (int, float)
# An id times 1000 must fit into int64: see `sentence_ids`.
_MAX_ID = 10**15
# A box may lie outside the image by as much as rounding makes it.
_BOX_TOLERANCE = 2


def open_header(image: Mapping[str, Any], where: str) -> Image.Image:
    """A image file of which no pixel has been read yet.

    Args:
        image: `{"path", "bytes"}`, as `datasets` stores a image.
        where: begins the error message.

    Raises:
        MissingImageError: no such file.
        BadRowError: it is no image.
    """
    data, path = image.get("bytes"), image.get("path")
    try:
        return Image.open(io.BytesIO(data) if data else path or io.BytesIO())
    except FileNotFoundError:
        raise MissingImageError(f"{where}: {path} is missing: put the image there") from None
    except Exception as error:  # on damaged files Pillow raises OSError, SyntaxError, struct.error, ...
        name = path or f"a image of {len(data or b'')} bytes"
        problem = str(error).split(" <_io")[0]
        raise BadRowError(f"{where}: {name} is no image ({problem}): fetch it again", "image_damaged") from None


def upright_size(image: Mapping[str, Any], where: str) -> tuple[int, int]:
    """Height and width in pixels as the image stands upright (EXIF), from the file's header alone.

    Raises:
        MissingImageError, BadRowError: see `open_header`.
    """
    with open_header(image, where) as header:
        # Where the header of a PNG has no EXIF block, Pillow would read all pixels to look for one behind them.
        tagged = header.format != "PNG" or "exif" in header.info or "Raw profile type exif" in header.info
        turned = tagged and header.getexif().get(ExifTags.Base.Orientation) in _QUARTER_TURNS
        return (header.width, header.height) if turned else (header.height, header.width)


def read_sentences(value: Any, where: str) -> list[str]:
    """One sentence, a list of them, or a list of `{"sent": ...}` or `{"raw": ...}`.

    Raises:
        BadRowError: there is none, or one is blank or no text.
    """
    items = [value] if isinstance(value, (str, Mapping)) else value
    if not isinstance(items, Sequence) or isinstance(items, bytes) or not items:
        raise BadRowError(f"{where} is {_short(value)}: it must be a sentence or a list of sentences")
    sentences = [item.get("sent", item.get("raw")) if isinstance(item, Mapping) else item for item in items]
    for sentence in sentences:
        if not isinstance(sentence, str) or not sentence.strip():
            raise BadRowError(f"{where} holds {_short(sentence)}: every sentence must be text and not blank")
    return sentences


def read_id(value: Any, default: int, where: str) -> int:
    """An id that is a number, digits, or any other text, which becomes a number that depends on the text alone.

    Raises:
        BadRowError: it is none of these.
    """
    if value is None:
        return default
    if isinstance(value, (int, str)) and not isinstance(value, bool) and value != "":
        whole = isinstance(value, int) or (value.isascii() and value.isdecimal())
        return int(value) if whole and abs(int(value)) < _MAX_ID else text_id(str(value))
    raise BadRowError(f"{where} is {_short(value)}: an id must be a whole number or text")


def text_id(text: str) -> int:
    """A number for a text: always the same, and practically never that of another one."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=6).digest(), "big")


def sentence_ids(ref_id: int, count: int) -> list[int]:
    """Ids for sentences that have none of their own."""
    return [1000 * ref_id + index for index in range(count)]


def read_mask(
    value: Any,
    height: int,
    width: int,
    where: str,
    *,
    find_file: Callable[[str], str] = os.path.abspath,
    fractions: bool = False,
) -> dict[str, Any]:
    """A mask in any of the usual forms, as compressed RLE.

    Args:
        value: a polygon `[x1, y1, x2, y2, ...]` or `[[x1, y1], [x2, y2], ...]`, a list of polygons (their union), an
            RLE `{"size", "counts"}`, either of these as JSON text; a image, a image file's name, or
            `{"path", "bytes"}` of one: what is not black is the target.
        height, width: of the image, upright.
        where: begins the error message.
        find_file: where a file of that name is.
        fractions: coordinates are shares of width and height rather than pixels.

    Raises:
        BadRowError: of kind mask_malformed, mask_empty or mask_out_of_frame.
    """
    if isinstance(value, str):
        value = _from_text(value, find_file, where)
    if isinstance(value, Image.Image):
        value = _foreground(value)
    elif isinstance(value, Mapping) and "counts" not in value and value.keys() & {"bytes", "path"}:
        value = _image_mask(value, height, width, where)
    elif isinstance(value, Sequence) and not isinstance(value, bytes):
        value = _polygons(value)
        if fractions:
            value = [_scaled(polygon, height, width) for polygon in value]
    try:
        mask = encode_mask(value, height, width)
    except BadRowError as error:
        hint = ""
        if isinstance(value, (np.ndarray, Mapping)) and _is_turned(value, height, width):
            hint = " (the photograph carries an EXIF turn: masks are of the image as it stands upright)"
        raise BadRowError(f"{where}: {error}{hint}", error.kind) from None
    if not mask_area(mask):
        raise _empty(value, height, width, where)
    return mask


def read_box(
    value: Any, height: int, width: int, where: str, *, corners: bool = False, fractions: bool = False
) -> dict[str, Any]:
    """A box as the mask of its rectangle.

    Args:
        value: `[x, y, width, height]`, or as JSON text.
        corners: it is `[x1, y1, x2, y2]` instead.

    Raises:
        BadRowError: of kind mask_malformed, mask_empty or mask_out_of_frame.
    """
    box = _from_text(value, str, where) if isinstance(value, str) else value
    if not isinstance(box, Sequence) or len(box) != 4 or not all(isinstance(number, _NUMBER) for number in box):
        raise BadRowError(f"{where} is {_short(value)}: a box must be four numbers", "mask_malformed")
    x1, y1, x2, y2 = _scaled(box, height, width) if fractions else box
    if not corners:
        x2, y2 = x1 + x2, y1 + y2
    if x2 <= x1 or y2 <= y1:
        raise BadRowError(
            f"{where} is {_short(value)}: the box is empty, or its format is not {_format(corners)}", "mask_empty"
        )
    if x1 < width and y1 < height and (x2 > width + _BOX_TOLERANCE or y2 > height + _BOX_TOLERANCE):
        raise BadRowError(
            f"{where} is {_short(value)}: the box reaches beyond the image of {width}x{height} pixels: mend it, or "
            f"its format is not {_format(corners)}",
            "mask_malformed",
        )
    return read_mask([x1, y1, x2, y1, x2, y2, x1, y2], height, width, where)


def _format(corners: bool) -> str:
    return "xyxy" if corners else "xywh"


def _from_text(text: str, find_file: Callable[[str], str], where: str) -> Any:
    if text.lstrip()[:1] not in ("[", "{"):
        return {"path": find_file(text), "bytes": None}
    try:
        return json.loads(text)
    except ValueError as error:
        raise BadRowError(f"{where} is not readable as JSON ({error}): {_short(text)}", "mask_malformed") from None


def _image_mask(value: Mapping[str, Any], height: int, width: int, where: str) -> np.ndarray:
    try:
        with open_header(value, where) as header:
            if header.format == "JPEG":
                raise BadRowError(f"{where}: a JPEG smears a mask's edges: save it as PNG", "mask_malformed")
            return _foreground(header)
    except MissingImageError as error:
        raise BadRowError(str(error).replace("the image", "the mask"), "mask_malformed") from None
    except BadRowError as error:
        raise BadRowError(str(error), "mask_malformed") from None
    except Exception as error:  # Pillow's many ways to say that a file is damaged
        name = value.get("path") or "the mask's image"
        raise BadRowError(f"{where}: {name} cannot be decoded ({error}): save it again", "mask_malformed") from None


def _foreground(image: Image.Image) -> np.ndarray:
    """What is not black; of a palette, whose colors mean nothing, what is not index 0; (H, W) of bool."""
    single = image.mode in ("P", "1", "L", "I", "I;16", "F")
    pixels = np.asarray(image if single else image.convert("RGB"))
    return np.asarray(pixels != 0 if single else pixels.any(axis=-1))


def _polygons(value: Sequence[Any]) -> list[Any]:
    """A flat polygon, or one as a list of points, becomes a list of polygons; anything else stays."""
    if value and all(isinstance(number, _NUMBER) for number in value):
        return [list(value)]
    polygons = [_flat(polygon) for polygon in value]
    if len(polygons) >= 3 and all(isinstance(point, Sequence) and len(point) == 2 for point in polygons):
        return [[number for point in polygons for number in point]]
    return polygons


def _flat(polygon: Any) -> Any:
    """`[[x1, y1], [x2, y2], ...]` as `[x1, y1, x2, y2, ...]`."""
    if isinstance(polygon, Sequence) and polygon and all(isinstance(p, Sequence) and len(p) == 2 for p in polygon):
        return [number for point in polygon for number in point]
    return polygon


def _scaled(numbers: Any, height: int, width: int) -> Any:
    if not isinstance(numbers, Sequence) or not all(isinstance(number, _NUMBER) for number in numbers):
        return numbers
    return [number * (height if index % 2 else width) for index, number in enumerate(numbers)]


def _is_turned(value: np.ndarray | Mapping[str, Any], height: int, width: int) -> bool:
    size = value.shape if isinstance(value, np.ndarray) else value.get("size")
    return height != width and isinstance(size, Sequence) and list(size) == [width, height]


def _empty(value: Any, height: int, width: int, where: str) -> BadRowError:
    if outside_frame(value, height, width):
        return BadRowError(
            f"{where}: the mask lies wholly beside the image of {width}x{height} pixels: mend its coordinates",
            "mask_out_of_frame",
        )
    if isinstance(value, list) and max(max(polygon, default=0) for polygon in value if polygon) <= 1:
        return BadRowError(
            f"{where}: the mask is empty, its coordinates are all at most 1: give them in pixels, or say that they "
            "are fractions",
            "mask_empty",
        )
    return BadRowError(f"{where}: the mask is empty: draw it, or mark the row with no_target", "mask_empty")


def _short(value: Any) -> str:
    if value is None:
        return "missing"
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
