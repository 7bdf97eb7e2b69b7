"""Reader for PhraseCut (Wu et al., 2020), also called VGPhraseCut.

<folder>/refer_train.json         also refer_val.json, refer_test.json, refer_miniv.json
<folder>/images/2315357.jpg       images of Visual Genome, also in subfolders; or in --image_folder
<folder>/image_data_split.json    optional: the images' sizes

[{"task_id": "2315357__1134501", "image_id": 2315357, "phrase": "white short dog", "phrase_structure": {"name": "dog"},
  "Polygons": [[[[10, 20], [40, 22], [30, 60]]]]}]

`Polygons` has a list of polygons for each instance; all instances of a phrase are one target. Format and
`polygons_to_mask`, which draws the masks in the same way: https://github.com/ChenyunWu/PhraseCutDataset.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from ....safe_loading import read_json
from ...errors import BadRowError, short
from ...fields import read_id
from ...masks import as_integer, encode_mask, mask_area
from ..paths import find_image_folder
from ..registry import Source, dataset_folder, dataset_path
from .files import ImageFinder, head_keys
from .objects import LabeledImage, LabeledObject
from .points import read_points
from .reader import LabelReader

_SPLITS = ("train", "val", "test", "miniv")
_SIZES = "image_data_split.json"


class PhraseCutReader(LabelReader):
    """Reads folders with refer_train.json and images."""

    name = "phrasecut"
    title = "PhraseCut"
    accepts = "a PhraseCut folder with refer_train.json"
    options = ("image_folder",)
    text_field = "'phrase' of the refer_*.json files"

    def detect(self, source: Source) -> bool:
        path = dataset_path(source)
        return path is not None and path.is_dir() and any("Polygons" in head_keys(f)[1] for f in _files(path).values())

    def splits(self, source: Source) -> Iterable[str]:
        return _files(dataset_folder(source))

    def annotation_files(self, source: Source) -> Iterable[Path]:
        return _files(dataset_folder(source)).values()

    def images(self, source: Source, split: str) -> Iterator[LabeledImage | BadRowError]:
        root = dataset_folder(source)
        file = _files(root)[split]
        sizes = _read_sizes(root / _SIZES) if (root / _SIZES).is_file() else {}
        tasks = read_json(file)
        if not isinstance(tasks, list):
            raise ValueError(f"{file}: expected a list of phrases, got {short(tasks)}; download it again")
        by_image: dict[int, list[LabeledObject]] = defaultdict(list)
        for index, task in enumerate(tasks):
            try:
                image_id, phrase = _read_task(task, index, str(file))
            except BadRowError as error:
                yield error
            else:
                by_image[image_id].append(phrase)
        folder = root / "images"
        if source.image_folder is not None:
            folder = find_image_folder(Path(source.data_root), source.image_folder)
        finder = ImageFinder(folder)
        for image_id, phrases in by_image.items():
            image = finder.find(f"{image_id}.jpg")
            yield LabeledImage(
                where=str(root / _SIZES),
                file=image,
                name=finder.relative(image),
                root=finder.folder,
                split=split,
                objects=phrases,
                size=sizes.get(image_id),
                image_id=image_id,
            )


def _files(root: Path) -> dict[str, Path]:
    files = {split: root / f"refer_{split}.json" for split in _SPLITS}
    return {split: file for split, file in files.items() if file.is_file()}


def _read_sizes(file: Path) -> dict[int, tuple[int, int]]:
    """Return height and width of each image in pixels, keyed by its id."""
    sizes = {}
    entries = read_json(file)
    for index, entry in enumerate(entries if isinstance(entries, list) else [entries]):
        numbers = [entry.get(key) if isinstance(entry, Mapping) else None for key in ("image_id", "height", "width")]
        if not all(isinstance(number, int) for number in numbers):
            raise ValueError(
                f"{file}: entry {index}: expected integers as 'image_id', 'height' and 'width', got {short(numbers)}; "
                "download it again, or remove the file"
            )
        sizes[numbers[0]] = (numbers[1], numbers[2])
    return sizes


def _read_task(task: Any, index: int, file: str) -> tuple[int, LabeledObject]:
    """Return the id of the image and the target of a phrase."""
    if not isinstance(task, Mapping):
        raise BadRowError(f"{file}: entry {index}: expected an object, got {short(task)}; fix it")
    where = f"{file}: task {short(task.get('task_id', index))}"
    image_id = as_integer(task.get("image_id"))
    if isinstance(image_id, bool) or not isinstance(image_id, int) or not 0 <= image_id < 2**63:
        raise BadRowError(f"{where}: expected an integer as 'image_id', got {short(task.get('image_id'))}; fix it")
    return image_id, LabeledObject(
        where=where,
        ann_id=read_id(task.get("task_id"), index, f"{where}: 'task_id'"),
        mask=partial(_draw, task.get("Polygons"), f"{where}: 'Polygons'"),
        label=_label(task.get("phrase_structure"), where),
        sentences=task.get("phrase"),
        text_field="phrase",
        order=index,
    )


def _label(structure: Any, where: str) -> str | BadRowError | None:
    name = structure.get("name") if isinstance(structure, Mapping) else None
    if name is None or isinstance(name, str):
        return name or None
    return BadRowError(f"{where}: expected text as 'name' in 'phrase_structure', got {short(name)}; fix it")


def _draw(instances: Any, where: str, height: int, width: int) -> Mapping[str, Any]:
    """Return the union of all instances as compressed RLE.

    Args:
        instances: a list of polygons `[[x, y], ...]` for each instance; coordinates in pixels.
        where: prefix of error messages.
        height, width: size of the image in pixels.

    Raises:
        BadRowError: a polygon is invalid, or the target has no pixel.
    """
    canvas = Image.new("L", (width, height))
    draw = ImageDraw.Draw(canvas)
    for instance in _items(instances, where):
        for polygon in _items(instance, where):
            points = read_points(polygon, height, width, where)
            if len(points) > 1:  # as the authors do
                draw.polygon(points.ravel().tolist(), fill=1, outline=1)
    mask = encode_mask(np.asarray(canvas), height, width)
    if not mask_area(mask):
        raise BadRowError(
            f"{where}: expected a polygon within the image of {width}x{height} pixels, got none; fix it", "mask_empty"
        )
    return mask


def _items(value: Any, where: str) -> list[Any]:
    if not isinstance(value, list):
        raise BadRowError(
            f"{where}: expected a list of polygons [[x, y], ...] for each instance, got {short(value)}; fix it",
            "mask_malformed",
        )
    return value
