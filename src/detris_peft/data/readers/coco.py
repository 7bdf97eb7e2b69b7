"""Reader for COCO JSON whose annotations have sentences.

{"images":      [{"id": 1, "file_name": "0001.jpg"}],
 "annotations": [{"id": 7, "image_id": 1, "segmentation": [[...]], "sentences": ["the left rose"]}]}
"""

import glob
import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import datasets

from ...errors import check_path
from ...safe_loading import read_json
from ..errors import BadRowError, BadRows, join_names, reject
from ..fields import read_flag, read_id, read_mask, read_sentences, text_id, upright_size
from ..masks import as_integer, unite_masks
from ..schema import make_row, to_dataset
from .paths import find_image_folder, mask_finder, named_file, note_outside
from .registry import DatasetReader, Source, candidate_paths

PLACEHOLDER = "{split}"
_LISTS = ("images", "annotations")


class CocoReader(DatasetReader):
    """Reads .json files; "{split}" in the name is replaced by the split's name."""

    name = "coco"
    accepts = "a COCO .json file"
    options = ("image_folder",)

    def detect(self, source: Source) -> bool:
        return source.dataset.endswith(".json")

    def splits(self, source: Source) -> Iterable[str]:
        return coco_splits(self.file(source))

    def load(self, source: Source, split: str, bad_rows: BadRows | None) -> datasets.Dataset:
        folder = self.image_folder(source, split)
        return load_coco(self.file(source), image_folder=folder, split=split, bad_rows=bad_rows)

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

    `sentences` is a list of texts or of `{"sent": text}`; a single `sentence` may replace it. Annotations with neither
    are objects without an expression and are skipped. `segmentation` is a list of polygons or an RLE, in pixels of the
    upright image.

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
        ValueError: the split is unknown, the file is not COCO JSON, or no annotation has a sentence. A `BadRowError`
            if an annotation is invalid: it names file, id and field.
    """
    check_path("file", file)
    templated = PLACEHOLDER in str(file)
    if templated and split is None:
        raise ValueError(f"{file}: expected a split, got None; pass split=, one of {join_names(coco_splits(file))}")
    path = Path(str(file).replace(PLACEHOLDER, split or ""))
    if templated and not path.is_file():
        raise ValueError(f"{path}: no split '{split}', expected one of {join_names(coco_splits(file))}")
    images, annotations, _ = read_coco_file(path)
    folder = Path(os.path.abspath(image_folder or path.parent))
    default = split if templated and split else "train"
    referred = [
        (split_of(annotation, images, default), annotation)
        for annotation in annotations
        if annotation.get("sentences") or annotation.get("sentence") is not None
    ]
    if not referred:
        raise ValueError(
            f"{path}: expected annotations with 'sentences', got none; add them next to 'segmentation', "
            "or make some with `detris data describe`"
        )
    found = sorted({name for name, _ in referred})
    if not templated and split is not None and split not in found:
        raise ValueError(
            f"{path}: no split '{split}', expected one of {join_names(found)}; name the file of each split as "
            f"'{PLACEHOLDER}.json', or add a field 'split' to the images"
        )
    # Image ids may collide across files: with one file per split they are derived from the file name.
    base = _base(str(file)) if templated else None
    dataset = base.name if base else path.stem
    root = folder if image_folder or base is None else base
    rows, seen, sizes = [], {}, {}
    for name, annotation in referred:
        if not templated and split is not None and name != split:
            continue
        where = f"{path}: annotation {annotation.get('id')!r:.60}"
        try:
            row = _row(annotation, images, folder, name, dataset, where, sizes, base, root)
            if row["ref_id"] in seen:
                raise BadRowError(
                    f"{where}: expected a unique 'id', got one that two annotations have ({seen[row['ref_id']]!r:.60} "
                    f"and {row['sentences'][0]!r:.60}); renumber one of the two",
                    "duplicate_id",
                )
        except BadRowError as error:
            reject(error, bad_rows)
            continue
        seen[row["ref_id"]] = row["sentences"][0]
        rows.append(row)
    return to_dataset(rows)


def coco_splits(file: str | os.PathLike[str]) -> list[str]:
    """Return the splits of a COCO JSON file; errors as for `load_coco`."""
    text = str(file)
    if PLACEHOLDER in text:
        before, after = map(re.escape, text.split(PLACEHOLDER, 1))
        # A second placeholder must match the same name.
        pattern = re.compile(f"{before}([^/]+){after}".replace(re.escape(PLACEHOLDER), r"\1"))
        files = glob.glob(glob.escape(text).replace(glob.escape(PLACEHOLDER), "*"))
        return sorted(match[1] for match in map(pattern.fullmatch, files) if match)
    images, annotations, _ = read_coco_file(Path(file))
    return sorted({split_of(annotation, images, "train") for annotation in annotations})


def read_coco_file(file: Path) -> tuple[dict[Any, list[dict]], list[dict], dict[str, Any]]:
    """Return images, keyed by id (several of one id if they differ), annotations, and the complete content."""
    if not file.is_file():
        raise FileNotFoundError(f"{file}: no such file; pass a COCO .json file")
    content = read_json(file)
    if not isinstance(content, dict) or not all(_is_list_of_objects(content.get(name)) for name in _LISTS):
        found = f"the fields {join_names(map(str, content))}" if isinstance(content, dict) else _json_type(content)
        raise ValueError(
            f"{file}: expected COCO JSON with the lists 'images' and 'annotations' of objects, got {found}; pass "
            "another file"
        )
    images: dict[Any, list[dict]] = {}
    for number, image in enumerate(content["images"]):
        if "id" not in image:
            raise ValueError(
                f"{file}: expected COCO JSON whose 'images' each have an 'id', got entry {number} without"
            )
        entries = images.setdefault(coco_id(image["id"]), [])
        if image not in entries:
            entries.append(image)
    return images, content["annotations"], content


def _is_list_of_objects(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(item, dict) for item in value)


def _json_type(value: Any) -> str:
    return "a list" if isinstance(value, list) else f"a {type(value).__name__}"


def split_of(annotation: Mapping[str, Any], images: Mapping[Any, list[dict]], default: str) -> str:
    """Return the split that an annotation or its image names, or the default."""
    image = images.get(coco_id(annotation.get("image_id")), [{}])[0]
    return str(annotation.get("split") or image.get("split") or default)


def find_image(annotation: Mapping[str, Any], images: Mapping[Any, list[dict]], where: str) -> dict:
    """Return the image of an annotation."""
    image_id = annotation.get("image_id")
    key = coco_id(image_id)
    entries = images.get(key, [])
    if key is None or not entries:
        raise BadRowError(
            f"{where}: expected an 'image_id' among 'images', got {image_id!r:.60}; add the image or fix the id"
        )
    if len(entries) > 1:
        names = " and ".join(repr(entry.get("file_name")) for entry in entries[:2])
        raise BadRowError(
            f"{where}: expected one image with the id {image_id!r:.60} in 'images', got {names}; renumber one of "
            "them, with its annotations",
            "duplicate_id",
        )
    return entries[0]


def _row(
    annotation: Mapping[str, Any],
    images: Mapping[Any, list[dict]],
    folder: Path,
    split: str,
    dataset: str,
    where: str,
    sizes: dict[Path, tuple[int, int]],
    base: Path | None,
    root: Path,
) -> dict[str, Any]:
    image = find_image(annotation, images, where)
    image_id, file_name = coco_id(annotation["image_id"]), image.get("file_name")
    if not isinstance(file_name, str) or not file_name:
        raise BadRowError(f"{where}: expected text as 'file_name' of image {image_id}, got {file_name!r}; fix it")
    file = named_file(folder, file_name)
    if file not in sizes:
        sizes[file] = upright_size({"path": str(file)}, f"{where}: image {image_id}")
        note_outside(file, root, where)
    height, width = sizes[file]
    check_declared_size(image, height, width, where, file)
    field = "sentences" if annotation.get("sentences") else "sentence"
    sentences = read_sentences(annotation[field], f"{where}: '{field}'")
    no_target = read_flag(annotation.get("no_target"), f"{where}: 'no_target'")
    if annotation.get("id") is None:
        raise BadRowError(f"{where}: expected an 'id', got nothing; add a unique id to each annotation")
    ref_id = read_id(annotation["id"], -1, f"{where}: 'id'")
    if no_target:
        mask = unite_masks([], height, width)
    else:
        label = f"{where}: 'segmentation'"
        find_file = mask_finder(folder, root, label)
        mask = read_mask(annotation.get("segmentation"), height, width, label, find_file=find_file)
    name, number = file_name, read_id(image_id, text_id(file_name), f"{where}: 'image_id'")
    if base is not None:
        name = Path(os.path.relpath(file, base)).as_posix()
        number = text_id(name)
    return make_row(
        image=str(file),
        sentences=sentences,
        mask=mask,
        ref_id=ref_id,
        ann_ids=[] if no_target else [ref_id],
        image_id=number,
        category_id=read_id(annotation.get("category_id"), -1, f"{where}: 'category_id'"),
        split=split,
        dataset=dataset,
        file_name=name,
    )


def check_declared_size(image: Mapping[str, Any], height: int, width: int, where: str, file: Path) -> None:
    """Raise a BadRowError if the JSON declares another size than the file has; a missing size is accepted."""
    declared = []
    for name, actual in (("height", height), ("width", width)):
        value = image.get(name)
        if value is not None and (isinstance(value, bool) or not isinstance(value, (int, float))):
            raise BadRowError(
                f"{where}: expected a number as '{name}' of image {image['id']!r:.60}, got {value!r:.40}; fix it"
            )
        declared.append(actual if value is None else value)
    if declared != [height, width]:
        turned = " after applying its EXIF orientation" if declared == [width, height] else ""
        raise BadRowError(
            f"{where}: expected image {image['id']!r:.60} of {declared[1]}x{declared[0]} pixels as in the JSON, got "
            f"{file} of {width}x{height} pixels{turned}; annotate the image as it is, or fix the JSON",
            "mask_malformed",
        )


def _base(file: str) -> Path:
    """Return the folder of a templated dataset: flowers for flowers/{split}.json and flowers/{split}/a.json."""
    return Path(os.path.abspath(f"{file.split(PLACEHOLDER)[0]}x")).parent


def coco_id(value: Any) -> int | str | None:
    """Return an id so that 7, 7.0 and "7" are the same, as exporters mean them; None if it is not an id."""
    value = as_integer(value)
    return value if isinstance(value, (int, str)) and not isinstance(value, bool) else None
