"""Reader for ReasonSeg (Lai et al., 2024, "LISA: Reasoning Segmentation via Large Language Model").

<folder>/train/0001.jpg       the images; the same for val/ and test/
<folder>/train/0001.json      {"text": ["the food with the most vitamin C"], "is_sentence": false,
                               "shapes": [{"label": "target", "points": [[10.5, 20.0], [40.0, 22.5], [30.0, 60.0]]},
                                          {"label": "ignore", "points": [...]}]}

All texts of an image refer to the same target. Masks are drawn as by the authors' `get_mask_from_json`
(https://github.com/dvlab-research/LISA/blob/main/utils/data_processing.py): in order of decreasing area, independent
of their labels, so that a small target inside an ignored region is kept. "flag" is not drawn.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from ....safe_loading import parse_json
from ...errors import BadRowError, short
from ...masks import encode_mask, mask_area
from ..registry import Source, dataset_folder, dataset_path
from .files import files_in, first_json_keys, image_with_stem, split_folders
from .objects import LabeledImage, LabeledObject, object_id
from .points import read_points
from .reader import LabelReader

# LabelMe also has "shapes", but not the other keys.
_KEYS = {"text", "is_sentence", "shapes"}
_IGNORED, _TARGET = 255, 1


class ReasonSegReader(LabelReader):
    """Reads folders with one JSON per image, or with one subfolder per split that contains them."""

    name = "reasonseg"
    title = "ReasonSeg"
    accepts = "a ReasonSeg folder, whose train/ has 0001.jpg and 0001.json"
    text_field = "'text' of the JSON files"

    def detect(self, source: Source) -> bool:
        path = dataset_path(source)
        if path is None or not path.is_dir():
            return False
        return any(keys >= _KEYS for folder in _folders(path).values() for _, keys in first_json_keys(folder))

    def splits(self, source: Source) -> Iterable[str]:
        return _folders(dataset_folder(source))

    def annotation_files(self, source: Source) -> Iterable[Path]:
        return [file for folder in _folders(dataset_folder(source)).values() for file in files_in(folder, ".json")]

    def images(self, source: Source, split: str) -> Iterator[LabeledImage | BadRowError]:
        folder = _folders(dataset_folder(source))[split]
        for file in files_in(folder, ".json"):
            try:
                content = _read(file)
            except (OSError, ValueError) as error:
                yield BadRowError(str(error).removesuffix("."))
                continue
            image = image_with_stem(file.with_suffix("")) or file.with_suffix(".jpg")
            target = LabeledObject(
                where=str(file),
                ann_id=object_id(image.stem, 0),
                mask=partial(_draw, content.get("shapes"), f"{file}: 'shapes'"),
                sentences=content.get("text"),
                text_field="text",
            )
            yield LabeledImage(str(file), image, image.name, folder, split, [target])


def _folders(path: Path) -> dict[str, Path]:
    """Return the folder of each split; a folder without subfolders for splits is "train"."""
    found = {split: folder for split, folder in split_folders(path).items() if files_in(folder, ".json")}
    return found or {"train": path}


def _read(file: Path) -> Mapping[str, Any]:
    """Return the content of a JSON file in UTF-8 or Windows-1252: ReasonSeg has both.

    Raises:
        OSError, ValueError: it cannot be read, or is no JSON object.
    """
    data = file.read_bytes()
    if b"\0" in data:
        raise ValueError(f"{file}: expected JSON in UTF-8 or Windows-1252, got another encoding; save it as UTF-8")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError:
        text = data.decode("cp1252", "replace")
    content = parse_json(text, str(file))
    if not isinstance(content, Mapping):
        raise ValueError(f"{file}: expected a JSON object with 'text' and 'shapes', got {short(content)}; fix it")
    return content


def _draw(shapes: Any, where: str, height: int, width: int) -> Mapping[str, Any]:
    """Return the pixels of the target as compressed RLE.

    Args:
        shapes: the field "shapes" of a file.
        where: prefix of error messages.
        height, width: size of the image in pixels.

    Raises:
        BadRowError: a shape is invalid, or no pixel of the target is left.
    """
    if not isinstance(shapes, Sequence) or isinstance(shapes, str):
        raise BadRowError(f"{where}: expected a list of shapes, got {short(shapes)}; fix it")
    drawn = []
    for number, shape in enumerate(shapes):
        label, points = _shape(shape, f"{where}: shape {number}", height, width)
        if label != "flag":
            area = np.count_nonzero(_fill(np.zeros((height, width), np.uint8), points, 1))
            drawn.append((area, _IGNORED if "ignore" in label else _TARGET, points))
    mask = np.zeros((height, width), np.uint8)
    drawn.sort(key=lambda one: one[0])
    for _, value, points in reversed(drawn):
        _fill(mask, points, value)
    target = encode_mask(mask == _TARGET, height, width)
    if not mask_area(target):
        raise BadRowError(
            f"{where}: expected a shape with the label 'target' within the image of {width}x{height} pixels that no "
            "'ignore' covers, got none; fix the shapes",
            "mask_empty",
        )
    return target


def _shape(shape: Any, where: str, height: int, width: int) -> tuple[str, np.ndarray]:
    """Return the label of a shape in lower case, and its vertices as `read_points` does; arguments as for `_draw`."""
    if not isinstance(shape, Mapping) or not isinstance(shape.get("label"), str):
        raise BadRowError(f"{where}: expected an object with 'label' and 'points', got {short(shape)}; fix it")
    points = read_points(shape.get("points"), height, width, f"{where}: 'points'")
    if not len(points):
        raise BadRowError(f"{where}: expected 'points', got none; remove the shape", "mask_malformed")
    return shape["label"].lower(), points


def _fill(mask: np.ndarray, points: np.ndarray, value: int) -> np.ndarray:
    cv2.polylines(mask, [points], True, value, 1)
    return cv2.fillPoly(mask, [points], value)
