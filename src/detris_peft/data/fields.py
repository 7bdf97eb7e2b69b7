"""Parse user-provided fields (expressions, masks, boxes, ids) into the columns of `FEATURES`."""

import hashlib
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image

from .. import images
from ..mask_images import is_lossy_webp, read_foreground
from ..safe_loading import parse_json
from ..text_cleaning import clean_text, has_surrogate
from .errors import BadRowError, MissingImageError, notice, short
from .masks import all_finite, as_integer, encode_mask, mask_area, outside_frame

_NUMBER = (int, float)
# An id times 1000 must fit into int64: see `sentence_ids`.
_MAX_ID = 10**15
# Pixels by which a box may exceed the image, because its coordinates were rounded.
_BOX_TOLERANCE = 2
FOREGROUND_WITHOUT_TARGET = "expected a mask without foreground, as 'no_target' is true, got some; fix one of the two"


def open_header(image: Mapping[str, Any], where: str, any_depth: bool = False) -> Image.Image:
    """Open an image without decoding its pixels.

    Args:
        image: `{"path", "bytes"}`, as stored by `datasets`.
        where: prefix of the error message.
        any_depth: accept floating-point and 32-bit values.

    Raises:
        MissingImageError: the file does not exist.
        BadRowError: the file is not an image that can be used.
    """
    data, path = image.get("bytes"), image.get("path")
    if data and not isinstance(data, bytes):
        raise BadRowError(
            f"{where}: expected an image as bytes, got {short(data)}; pass its file name", "image_damaged"
        )
    source = data or path or b""
    try:
        return images.open_header(source, f"{where}: {path or images.default_name(source)}", any_depth)
    except FileNotFoundError:
        raise MissingImageError(f"{where}: {path} is missing; add the image") from None
    except ValueError as error:
        raise BadRowError(str(error).removesuffix("."), "image_damaged") from None


def upright_size(image: Mapping[str, Any], where: str) -> tuple[int, int]:
    """Return (height, width) in pixels after applying the EXIF orientation, from the file's header alone.

    Raises:
        MissingImageError, BadRowError: see `open_header`.
    """
    with open_header(image, where) as header:
        return images.upright_size(header)


def read_sentences(value: Any, where: str) -> list[str]:
    """Return a list of sentences from one sentence, a list of them, or a list of `{"sent": ...}` or `{"raw": ...}`.

    Raises:
        BadRowError: no sentence is given, or one of them is not text, or blank once it is cleaned for the tokenizer.
    """
    items = [value] if isinstance(value, (str, Mapping)) else value
    if not isinstance(items, Sequence) or isinstance(items, bytes) or not items:
        raise BadRowError(f"{where}: expected a sentence or a list of sentences, got {short(value)}; add a sentence")
    sentences = [item.get("sent", item.get("raw")) if isinstance(item, Mapping) else item for item in items]
    for sentence in sentences:
        check_sentence(sentence, where)
    return sentences


def check_sentence(sentence: Any, where: str) -> None:
    """Check that a sentence is text of which something remains once it is cleaned for the tokenizer.

    Raises:
        BadRowError: it is not.
    """
    if not isinstance(sentence, str):
        raise BadRowError(f"{where}: expected sentences of text, got {short(sentence)}; write or remove it")
    check_text(sentence, where)
    if not clean_text(sentence):
        raise BadRowError(f"{where}: expected sentences of non-blank text, got {sentence!a:.60}; write or remove it")


def check_text(text: str, where: str) -> None:
    """Check that a text can be stored as UTF-8.

    Raises:
        BadRowError: it holds half of a surrogate pair.
    """
    if has_surrogate(text):
        raise BadRowError(f"{where}: expected text, got half of a surrogate pair in {short(text)}; fix the text")


def class_name(name: str) -> str:
    """Return a class name as words: "traffic_light" becomes "traffic light"; empty if it has no letter or digit."""
    text = " ".join(clean_text(name).replace("_", " ").split())
    return text if any(map(str.isalnum, text)) else ""


def read_id(value: Any, default: int, where: str) -> int:
    """Return an id as an integer: 7, 7.0 and "7" are 7, other text is hashed, None gives the default.

    Raises:
        BadRowError: the value is neither an integer nor text.
    """
    if value is None:
        return default
    value = as_integer(value)
    if isinstance(value, int) and not isinstance(value, bool) and value.bit_length() <= 1024:
        return value if abs(value) < _MAX_ID else text_id(str(value))
    if isinstance(value, str) and value != "":
        check_text(value, where)
        return text_id(value)
    raise BadRowError(f"{where}: expected an integer or text as the id, got {short(value)}; fix the id")


