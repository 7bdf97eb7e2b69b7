"""A folder of images with a metadata.jsonl, laid out as `datasets`' imagefolder wants it.

<folder>/train/metadata.jsonl        {"file_name": "0001.jpg", "sentence": "the left rose", "mask": "masks/0001.png"}
<folder>/train/0001.jpg              ...
<folder>/val/metadata.jsonl          ...

Without sub-folders, one metadata.jsonl beside the images, whose lines may name their "split".
"""

import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import datasets

from ..errors import BadRowError, BadRows, reject
from ..fields import read_id, read_mask, read_sentences, sentence_ids, text_id, upright_size
from ..masks import unite_masks
from ..schema import FEATURES

METADATA = "metadata.jsonl"


def load_folder(
    folder: str | os.PathLike[str], split: str | None = None, *, bad_rows: BadRows | None = None
) -> datasets.Dataset:
    """One split of a folder with metadata.jsonl, one row a line; the columns are `FEATURES`.

    A line needs `file_name` (of the image, from metadata.jsonl's own folder), `sentence` or `sentences`, and `mask`:
    a PNG's file name (what is not black is the target), polygons in pixels, or an RLE; a line with
    `"no_target": true` needs none. `mask_file_name` in place of `mask` makes `datasets` see the PNG as a image. A
    line may hold `split`, `ref_id`, `ann_id`, `image_id` and `category_id`; without `ref_id`, the line's number is it.

    Args:
        folder: holds metadata.jsonl, or a sub-folder for each split that does.
        split: "train", "val", ...; None where there is only one.
        bad_rows: collects bad lines; None raises the first.

    Returns:
        An in-memory `datasets.Dataset`; images stay files until a row is read.

    Raises:
        FileNotFoundError: there is no metadata.jsonl.
        ValueError: the split is unknown, or the file is no text; as `BadRowError`, a line is bad: file, line and
            field are named.
    """
    lines, splits = [], []
    for file, default in _metadata_files(Path(folder)):
        for line in _lines(file, bad_rows):
            name = str(line[2].get("split", default))
            splits.append(name)
            lines.append((*line, name))
    split = _chosen(split, splits, Path(folder))
    rows, seen, sizes = [], {}, {}
    for file, number, line, name in lines:
        if name != split:
            continue
        where = f"{file} line {number}"
        try:
            row = _row(line, file.parent, Path(folder), split, number, where, sizes)
            if row["ref_id"] in seen:
                raise BadRowError(
                    f"{where}: 'ref_id' {row['ref_id']} was given to {seen[row['ref_id']]} already: give another",
                    "duplicate_id",
                )
        except BadRowError as error:
            reject(error, bad_rows)
            continue
        seen[row["ref_id"]] = where
        rows.append(row)
    return datasets.Dataset.from_dict({name: [row[name] for row in rows] for name in FEATURES}, features=FEATURES)


def folder_splits(folder: str | os.PathLike[str]) -> list[str]:
    """The splits of a folder with metadata.jsonl; raises as `load_folder` does for files that cannot be read."""
    unread = BadRows()
    found = {
        str(line.get("split", default))
        for file, default in _metadata_files(Path(folder))
        for _, _, line in _lines(file, unread)
    }
    return sorted(found)


def _metadata_files(folder: Path) -> list[tuple[Path, str]]:
    """Every metadata.jsonl, and the split of those of its lines that name none."""
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: no such folder: give the one that holds {METADATA} or train/{METADATA}")
    files = [(folder / METADATA, "train")] if (folder / METADATA).is_file() else []
    files += [(file, file.parent.name) for file in sorted(folder.glob(f"*/{METADATA}"))]
    if not files:
        raise FileNotFoundError(f"{folder}: no {METADATA} there, nor in a folder below: write one line a sentence")
    return files


def _lines(file: Path, bad_rows: BadRows | None) -> Iterable[tuple[Path, int, dict]]:
    try:
        text = file.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{file}: is not UTF-8 text ({error.reason} at byte {error.start}): save it as such"
        ) from None
    # Only line feeds end a line: JSON may hold the other line separators of Unicode as they are.
    for number, content in enumerate(text.split("\n"), start=1):
        if not content.strip():
            continue
        try:
            line = json.loads(content)
            if not isinstance(line, dict):
                raise ValueError("it is no {...}")
        except ValueError as error:
            reject(BadRowError(f"{file} line {number}: not readable as JSON ({error}): mend it"), bad_rows)
            continue
        yield file, number, line


def _chosen(split: str | None, splits: list[str], folder: Path) -> str:
    found = sorted(set(splits))
    if split is None and len(found) == 1:
        return found[0]
    if split not in found:
        asked = "pass split=" if split is None else f"no split '{split}'"
        raise ValueError(f"{folder}: {asked}: there are {', '.join(found) or 'none, no line is readable'}")
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
    mask = _first_given(line, "mask", "mask_file_name")
    no_target = line.get("no_target") or False
    if no_target is not True and no_target is not False:
        raise BadRowError(f"{where}: 'no_target' is {no_target!r}: it must be true or false")
    for name in ("file_name", sentence) if no_target else ("file_name", sentence, mask):
        if line.get(name) is None:
            has = ", ".join(sorted(map(str, line))) or "nothing"
            raise BadRowError(f"{where}: '{name}' is missing: the line has {has}")
    if not isinstance(line["file_name"], str):
        raise BadRowError(f"{where}: 'file_name' is {line['file_name']!r}: it must be text")
    image = folder / line["file_name"]
    if image not in sizes:
        sizes[image] = upright_size({"path": str(image)}, f"{where}: 'file_name'")
    height, width = sizes[image]
    sentences = read_sentences(line[sentence], f"{where}: '{sentence}'")
    ref_id = read_id(line.get("ref_id"), number, f"{where}: 'ref_id'")
    ann_id = -1 if no_target else read_id(line.get("ann_id"), ref_id, f"{where}: 'ann_id'")
    name = image.relative_to(root).as_posix() if image.is_relative_to(root) else image.as_posix()
    return {
        "image": os.path.abspath(image),
        "sentences": sentences,
        "mask": unite_masks([], height, width)
        if no_target
        else read_mask(
            line[mask], height, width, f"{where}: '{mask}'", find_file=lambda file: os.path.abspath(folder / file)
        ),
        "ref_id": ref_id,
        "ann_id": ann_id,
        "ann_ids": [] if no_target else [ann_id],
        "no_target": no_target,
        "image_id": read_id(line.get("image_id"), text_id(name), f"{where}: 'image_id'"),
        "sent_ids": sentence_ids(ref_id, len(sentences)),
        "category_id": read_id(line.get("category_id"), -1, f"{where}: 'category_id'"),
        "split": split,
        "dataset": Path(os.path.abspath(root)).name,
        "file_name": name,
    }
