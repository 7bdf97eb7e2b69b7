"""Reader for COCO JSON, with sentences in `sentences` or `attributes` of the annotations.

{"images":      [{"id": 1, "file_name": "0001.jpg", "license": 4}],
 "annotations": [{"id": 7, "image_id": 1, "category_id": 18, "segmentation": [[...]], "sentences": ["the left rose"]}],
 "categories":  [{"id": 18, "name": "rose", "supercategory": "flower"}],
 "licenses":    [{"id": 4, "name": "Attribution License", "url": "..."}]}

Categories and licenses are optional. CVAT writes the attributes of a label into the field `attributes`, as an object.
Format: https://cocodataset.org/#format-data
"""

import glob
import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

import datasets

from ...errors import check_path
from ..errors import BadRowError, BadRows, join_names
from .coco_file import CocoFile
from .coco_split import CocoSplit
from .labels.objects import LabeledImage
from .labels.reader import LabelReader
from .paths import find_image_folder
from .registry import Source, candidate_paths

PLACEHOLDER = "{split}"


class CocoReader(LabelReader):
    """Reads .json files; "{split}" in the name is replaced by the split's name."""

    name = "coco"
    title = "COCO JSON"
    accepts = "a COCO .json file"
    options = ("image_folder",)
    text_field = "'sentences' of the annotations"
    exclusive, generic = False, True  # files of other tools that end with .json are read by their readers

    def detect(self, source: Source) -> bool:
        return source.dataset.endswith(".json")

    def splits(self, source: Source) -> Iterable[str]:
        return coco_splits(self.file(source))

    def load(self, source: Source, split: str, bad_rows: BadRows | None) -> datasets.Dataset:
        folder = self.image_folder(source, split)
        return load_coco(self.file(source), image_folder=folder, split=split, bad_rows=bad_rows)

    def load_objects(self, source: Source, split: str, bad_rows: BadRows | None) -> datasets.Dataset:
        return self.open_split(source, split).object_rows(bad_rows)

    def images(self, source: Source, split: str) -> Iterator[LabeledImage | BadRowError]:
        opened = self.open_split(source, split)
        opened.content.check_classes()
        return opened.images()

    def open_split(self, source: Source, split: str) -> CocoSplit:
        """Read one split."""
        return _open_split(self.file(source), self.image_folder(source, split), split)

    def annotation_files(self, source: Source) -> Iterable[Path]:
        file = self.file(source)
        splits = coco_splits(file) if PLACEHOLDER in str(file) else [""]
        return [Path(str(file).replace(PLACEHOLDER, split)) for split in splits]

    def image_folder(self, source: Source, split: str) -> Path | None:
        """Return the folder that `--image_folder` names, or None without this option."""
        if source.image_folder is None:
            return None
        return find_image_folder(Path(source.data_root), source.image_folder.replace(PLACEHOLDER, split))

    def file(self, source: Source) -> Path:
        """Return the path of the .json file, which may hold "{split}"."""
        for path in candidate_paths(source):
            if coco_splits(path) if PLACEHOLDER in source.dataset else path.is_file():
                return path
        raise FileNotFoundError(
            f"{source.dataset}: no such file, also not below {source.data_root}; pass a COCO .json file"
        )


def load_coco(
    file: str | os.PathLike[str],
    *,
    image_folder: str | os.PathLike[str] | None = None,
    split: str | None = None,
    bad_rows: BadRows | None = None,
) -> datasets.Dataset:
    """Load COCO JSON with `sentences` on annotations, one row per annotation, with the columns `FEATURES`.

    `sentences` is a list of texts or of `{"sent": text}`; a single `sentence`, or a text in `attributes`, may replace
    it. Annotations without any of them are objects without an expression and are skipped. `segmentation` is a list of
    polygons or an RLE, in pixels of the upright image.

    Args:
        file: the JSON; "{split}" in its path is replaced by the split's name: "flowers/{split}.json".
        image_folder: folder of the images; by default the folder of the file.
        split: one of the splits named by the field `split` of annotations or images. In a file without such fields,
            and without "{split}" in its path, everything is "train". None loads everything.
        bad_rows: collects invalid annotations; None raises the first.

    Returns:
        An in-memory `datasets.Dataset`; images are decoded when a row is read.

    Raises:
        FileNotFoundError: the file does not exist.
        NoSentencesError: no annotation has a sentence.
        ValueError: the split is unknown, or the file is not COCO JSON. A `BadRowError` if an annotation is invalid: it
            names file, id and field.
    """
    return _open_split(file, image_folder, split).rows(bad_rows, str(file))


def coco_splits(file: str | os.PathLike[str]) -> list[str]:
    """Return the splits of a COCO JSON file; errors as for `load_coco`."""
    text = str(file)
    if PLACEHOLDER in text:
        before, after = map(re.escape, text.split(PLACEHOLDER, 1))
        # A second placeholder must match the same name.
        pattern = re.compile(f"{before}([^/]+){after}".replace(re.escape(PLACEHOLDER), r"\1"))
        files = glob.glob(glob.escape(text).replace(glob.escape(PLACEHOLDER), "*"))
        return sorted(match[1] for match in map(pattern.fullmatch, files) if match)
    content = CocoFile.read(Path(file))
    return sorted({content.split_of(annotation, "train") for annotation in content.annotations})


def _open_split(
    file: str | os.PathLike[str], image_folder: str | os.PathLike[str] | None, split: str | None
) -> CocoSplit:
    """Read one split of a file, or of one file per split; arguments and errors: see `load_coco`."""
    check_path("file", file)
    if PLACEHOLDER not in str(file):
        content = CocoFile.read(Path(file))
        folder = Path(os.path.abspath(image_folder or content.path.parent))
        return CocoSplit(content, content.path.stem, split, "train", folder, folder)
    if split is None:
        raise ValueError(f"{file}: expected a split, got None; pass split=, one of {join_names(coco_splits(file))}")
    path = Path(str(file).replace(PLACEHOLDER, split))
    if not path.is_file():
        raise ValueError(f"{path}: no split '{split}', expected one of {join_names(coco_splits(file))}")
    base = Path(os.path.abspath(f"{str(file).split(PLACEHOLDER)[0]}x")).parent
    folder = Path(os.path.abspath(image_folder or path.parent))
    return CocoSplit(CocoFile.read(path), base.name, split, split, folder, folder if image_folder else base, base)