def read_flag(value: Any, where: str) -> bool:
    """Return a JSON boolean; a missing or empty value is False.

    Raises:
        BadRowError: the value is neither true nor false.
    """
    flag = value or False
    if flag is not True and flag is not False:
        raise BadRowError(f"{where}: expected true or false, got {short(value)}; fix the value")
    return flag


def text_id(text: str) -> int:
    """Return a 48-bit hash of a text as its id; it depends on the text alone."""
    # File names may hold bytes that are not UTF-8, as surrogates.
    return int.from_bytes(hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=6).digest(), "big")


def sentence_ids(ref_id: int, count: int) -> list[int]:
    """Return ids for sentences that have no ids in the source."""
    return [1000 * ref_id + index for index in range(count)]


def read_mask(
    value: Any,
    height: int,
    width: int,
    where: str,
    *,
    find_file: Callable[[str], str] = os.path.abspath,
    fractions: bool = False,
    no_target: bool = False,
) -> dict[str, Any]:
    """Convert a mask in any of the usual forms into compressed RLE.

    Args:
        value: a polygon `[x1, y1, x2, y2, ...]` or `[[x1, y1], [x2, y2], ...]`, a list of polygons (their union), or
            an RLE `{"size", "counts"}`; each of these may also be JSON text. Also a mask image, its file name, or its
            `{"path", "bytes"}`; see `read_foreground`.
        height, width: size of the upright image in pixels.
        where: prefix of the error message.
        find_file: returns the path of a mask file, given its name.
        fractions: coordinates are fractions of width and height instead of pixels.
        no_target: the mask must have no foreground, instead of some.

    Raises:
        BadRowError: of kind mask_malformed, mask_empty or mask_out_of_frame.
    """
    if isinstance(value, str):
        value = _from_text(value, where)
    if isinstance(value, Image.Image):
        value = _foreground(value, where)
    elif isinstance(value, Mapping) and "counts" not in value and value.keys() & {"bytes", "path"}:
        value = _decode_mask_image(value, find_file, where)
    elif isinstance(value, Sequence) and not isinstance(value, bytes):
        value = _polygons(value)
        if fractions:
            value = [_scaled(polygon, height, width) for polygon in value]
    try:
        mask = encode_mask(value, height, width)
    except BadRowError as error:
        hint = ""
        if isinstance(value, (np.ndarray, Mapping)) and _is_turned(value, height, width):
            hint = " (if the image has an EXIF orientation, draw the mask on the upright image)"
        raise BadRowError(f"{where}: {error}{hint}", error.kind) from None
    if no_target:
        if mask_area(mask):
            raise BadRowError(f"{where}: {FOREGROUND_WITHOUT_TARGET}", "mask_malformed")
    elif not mask_area(mask):
        raise _empty(value, height, width, where)
    return mask


def read_box(
    value: Any, height: int, width: int, where: str, *, corners: bool = False, fractions: bool = False
) -> dict[str, Any]:
    """Convert a box into the mask of its rectangle.

    Args:
        value: `[x, y, width, height]`, or the same as JSON text.
        corners: the value is `[x1, y1, x2, y2]` instead.
        height, width, where, fractions: see `read_mask`.

    Raises:
        BadRowError: of kind mask_malformed, mask_empty or mask_out_of_frame.
    """
    box = _from_text(value, where) if isinstance(value, str) else value
    if not isinstance(box, Sequence) or len(box) != 4 or not all_finite(box):
        raise BadRowError(f"{where}: expected a box of four numbers, got {short(value)}; fix it", "mask_malformed")
    x1, y1, x2, y2 = _scaled(box, height, width) if fractions else box
    if not corners:
        x2, y2 = x1 + x2, y1 + y2
    box_format = "xyxy" if corners else "xywh"
    if x2 <= x1 or y2 <= y1:
        raise BadRowError(
            f"{where}: expected a non-empty box, got {short(value)}; fix it, or its format is not {box_format}",
            "mask_empty",
        )
    if x1 < width and y1 < height and (x2 > width + _BOX_TOLERANCE or y2 > height + _BOX_TOLERANCE):
        raise BadRowError(
            f"{where}: expected a box within the image of {width}x{height} pixels, got {short(value)}; fix it, or "
            f"its format is not {box_format}",
            "mask_malformed",
        )
    return read_mask([x1, y1, x2, y1, x2, y2, x1, y2], height, width, where)


