"""Reader for YOLO segmentation labels (https://docs.ultralytics.com/datasets/segment/).

<folder>/data.yaml                    path: .
                                      train: images/train          a folder, a .txt of image paths, or a list of them
                                      val: images/val
                                      names: {0: rose, 1: tulip}
<folder>/images/train/0001.jpg        the images
<folder>/labels/train/0001.txt        0 0.61 0.48 0.67 0.49 0.68 0.55 ...

Each line is one object: its class, then its outline x1 y1 x2 y2 ... in fractions of width and height. The labels of
.../images/a.jpg are .../labels/a.txt; an image without this file has no objects. Roboflow's "../train/images" is found
as by Ultralytics. Label Studio's classes.txt, next to images/ and labels/, replaces the data.yaml. There is no field
for sentences.

The files are not read by supervision (0.31): it rounds the vertices to whole pixels, keeps one array per object in
memory (2.3 GB for 4,000 objects in images of 640x480 pixels), and stops at the first invalid line. The tests compare
with it.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from ....safe_loading import read_yaml
from ...errors import BadRowError, join_names, short
from ...fields import read_mask
from ...masks import all_finite, as_integer
from ..registry import Source, dataset_path
from .files import IMAGE_SUFFIXES, ImageFinder, files_in, head_text, read_lines
from .objects import LabeledImage, LabeledObject, object_id
from .reader import LabelReader

_YAML = (".yaml", ".yml")
_CLASSES = "classes.txt"
_SPLITS = ("train", "val", "test")
_HEAD = 1 << 16  # bytes
_NAMES, _SPLIT = re.compile(r"(?m)^names\s*:"), re.compile(r"(?m)^(train|val|test)\s*:")
# Of the paths in the .txt files of CVAT, whose exports have no such folder.
_CVAT_PREFIX = "data/"
# Rounded coordinates may be this far outside of the image, as a fraction; Ultralytics has the same limit.
_MARGIN = 0.01


class YoloReader(LabelReader):
    """Reads the data.yaml of YOLO labels, or the folder that contains it."""

    name = "yolo"
    title = "YOLO"
    accepts = "YOLO labels with their data.yaml"
    text_field = "another format"  # not used: see `_advice`

    def detect(self, source: Source) -> bool:
        path = dataset_path(source)
        return path is not None and bool(_yaml_files(path))

    def splits(self, source: Source) -> Iterable[str]:
        config = _Config.read(source)
        # Roboflow names a test split even if there is none.
        return [split for split in config.paths if split != "test" or config.exists(split)]

    def annotation_files(self, source: Source) -> Iterable[Path]:
        config = _Config.read(source)
        images = [image for split in self.splits(source) for image in config.images(split)]
        return [config.file, *dict.fromkeys(filter(Path.is_file, map(_label_file, images)))]

    def images(self, source: Source, split: str) -> Iterator[LabeledImage | BadRowError]:
        config = _Config.read(source)
        finder = ImageFinder(config.file.parent)
        for image in config.images(split):
            file = _label_file(image)
            if not os.path.isfile(file):
                if not os.path.isfile(image):
                    yield BadRowError(f"{config.file}: '{split}': {image} is missing; add the image", "image_missing")
                continue
            name = finder.relative(image)
            try:
                lines = read_lines(file)
            except ValueError as error:
                yield BadRowError(str(error))
                continue
            objects = [_object(line, number, name, file, config) for number, line in lines]
            yield LabeledImage(str(file), image, name, finder.folder, split, objects)

    def _advice(self, source: Source) -> str:
        return (
            f"{source.dataset}: expected sentences, got {{count:,}} objects without any, as YOLO labels have no field "
            f"for text; make sentences with `detris data describe --dataset {source.dataset} --output DIR`"
        )


class _Config:
    """The content of a data.yaml.

    Args:
        file: its path.
        content: what it contains.

    Raises:
        ValueError: a field is invalid.
    """

    def __init__(self, file: Path, content: Any) -> None:
        self.file = Path(os.path.abspath(file))
        if not isinstance(content, Mapping):
            raise ValueError(f"{file}: expected the fields train, val and names, got {short(content)}; write them")
        self.paths = {split: self._paths(split, content[split]) for split in _SPLITS if content.get(split)}
        if not self.paths:
            raise ValueError(
                f"{file}: expected 'train' or 'val' with the path of images, got {join_names(map(str, content))}; "
                "add it"
            )
        self.names = self._names(content.get("names"))
        base = content.get("path") or "."
        if not isinstance(base, str):
            raise ValueError(f"{file}: 'path': expected the path of a folder, got {short(base)}; fix it")
        # Often the path of another machine, or relative to a folder in the settings of Ultralytics.
        named = (self.file.parent / base, self.file.parent.parent / base)
        self._bases = [folder for folder in named if folder.is_dir()] + [self.file.parent]

    @classmethod
    def read(cls, source: Source) -> _Config:
        """Read the data.yaml of a dataset.

        Raises:
            FileNotFoundError, ValueError: there is none, there are several, or it is invalid.
        """
        path = dataset_path(source)
        files = _yaml_files(path) if path is not None else []
        if not files:
            raise FileNotFoundError(
                f"{source.dataset}: expected a data.yaml with 'names', and with 'train' or 'val', found none; add it"
            )
        if len(files) > 1:
            raise ValueError(
                f"{source.dataset}: expected one file like data.yaml, got {join_names(file.name for file in files)}; "
                "pass the path of one of them"
            )
        if files[0].name == _CLASSES:
            return cls(files[0], {"train": "images", "names": [line for _, line in read_lines(files[0])]})
        return cls(files[0], read_yaml(files[0]))

    def exists(self, split: str) -> bool:
        """Return whether the files of a split exist."""
        return all(self._locate(path) is not None for path in self.paths[split])

    def images(self, split: str) -> list[Path]:
        """Return the images of a split, sorted by path in each folder.

        Raises:
            FileNotFoundError, ValueError: a path does not exist, or cannot be read.
        """
        found: list[Path] = []
        for name in self.paths[split]:
            path = self._locate(name)
            if path is None:
                raise FileNotFoundError(
                    f"{self.file}: '{split}': expected a folder or a .txt of images, found no {name}; fix the path, "
                    f"relative to {self._bases[0]}"
                )
            found += self._listed(path) if path.is_file() else _below(path)
        return list(dict.fromkeys(found))

    def label(self, number: int, where: str) -> str | BadRowError:
        """Return the name of a class, or its error."""
        if number in self.names:
            return self.names[number]
        found = f"a class from {min(self.names)} to {max(self.names)}" if self.names else "a class with a name"
        return BadRowError(
            f"{where}: expected {found} as in {self.file.name}, got {number}; fix the class, or add it to 'names'"
        )

    def _paths(self, split: str, value: Any) -> list[str]:
        paths = value if isinstance(value, list) else [value]
        if not all(isinstance(path, str) and path for path in paths):
            raise ValueError(f"{self.file}: '{split}': expected a path or a list of paths, got {short(value)}; fix it")
        return paths

    def _names(self, value: Any) -> dict[int, str]:
        pairs = value.items() if isinstance(value, Mapping) else enumerate(value) if isinstance(value, list) else None
        named = [(as_integer(key), name) for key, name in pairs or () if not isinstance(name, bool)]
        names = {key: str(name) for key, name in named if isinstance(name, (str, int, float))}
        valid = pairs is not None and len(names) == len(value) and all(isinstance(key, int) for key in names)
        if value is not None and not valid:
            raise ValueError(
                f"{self.file}: 'names': expected a list of names, or names keyed by their numbers, got "
                f"{short(value)}; fix it, and put words like no in quotes"
            )
        return names

    def _locate(self, name: str) -> Path | None:
        names = (name, name[3:]) if name.startswith("../") else (name,)
        candidates = (Path(os.path.abspath(base / each)) for base in self._bases for each in names)
        return next((path for path in candidates if path.exists()), None)

    def _listed(self, file: Path) -> list[Path]:
        """Return the images that a .txt names, which are relative to it, or to the folder of the dataset."""
        bases, images = (file.parent, *self._bases), []
        for name in filter(_is_image, (line for _, line in read_lines(file))):
            names = (name, name.removeprefix(_CVAT_PREFIX))
            candidates = [Path(os.path.abspath(base / each)) for each in names for base in bases]
            images.append(next(filter(os.path.isfile, candidates), candidates[0]))
        return images


def _yaml_files(path: Path) -> list[Path]:
    """Return the files like data.yaml in a folder, or the file itself if it is one."""
    if path.is_file():
        files = [path] if path.suffix.lower() in _YAML else []
    else:
        files = [file for suffix in _YAML for file in files_in(path, suffix)]
    configs = [file for file in files if _is_config(file)]
    if not configs and path.is_dir() and all((path / name).exists() for name in ("images", "labels", _CLASSES)):
        return [path / _CLASSES]
    return configs


def _is_config(file: Path) -> bool:
    head = head_text(file, _HEAD)
    return bool(_NAMES.search(head) and _SPLIT.search(head))


def _below(folder: Path) -> list[Path]:
    """Return the images in a folder and its subfolders, sorted by path."""
    walked = ((parent, name) for parent, _, names in os.walk(folder) for name in names)
    return sorted(Path(parent, name) for parent, name in walked if _is_image(name) and not name.startswith("."))


def _is_image(name: str) -> bool:
    return name.lower().endswith(IMAGE_SUFFIXES)


def _label_file(image: Path) -> Path:
    """Return the label file of an image, as Ultralytics does: the last folder "images" is replaced by "labels"."""
    images, labels = f"{os.sep}images{os.sep}", f"{os.sep}labels{os.sep}"
    return Path(labels.join(str(image).rsplit(images, 1))).with_suffix(".txt")


def _object(line: str, number: int, name: str, file: Path, config: _Config) -> LabeledObject | BadRowError:
    """Return the object of a line in the labels of the image `name`, or its error."""
    where = f"{file}: line {number}"
    try:
        label, *outline = map(float, line.split())
    except ValueError:
        return BadRowError(f"{where}: expected numbers, got {short(line)}; fix the line")
    if len(outline) in (4, 5):
        return BadRowError(
            f"{where}: expected an outline of at least three points, got a box, which is not a mask; label outlines",
            "mask_malformed",
        )
    if len(outline) < 6 or len(outline) % 2:
        return BadRowError(
            f"{where}: expected a class and the pairs x y of at least three points, got {1 + len(outline)} numbers; "
            "fix the line",
            "mask_malformed",
        )
    if not all_finite([label, *outline]) or not -_MARGIN <= min(outline) <= max(outline) <= 1 + _MARGIN:
        worst = max(outline, key=lambda value: abs(value - 0.5))
        return BadRowError(
            f"{where}: expected coordinates from 0 to 1, got {short(worst)}; divide x by the width and y by the "
            "height of the image",
            "mask_malformed",
        )
    if not label.is_integer() or label < 0:
        return BadRowError(f"{where}: expected the number of a class, got {line.split()[0]!a:.40}; fix the line")
    return LabeledObject(
        where=where,
        ann_id=object_id(name, number),
        mask=partial(_mask, outline, where),
        label=config.label(int(label), where),
        category_id=int(label) if label < 2**31 else -1,
    )


def _mask(outline: list[float], where: str, height: int, width: int) -> dict[str, Any]:
    return read_mask(outline, height, width, where, fractions=True)
