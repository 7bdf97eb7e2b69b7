"""Reader for a folder of images with a metadata.jsonl, as in the imagefolder format of `datasets`.

<folder>/train/metadata.jsonl        {"file_name": "0001.jpg", "sentence": "the left rose", "mask": "masks/0001.png"}
<folder>/train/0001.jpg              ...
<folder>/val/metadata.jsonl          ...

Without subfolders, a single metadata.jsonl is next to the images, and its lines may have a field "split".
"""

import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import datasets

from ..errors import BadRowError, BadRows, join_names, reject
from ..fields import read_flag, read_id, read_mask, read_sentences, text_id, upright_size
from ..masks import unite_masks
from ..schema import make_row, to_dataset
from .registry import DatasetReader, Source, dataset_folder, dataset_path

METADATA = "metadata.jsonl"


class FolderReader(DatasetReader):
    """Reads folders with metadata.jsonl, or with one subfolder per split that contains it."""

    name = "folder"
    accepts = "a folder with metadata.jsonl"

    def detect(self, source: Source) -> bool:
        path = dataset_path(source)
        return path is not None and ((path / METADATA).is_file() or any(path.glob(f"*/{METADATA}")))

    def splits(self, source: Source) -> Iterable[str]:
        return folder_splits(dataset_folder(source))

    def load(self, source: Source, split: str, bad_rows: BadRows | None) -> datasets.Dataset:
        return load_folder(dataset_folder(source), split, bad_rows=bad_rows)


def load_folder(
    folder: str | os.PathLike[str], split: str | None = None, *, bad_rows: BadRows | None = None
) -> datasets.Dataset:
    """Load one split of a folder with metadata.jsonl, one row per line, with the columns `FEATURES`.

    A line has `file_name` (of the image, relative to metadata.jsonl), `sentence` or `sentences`, and `mask`: a PNG's
    file name (non-zero pixels are foreground), polygons in pixels, or an RLE; with `"no_target": true` it needs no
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
    lines, splits = [], []
    for file, default in _metadata_files(Path(folder)):
        for line in _lines(file, bad_rows):
            name = str(line[2].get("split", default))
            splits.append(name)
            lines.append((*line, name))
    split = _select_split(split, splits, Path(folder))
    rows, seen, sizes = [], {}, {}
    for file, number, line, name in lines:
        if name != split:
            continue
        where = f"{file} line {number}"
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
    found = {
        str(line.get("split", default))
        for file, default in _metadata_files(Path(folder))
        for _, _, line in _lines(file, unread)
    }
    return sorted(found)


def _metadata_files(folder: Path) -> list[tuple[Path, str]]:
    """Return every metadata.jsonl, with the split of lines that have no field "split"."""
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: no such folder; pass one that has {METADATA} or train/{METADATA}")
    files = [(folder / METADATA, "train")] if (folder / METADATA).is_file() else []
    files += [(file, file.parent.name) for file in sorted(folder.glob(f"*/{METADATA}"))]
    if not files:
        raise FileNotFoundError(f"{folder}: no {METADATA} in it or in a subfolder; write one line per target")
    return files


def _lines(file: Path, bad_rows: BadRows | None) -> Iterable[tuple[Path, int, dict]]:
    try:
        text = file.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{file}: expected UTF-8 text, got other data ({error.reason} at byte {error.start}); save it as UTF-8"
        ) from None
    # Not splitlines(): JSON strings may contain the other line separators of Unicode unescaped.
    for number, content in enumerate(text.split("\n"), start=1):
        if not content.strip():
            continue
        try:
            line = json.loads(content)
        except ValueError as error:
            found = f"unreadable text ({error})"
        else:
            if isinstance(line, dict):
                yield file, number, line
                continue
            found = f"a {type(line).__name__}"
        reject(BadRowError(f"{file} line {number}: expected a JSON object, got {found}; fix the line"), bad_rows)


def _select_split(split: str | None, splits: list[str], folder: Path) -> str:
    found = sorted(set(splits))
    if split is None and len(found) == 1:
        return found[0]
    if split not in found:
        problem = "expected split=" if split is None else f"no split '{split}', expected"
        raise ValueError(
            f"{folder}: {problem} one of {join_names(found)}" + ("" if found else "; no line of it is readable")
        )
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
    image = folder / line["file_name"]
    if image not in sizes:
        sizes[image] = upright_size({"path": str(image)}, f"{where}: 'file_name'")
    height, width = sizes[image]
    sentences = read_sentences(line[sentence], f"{where}: '{sentence}'")
    ref_id = read_id(line.get("ref_id"), number, f"{where}: 'ref_id'")
    ann_ids = [] if no_target else [read_id(line.get("ann_id"), ref_id, f"{where}: 'ann_id'")]
    if no_target:
        mask = unite_masks([], height, width)
    else:
        mask = read_mask(
            line[mask_field],
            height,
            width,
            f"{where}: '{mask_field}'",
            find_file=lambda file: os.path.abspath(folder / file),
        )
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
