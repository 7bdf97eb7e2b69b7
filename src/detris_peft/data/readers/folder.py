"""Reader for a folder of images with a metadata.jsonl, as in the imagefolder format of `datasets`.

<folder>/train/metadata.jsonl        {"file_name": "0001.jpg", "sentence": "the left rose", "mask": "masks/0001.png"}
<folder>/train/0001.jpg              ...
<folder>/val/metadata.jsonl          ...

Without subfolders, a single metadata.jsonl is next to the images, and its lines may have a field "split". A file that
holds one JSON array of such objects is read too, also under the name metadata.json.
"""

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import datasets

from ...errors import check_path
from ...safe_loading import parse_json
from ..errors import BadRowError, BadRows, join_names, reject
from ..fields import read_flag, read_id, read_mask, read_sentences, text_id, upright_size
from ..masks import unite_masks
from ..schema import make_row, to_dataset
from .paths import mask_finder, named_file, note_outside
from .registry import DatasetReader, Source, dataset_folder, dataset_path

METADATA = "metadata.jsonl"
_NAMES = (METADATA, "metadata.json")  # the first that a folder has is read
_TABLE = "metadata.csv"


class FolderReader(DatasetReader):
    """Reads folders with metadata.jsonl, or with one subfolder per split that contains it."""

    name = "folder"
    accepts = "a folder with metadata.jsonl"

    def detect(self, source: Source) -> bool:
        path = dataset_path(source)
        if path is None or not path.is_dir():
            return False
        # A table is read by `datasets` if a column mapping says what its columns are.
        names = _NAMES if source.columns else (*_NAMES, _TABLE)
        return any((path / name).is_file() or any(path.glob(f"*/{name}")) for name in names)

    def splits(self, source: Source) -> Iterable[str]:
        return folder_splits(dataset_folder(source))

    def load(self, source: Source, split: str, bad_rows: BadRows | None) -> datasets.Dataset:
        return load_folder(dataset_folder(source), split, bad_rows=bad_rows)


def load_folder(
    folder: str | os.PathLike[str], split: str | None = None, *, bad_rows: BadRows | None = None
) -> datasets.Dataset:
    """Load one split of a folder with metadata.jsonl, one row per line, with the columns `FEATURES`.

    A line has `file_name` (of the image, relative to metadata.jsonl), `sentence` or `sentences`, and `mask`: a PNG's
    file name (black is background), polygons in pixels, or an RLE; with `"no_target": true` it needs no
    mask. With `mask_file_name` instead of `mask`, `datasets` reads the PNG as an image. Optional fields are `split`,
    `ref_id` (by default the line number), `ann_id`, `image_id` and `category_id`.

    Args:
        folder: folder with metadata.jsonl, or with one subfolder per split that contains it.
        split: "train", "val", ...; may be None if the folder has only one split.
        bad_rows: collects invalid lines; None raises the first.

    Returns:
        An in-memory `datasets.Dataset`; images are decoded when a row is read.

    Raises:
        FileNotFoundError: no metadata.jsonl was found.
        ValueError: the split is unknown, or the file is not text. A `BadRowError` if a line is invalid: it names
            file, line and field.
    """
    check_path("folder", folder)
    lines, splits = [], []
    for file, default in _metadata_files(Path(folder)):
        for number, line in _lines(file, bad_rows):
            name = line.get("split") or default
            splits.append(name)
            lines.append((file, number, line, name))
    split = _select_split(split, splits, Path(folder))
    rows, seen, sizes = [], {}, {}
    for file, number, line, name in lines:
        if name != split:
            continue
        where = _where(file, number)
        try:
            row = _row(line, file.parent, Path(folder), split, number, where, sizes)
            if row["ref_id"] in seen:
                raise BadRowError(
                    f"{where}: expected a unique 'ref_id', got {row['ref_id']}, used by {seen[row['ref_id']]}; change "
                    "one of the two",
                    "duplicate_id",
                )
        except BadRowError as error:
            reject(error, bad_rows)
            continue
        seen[row["ref_id"]] = where
        rows.append(row)
    return to_dataset(rows)


def folder_splits(folder: str | os.PathLike[str]) -> list[str]:
    """Return the splits of a folder with metadata.jsonl; errors as for `load_folder`."""
    unread = BadRows()
    files = _metadata_files(Path(folder))
    return sorted({line.get("split") or default for file, default in files for _, line in _lines(file, unread)})


