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
from ..errors import BadRowError, BadRows, join_names, notice, reject
from ..fields import read_flag, read_id, read_mask, read_sentences, text_id, upright_size
from ..masks import unite_masks
from ..schema import make_row, to_dataset
from .paths import mask_finder, named_file, note_outside
from .registry import DatasetReader, Source, dataset_folder, dataset_path

METADATA = "metadata.jsonl"
_NAMES = (METADATA, "metadata.json")  # the first that a folder has is read
_TABLE = "metadata.csv"
BAD_MASK = "bad_mask"  # field of a line whose mask a person has flagged


class FolderReader(DatasetReader):
    """Reads folders with metadata.jsonl, or with one subfolder per split that contains it."""

    name = "folder"
    title = "metadata.jsonl"
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
    `ref_id` (by default the line number), `ann_id`, `image_id` and `category_id`. A line with `"bad_mask": true`, as
    `detris data review` writes it, is skipped with a notice.

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
    for file, default in metadata_files(Path(folder)):
        for number, line in metadata_lines(file, bad_rows):
            name = line.get("split") or default
            splits.append(name)
            lines.append((file, number, line, name))
    split = _select_split(split, splits, Path(folder))
    rows, seen, sizes = [], {}, {}
    for file, number, line, name in lines:
        if name != split:
            continue
        where = line_name(file, number)
        try:
            if read_flag(line.get(BAD_MASK), f"{where}: '{BAD_MASK}'"):
                notice(BAD_MASK, f"{where}: not used, because '{BAD_MASK}' is true; to use it, remove the field")
                continue
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
    invalid = BadRows()
    files = metadata_files(Path(folder))
    found = {line.get("split") or default for file, default in files for _, line in metadata_lines(file, invalid)}
    if invalid and not found:
        raise invalid[0]
    return sorted(found)


def metadata_files(folder: Path) -> list[tuple[Path, str]]:
    """Return every metadata.jsonl, with the split of lines that have no field "split"."""
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: no such folder; pass one that has {METADATA} or train/{METADATA}")
    # Hidden folders are skipped: one of them may hold a metadata.jsonl that `detris data review` is writing.
    subfolders = (path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
    folders = [folder, *sorted(subfolders)]
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


def line_name(file: Path, number: int) -> str:
    """Return the name of a line in messages."""
    return f"{file} line {number}"


def metadata_lines(file: Path, bad_rows: BadRows | None) -> Iterable[tuple[int, dict]]:
    """Yield the objects of a metadata file with their numbers: of the line, or of the item in a JSON array."""
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
            yield number, read_object(item, line_name(file, number))
        except BadRowError as error:
            reject(error, bad_rows)


def read_object(item: Any, where: str) -> dict:
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


def sentence_field(line: Mapping[str, Any]) -> str:
    """Return the name of the field that holds the sentences of a line: "sentences" unless only "sentence" is given."""
    return _first_given(line, "sentences", "sentence")


def read_target(
    line: Mapping[str, Any], folder: Path, root: Path, where: str, sizes: dict[Path, tuple[int, int]] | None = None
) -> tuple[Path, dict[str, Any]]:
    """Return the image file of a line, and its mask as RLE, without foreground if there is no target.

    Args:
        line: the object of the line.
        folder: folder of the metadata.jsonl, to which the names are relative.
        root: folder of the dataset; a file outside of it is noticed.
        where: prefix of the error message.
        sizes: sizes (H, W) of images whose headers were read already; new ones are added.

    Raises:
        BadRowError: the image or the mask is missing, or cannot be read.
    """
    sizes = {} if sizes is None else sizes
    mask_field = _first_given(line, "mask", "mask_file_name")
    no_target = read_flag(line.get("no_target"), f"{where}: 'no_target'")
    _require(line, ("file_name",) if no_target else ("file_name", mask_field), where)
    if not isinstance(line["file_name"], str):
        raise BadRowError(f"{where}: expected text as 'file_name', got {line['file_name']!r}; fix it")
    image = named_file(folder, line["file_name"])
    if image not in sizes:
        sizes[image] = upright_size({"path": str(image)}, f"{where}: 'file_name'")
        note_outside(image, root, f"{where}: 'file_name'")
    height, width = sizes[image]
    if no_target:
        return image, unite_masks([], height, width)
    label = f"{where}: '{mask_field}'"
    return image, read_mask(line[mask_field], height, width, label, find_file=mask_finder(folder, root, label))


def _first_given(line: Mapping[str, Any], first: str, second: str) -> str:
    return second if line.get(first) is None and line.get(second) is not None else first


def _require(line: Mapping[str, Any], names: Iterable[str], where: str) -> None:
    for name in names:
        if line.get(name) is None:
            raise BadRowError(f"{where}: expected '{name}', got {join_names(sorted(map(str, line)))}; add '{name}'")


def _row(
    line: Mapping[str, Any],
    folder: Path,
    root: Path,
    split: str,
    number: int,
    where: str,
    sizes: dict[Path, tuple[int, int]],
) -> dict[str, Any]:
    sentence = sentence_field(line)
    _require(line, ("file_name", sentence), where)
    sentences = read_sentences(line[sentence], f"{where}: '{sentence}'")
    image, mask = read_target(line, folder, root, where, sizes)
    ref_id = read_id(line.get("ref_id"), number, f"{where}: 'ref_id'")
    ann_ids = [] if line.get("no_target") else [read_id(line.get("ann_id"), ref_id, f"{where}: 'ann_id'")]
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