def _from_text(text: str, where: str) -> Any:
    """Parse JSON text; any other text is a file name."""
    if text.lstrip()[:1] not in ("[", "{"):
        return {"path": text}
    try:
        return parse_json(text, f"{where}: {short(text)}")
    except ValueError as error:
        raise BadRowError(str(error).removesuffix("."), "mask_malformed") from None


def _decode_mask_image(value: Mapping[str, Any], find_file: Callable[[str], str], where: str) -> np.ndarray:
    path = str(value.get("path") or "")
    if path and not value.get("bytes") and not images.is_url(path):
        value = {"path": find_file(path)}
    name = f"{where}: {value['path']}" if value.get("path") else where
    try:
        with open_header(value, where, any_depth=True) as header:
            if header.format == "WEBP" and is_lossy_webp(_content(value)):
                raise BadRowError(f"{name}: expected a lossless mask, got a lossy WebP; save it as PNG")
            image = images.decode(header, name)
    except MissingImageError:
        raise BadRowError(f"{name}: the mask is missing; add the file", "mask_malformed") from None
    except ValueError as error:
        raise BadRowError(str(error).removesuffix("."), "mask_malformed") from None
    return _foreground(image, name)


def _content(value: Mapping[str, Any]) -> bytes:
    if value.get("bytes"):
        return value["bytes"]
    with open(value["path"], "rb") as file:
        return file.read()


def _foreground(image: Image.Image, where: str) -> np.ndarray:
    """Return the foreground of a mask image as a bool array (H, W)."""
    try:
        foreground, values = read_foreground(image)
    except ValueError as error:
        raise BadRowError(f"{where}: {error}", "mask_malformed") from None
    if values > 1:
        notice(
            "mask_of_several",
            f"{where}: the mask has {values} different values, which are read as one target; if they are several "
            "objects, write a mask for each",
        )
    corners = foreground[[0, 0, -1, -1], [0, -1, 0, -1]]
    if corners.all() and 2 * np.count_nonzero(foreground) > foreground.size:
        notice(
            "mask_on_white",
            f"{where}: the mask covers the corners and {100 * foreground.mean():.0f}% of the image; if its background "
            "is white, invert it: black is background",
        )
    return foreground


def _polygons(value: Sequence[Any]) -> list[Any]:
    """Return a list of flat polygons from one polygon or several; anything else is returned unchanged."""
    if value and all(isinstance(number, _NUMBER) for number in value):
        return [list(value)]
    polygons = [_flat(polygon) for polygon in value]
    if len(polygons) >= 3 and all(isinstance(point, Sequence) and len(point) == 2 for point in polygons):
        return [[number for point in polygons for number in point]]
    return polygons


def _flat(polygon: Any) -> Any:
    """Flatten `[[x1, y1], [x2, y2], ...]` into `[x1, y1, x2, y2, ...]`."""
    if isinstance(polygon, Sequence) and polygon and all(isinstance(p, Sequence) and len(p) == 2 for p in polygon):
        return [number for point in polygon for number in point]
    return polygon


def _scaled(numbers: Any, height: int, width: int) -> Any:
    if not isinstance(numbers, Sequence) or not all(isinstance(number, _NUMBER) for number in numbers):
        return numbers
    return [number * (height if index % 2 else width) for index, number in enumerate(numbers)]


def _is_turned(value: np.ndarray | Mapping[str, Any], height: int, width: int) -> bool:
    size = value.shape if isinstance(value, np.ndarray) else value.get("size")
    return height != width and isinstance(size, Sequence) and [as_integer(side) for side in size] == [width, height]


def _empty(value: Any, height: int, width: int, where: str) -> BadRowError:
    if outside_frame(value, height, width):
        return BadRowError(
            f"{where}: the mask is entirely outside the image of {width}x{height} pixels; fix its coordinates",
            "mask_out_of_frame",
        )
    polygons = value if isinstance(value, list) and all(isinstance(part, list) for part in value) else []
    if polygons and max((max(polygon) for polygon in polygons if polygon), default=0) <= 1:
        return BadRowError(
            f"{where}: the mask is empty, expected coordinates in pixels, got none above 1; convert them, or declare "
            "them as fractions",
            "mask_empty",
        )
    return BadRowError(f"{where}: the mask is empty; fix it, or mark the row as no_target", "mask_empty")