def _metadata_files(folder: Path) -> list[tuple[Path, str]]:
    """Return every metadata.jsonl, with the split of lines that have no field "split"."""
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: no such folder; pass one that has {METADATA} or train/{METADATA}")
    folders = [folder, *sorted(path for path in folder.iterdir() if path.is_dir())]
    found = [next((path / name for name in _NAMES if (path / name).is_file()), None) for path in folders]
    files = [(file, "train" if file.parent == folder else file.parent.name) for file in found if file]
    table = next((path / _TABLE for path in folders if (path / _TABLE).is_file()), None)
    if not files and table:
        raise ValueError(
            f"{table}: expected {METADATA}, got CSV; write one JSON object per line, or name its columns as in "
            "--columns sentences=text,mask=polygon"
        )
    if not files:
        raise FileNotFoundError(f"{folder}: no {METADATA} in it or in a subfolder; write one line per target")
    return files


def _where(file: Path, number: int) -> str:
    return f"{file} line {number}"


def _lines(file: Path, bad_rows: BadRows | None) -> Iterable[tuple[int, dict]]:
    """Yield the objects of a file with their numbers: of the line, or of the item in a JSON array."""
    try:
        text = file.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{file}: expected UTF-8 text, got other data ({error.reason} at byte {error.start}); save it as UTF-8"
        ) from None
    if text.lstrip().startswith("[") and text.rstrip().endswith("]"):
        items: Iterable[Any] = parse_json(text, str(file))
    else:
        # Not splitlines(): JSON strings may contain the other line separators of Unicode unescaped.
        items = text.split("\n")
    for number, item in enumerate(items, start=1):
        if isinstance(item, str) and not item.strip():
            continue
        try:
            yield number, _object(item, _where(file, number))
        except BadRowError as error:
            reject(error, bad_rows)


def _object(item: Any, where: str) -> dict:
    """Return the JSON object of a line or item.

    Raises:
        BadRowError: it is not an object, or its split is not text.
    """
    if isinstance(item, str):
        try:
            item = parse_json(item, where)
        except ValueError as error:
            message = str(error).replace("expected JSON", "expected a JSON object")
            raise BadRowError(message.replace("copy or download it again", "fix the line")) from None
    if not isinstance(item, dict):
        raise BadRowError(f"{where}: expected a JSON object, got a {type(item).__name__}; fix the line")
    if not isinstance(item.get("split"), (str, type(None))):
        raise BadRowError(f"{where}: expected text as 'split', got {item['split']!r:.40}; fix it")
    return item


def _select_split(split: str | None, splits: list[str], folder: Path) -> str:
    found = sorted(set(splits))
    if split is None and len(found) == 1:
        return found[0]
    if not found:
        raise ValueError(f"{folder}: expected at least one readable row, got none; add rows, or fix its lines")
    if split not in found:
        problem = "expected split=" if split is None else f"no split '{split}', expected"
        raise ValueError(f"{folder}: {problem} one of {join_names(found)}")
    return str(split)


def _first_given(line: Mapping[str, Any], first: str, second: str) -> str:
    return second if line.get(first) is None and line.get(second) is not None else first


def _row(
    line: Mapping[str, Any],
    folder: Path,
    root: Path,
    split: str,
    number: int,
    where: str,
    sizes: dict[Path, tuple[int, int]],
) -> dict[str, Any]:
    sentence = _first_given(line, "sentences", "sentence")
    mask_field = _first_given(line, "mask", "mask_file_name")
    no_target = read_flag(line.get("no_target"), f"{where}: 'no_target'")
    for name in ("file_name", sentence) if no_target else ("file_name", sentence, mask_field):
        if line.get(name) is None:
            raise BadRowError(f"{where}: expected '{name}', got {join_names(sorted(map(str, line)))}; add '{name}'")
    if not isinstance(line["file_name"], str):
        raise BadRowError(f"{where}: expected text as 'file_name', got {line['file_name']!r}; fix it")
    image = named_file(folder, line["file_name"])
    if image not in sizes:
        sizes[image] = upright_size({"path": str(image)}, f"{where}: 'file_name'")
        note_outside(image, root, f"{where}: 'file_name'")
    height, width = sizes[image]
    sentences = read_sentences(line[sentence], f"{where}: '{sentence}'")
    ref_id = read_id(line.get("ref_id"), number, f"{where}: 'ref_id'")
    ann_ids = [] if no_target else [read_id(line.get("ann_id"), ref_id, f"{where}: 'ann_id'")]
    if no_target:
        mask = unite_masks([], height, width)
    else:
        label = f"{where}: '{mask_field}'"
        mask = read_mask(line[mask_field], height, width, label, find_file=mask_finder(folder, root, label))
    name = image.relative_to(root).as_posix() if image.is_relative_to(root) else image.as_posix()
    return make_row(
        image=os.path.abspath(image),
        sentences=sentences,
        mask=mask,
        ref_id=ref_id,
        ann_ids=ann_ids,
        image_id=read_id(line.get("image_id"), text_id(name), f"{where}: 'image_id'"),
        category_id=read_id(line.get("category_id"), -1, f"{where}: 'category_id'"),
        split=split,
        dataset=Path(os.path.abspath(root)).name,
        file_name=name,
    )
