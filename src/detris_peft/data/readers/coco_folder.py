"""Reader for folders of COCO JSON files, as CVAT, Roboflow, Label Studio and COCO itself write them.

<folder>/train.json, val.json                      images next to them, in images/ or in train/ and val/
<folder>/train/_annotations.coco.json, valid/...   Roboflow: images in the folder of each split
<folder>/annotations/instances_train.json          CVAT: images in images/train/, or in images/ for instances_default
<folder>/result.json                               Label Studio: images in images/

A single file without a split in its name is "train", unless its images have a field "split".
Formats: https://docs.cvat.ai/docs/dataset_management/formats/format-coco/,
https://roboflow.com/formats/coco-json, https://labelstud.io/guide/export#COCO
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

import datasets

from ..errors import BadRowError, BadRows
from .coco import CocoReader
from .coco_file import CocoFile
from .coco_split import CocoSplit
from .labels.files import MAX_DETECTED, SPLIT_FOLDERS, ImageFinder, files_in, head_keys, split_folders
from .labels.objects import LabeledImage
from .paths import find_image_folder
from .registry import Source, dataset_folder, dataset_path

_ROBOFLOW = "_annotations.coco.json"
_REFER = "instances.json"  # next to refs(*).p, which ReferReader reads
_IMAGE_FOLDERS = ("images", "JPEGImages", "data")
_CHECKED = 3  # number of image names that are looked up to find the folder of the images


class CocoFolderReader(CocoReader):
    """Reads folders of COCO JSON files, one per split."""

    name = "coco_folder"
    title = "COCO JSON files"
    accepts = "a folder of COCO .json files"
    exclusive, generic = True, False

    def detect(self, source: Source) -> bool:
        path = dataset_path(source)
        return path is not None and path.is_dir() and any(map(_is_coco, _candidates(path, MAX_DETECTED)))

    def tool(self, source: Source) -> str:
        files = _files(dataset_folder(source))
        return "Roboflow COCO JSON" if any(file.name == _ROBOFLOW for file in files.values()) else self.title

    def splits(self, source: Source) -> Iterable[str]:
        files = _files(dataset_folder(source))
        if None not in files:
            return [split for split in files if split is not None]
        content = CocoFile.read(files[None])
        return sorted({content.split_of(annotation, "train") for annotation in content.annotations}) or ["train"]

    def load(self, source: Source, split: str, bad_rows: BadRows | None) -> datasets.Dataset:
        return self.open_split(source, split).rows(bad_rows, source.dataset)

    def annotation_files(self, source: Source) -> Iterable[Path]:
        return _files(dataset_folder(source)).values()

    def images(self, source: Source, split: str) -> Iterator[LabeledImage | BadRowError]:
        opened = self.open_split(source, split)
        opened.content.check_classes()
        return opened.images()

    def open_split(self, source: Source, split: str) -> CocoSplit:
        root = Path(os.path.abspath(dataset_folder(source)))
        files = _files(root)
        self._require_split(source, split)
        path = files[None] if None in files else files[split]
        content = CocoFile.read(path)
        finder = ImageFinder(root)
        if source.image_folder is not None:
            folder = find_image_folder(Path(source.data_root), source.image_folder.replace("{split}", split))
            folder, finder = Path(os.path.abspath(folder)), None
        else:
            folder = _find_images(content, root, path, split)
        is_single = None in files
        return CocoSplit(
            content,
            root.name,
            split,
            "train" if is_single else split,
            folder,
            root if finder else folder,
            None if is_single else root,
            finder,
        )


def _candidates(folder: Path, limit: int | None = None) -> Iterator[Path]:
    """Yield the JSON files of a folder that may be COCO files, of each folder up to a limit."""
    for part in (folder, folder / "annotations"):
        yield from (file for file in files_in(part, ".json")[:limit] if file.name != _REFER)
    for part in split_folders(folder).values():
        yield from (
            file for file in files_in(part, ".json") if file.name in (_ROBOFLOW, "annotations.json", "labels.json")
        )


def _is_coco(file: Path) -> bool:
    kind, keys = head_keys(file)
    # The lists before it may be longer than what was read.
    return kind == "object" and "images" in keys and not keys.isdisjoint({"annotations", "categories", "info"})


def _files(folder: Path) -> dict[str | None, Path]:
    """Return the COCO files of a folder, keyed by split; a single file without a split in its name is keyed by None.

    Raises:
        ValueError: two files have the same split.
    """
    found = [file for file in _candidates(folder) if _is_coco(file)]
    # COCO's own folder also has captions and keypoints of the same images.
    found = [file for file in found if file.name.startswith("instances")] or found
    files: dict[str | None, Path] = {}
    for file in found:
        split = _split_name(file, folder)
        if len(found) > 1 and split is None:
            split = file.stem
        if split in files:
            raise ValueError(
                f"{folder}: expected one COCO file per split, got {files[split].name} and {file.name} of '{split}'; "
                "move one of them, or pass the path of a file as --dataset"
            )
        files[split] = file
    return files


def _split_name(file: Path, root: Path) -> str | None:
    """Return the split in the name of a file, or of its folder: "train" for instances_train2017.json."""
    words = [word for word in re.split(r"[^a-z]+", file.stem.lower()) if word in SPLIT_FOLDERS]
    if words:
        return SPLIT_FOLDERS[words[0]]
    return None if file.parent == root else SPLIT_FOLDERS.get(file.parent.name.lower())


def _find_images(content: CocoFile, root: Path, path: Path, split: str) -> Path:
    """Return the folder in which the images of a file are; the folder of the file if they are nowhere."""
    subset = path.stem.removeprefix("instances_")
    parents = [path.parent, root, *(root / name for name in _IMAGE_FOLDERS), path.parent / "images"]
    folders = [*parents, *(parent / name for parent in parents for name in dict.fromkeys((subset, split, path.stem)))]
    entries = [entry for same in content.images.values() for entry in same][:_CHECKED]
    names = [name.replace("\\", "/") for entry in entries if isinstance(name := entry.get("file_name"), str) and name]
    found = (folder for folder in folders if any("\0" not in name and os.path.isfile(folder / name) for name in names))
    return next(found, path.parent)
