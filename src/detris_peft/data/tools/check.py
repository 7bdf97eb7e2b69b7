"""Find errors in a dataset before training on it; implements `detris data check`."""

from __future__ import annotations

import hashlib
import itertools
import pickle
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import datasets

from ...defaults import MAX_TEXT_LENGTH
from ...errors import one_line
from ...progress import progress_bar
from ..errors import BadRowError, BadRows, MissingImageError, NoSentencesError, collect_notices, join_names
from ..masks import mask_area
from ..readers.labels.reader import LabelReader
from ..readers.refer import PUBLISHED_REFERENCES
from ..readers.row_cache import share_rows
from ..schema import open_image
from ..sources import DataSource
from .report import Finding, SplitReport

# The defaults of `--train_split` and `--val_split` of `detris train`.
_TRAINING_SPLITS = ("train", "val")


@share_rows()
def check_data(
    source: DataSource,
    splits: Sequence[str] | None = None,
    *,
    count_tokens: Callable[[list[str]], list[int]] | None = None,
    max_text_length: int = MAX_TEXT_LENGTH,
    is_visible: Callable[[Mapping[str, Any]], bool] | None = None,
    images: bool = True,
    num_workers: int = 2,
    progress: bool = True,
) -> list[SplitReport]:
    """Read every row of the splits, decode every image once, and compare the splits with each other.

    Args:
        source: the dataset; not a stream.
        splits: the splits to check; by default all.
        count_tokens: returns the number of tokens of each sentence, start and end token included. None counts words,
            each of which is at least one token.
        max_text_length: number of tokens that the text encoder reads.
        is_visible: returns whether a row's `mask` is still visible at the model's size; None skips this check.
        images: open image files. If False, damaged files and duplicate images are not detected.
        num_workers: threads that decode images; Pillow releases the GIL while decoding.
        progress: show a progress bar.

    Returns:
        One report per split. Errors in a split are reported, not raised. If all splits are checked, also one for each
        split that training needs by default and the dataset lacks, with a notice.

    Raises:
        FileNotFoundError, ValueError: the dataset does not exist, is not supported, or has no rows.
    """
    if source.streaming:
        raise ValueError("--streaming: expected a dataset with random access, got a stream; omit --streaming")
    reports: list[SplitReport] = []
    for split in dict.fromkeys(splits or source.splits()):
        try:
            report = _load(split, source)
        except (OSError, ValueError, pickle.UnpicklingError) as error:
            unreadable = Finding("split_unreadable", split, one_line(error))
            reports.append(SplitReport(split, errors=[unreadable]))
            continue
        rows = report.rows
        assert rows is not None
        report.notices += _find_long_sentences(split, rows, count_tokens, max_text_length)
        if is_visible is not None:
            report.errors += _find_vanishing_masks(split, rows, is_visible)
        _check_images(report, rows, images, num_workers, progress)
        # A line that is not valid JSON has no split, so the reader of each split reports it.
        reported = {finding.message for other in reports for finding in other.errors}
        report.errors = [finding for finding in report.errors if finding.message not in reported]
        reports.append(report)
    _compare(reports, source)
    if not splits:
        reports += _missing_splits([report.split for report in reports])
    return reports


def _load(split: str, source: DataSource) -> SplitReport:
    """Load a split, or its objects if none of them has a sentence, and count them."""
    bad_rows, advice = BadRows(), None
    try:
        with collect_notices() as notices:
            rows = source.load(split, bad_rows)
    except NoSentencesError as error:
        reader = source.reader()
        if not isinstance(reader, LabelReader):
            raise
        bad_rows, advice = BadRows(), one_line(error)
        with collect_notices() as notices:
            rows = reader.load_objects(source, split, bad_rows)
    assert isinstance(rows, datasets.Dataset)  # not a stream, as `streaming` is rejected in `check_data`
    report = _count(split, rows, bad_rows, source)
    report.notices += [Finding(kind, split, message) for kind, message in notices]
    if advice is not None:
        report.objects, report.references, report.sentences = report.references, 0, 0
        report.notices.append(Finding("no_sentences", split, advice, report.objects))
    return report


def file_checksums(source: DataSource) -> dict[str, str]:
    """Return the SHA-256 of the dataset's annotation files, keyed by name, to compare with those of others."""
    checksums = {}
    for file in source.reader().annotation_files(source):
        digest = hashlib.sha256()
        with open(file, "rb") as opened:
            while chunk := opened.read(1 << 20):
                digest.update(chunk)
        checksums[str(file)] = digest.hexdigest()
    return checksums


def _missing_splits(found: Sequence[str]) -> Iterator[SplitReport]:
    """Yield a report without rows for each split that training needs and the dataset lacks."""
    for split in _TRAINING_SPLITS:
        if split not in found:
            message = (
                f"no split '{split}', which `detris train` needs: add it, make splits with `detris data split`, or "
                f"pass --{split}_split with one of {join_names(found)}"
            )
            yield SplitReport(split, notices=[Finding("split_missing", split, message, 0)])


def _count(split: str, rows: datasets.Dataset, bad_rows: BadRows, source: DataSource) -> SplitReport:
    names = set(rows["dataset"])
    report = SplitReport(
        split,
        references=len(rows),
        sentences=sum(map(len, rows["sentences"])),
        no_target=sum(rows["no_target"]),
        errors=[Finding(error.kind, split, str(error)) for error in bad_rows],
        rows=rows,
    )
    if source.dataset == "mixed" and rows.info.description:  # its reader reports leaks there
        report.notices.append(Finding("leak", split, rows.info.description, 0))
    found = len(rows) + len(bad_rows)
    if not found:
        report.errors.append(Finding("split_empty", split, "expected at least one row, got none; add rows", 0))
    if len(names) == 1:
        report.published = PUBLISHED_REFERENCES.get((names.pop(), source.split_by), {}).get(split)
    if report.published not in (None, found):
        message = (
            f"expected {report.published:,} references as published, got {found:,}; the files differ from those of "
            "the papers"
        )
        report.notices.append(Finding("count_differs", split, message, abs(found - report.published)))
    return report


def _find_long_sentences(
    split: str, rows: datasets.Dataset, count_tokens: Callable[[list[str]], list[int]] | None, limit: int
) -> Iterator[Finding]:
    indices = [index for index, sentences in enumerate(rows["sentences"]) for _ in sentences]
    texts = [sentence for sentences in rows["sentences"] for sentence in sentences]
    if count_tokens is None:
        counts: Iterable[int] = (len(text.split()) + 2 for text in texts)
    else:
        chunks = (texts[start : start + 1000] for start in range(0, len(texts), 1000))
        counts = itertools.chain.from_iterable(map(count_tokens, chunks))
    at_least = "" if count_tokens else "at least "
    ref_ids = rows["ref_id"]
    for index, text, count in zip(indices, texts, counts, strict=True):
        if count > limit:
            message = (
                f"reference {ref_ids[index]}: expected at most {limit} tokens, got {at_least}{count}; the rest is cut "
                f"off: {text!r}"
            )
            yield Finding("sentence_too_long", split, message)


def _find_vanishing_masks(
    split: str, rows: datasets.Dataset, is_visible: Callable[[Mapping[str, Any]], bool]
) -> Iterator[Finding]:
    columns = (rows[name] for name in ("mask", "no_target", "ref_id", "file_name"))
    for mask, no_target, ref_id, file_name in zip(*columns, strict=True):
        if not no_target and not is_visible(mask):
            message = (
                f"{file_name}: expected a mask that is visible at the model's size, got reference {ref_id} with "
                f"{mask_area(mask)} pixels of which none remain; enlarge the mask, crop the image, or remove the row"
            )
            yield Finding("mask_empty", split, message)


def _check_images(report: SplitReport, rows: datasets.Dataset, decode: bool, num_workers: int, progress: bool) -> None:
    """Add image count, image identities, and errors and notices about images to the report."""
    rows = rows.cast_column("image", datasets.Image(decode=False))
    names, ref_ids = rows["file_name"], rows["ref_id"]
    rows_by_image = _rows_by_image(rows)
    report.images = len(rows_by_image)
    first_rows = {key: indices[0] for key, indices in rows_by_image.items()}
    opened: Iterable[tuple[str, tuple[str | None, tuple[int, int] | BadRowError | None]]]
    if decode:
        images = ((key, rows[index]["image"]) for key, index in first_rows.items())
        bar = progress_bar(images, f"{report.split}: images", len(first_rows), unit="", disable=not progress)
        opened = _open_all(bar, num_workers)
    else:
        opened = ((key, (key, None)) for key in first_rows)
    masks = rows.select_columns(["mask"])
    names_by_identity: dict[str, list[str]] = defaultdict(list)
    for key, (identity, size) in opened:
        indices, name = rows_by_image[key], names[first_rows[key]]
        if identity is not None:
            names_by_identity[identity].append(name)
            report.identities.setdefault(identity, (name, first_rows[key]))
        if isinstance(size, BadRowError):
            references = _references([ref_ids[index] for index in indices])
            report.errors.append(Finding(size.kind, report.split, f"{size} ({references})", len(indices)))
        elif size is not None:
            for index in indices:
                if (mask_size := tuple(masks[index]["mask"]["size"])) != size:
                    message = (
                        f"{name}: expected a mask of the image's size {size[1]}x{size[0]}, got {mask_size[1]}x"
                        f"{mask_size[0]} for reference {ref_ids[index]}; use the images that were annotated"
                    )
                    report.errors.append(Finding("mask_malformed", report.split, message))
    for duplicates in names_by_identity.values():
        if len(duplicates) > 1:
            more = f" and {len(duplicates) - 2} more" if len(duplicates) > 2 else ""
            message = f"{duplicates[0]}, {duplicates[1]}{more}: duplicate images under different names"
            report.notices.append(Finding("same_image", report.split, message, len(duplicates)))


def _rows_by_image(rows: datasets.Dataset) -> dict[str, list[int]]:
    """Return the row indices of each image, keyed by its path, or by a digest if the row holds the image's bytes."""
    rows_by_image: dict[str, list[int]] = defaultdict(list)
    index = 0
    for table in rows.select_columns(["image"]).with_format("arrow").iter(batch_size=100):
        for image in table["image"].to_pylist():  # type: ignore[index]  a pyarrow table
            key = image["path"] if image["bytes"] is None else _digest(image["bytes"])
            rows_by_image[key].append(index)
            index += 1
    return rows_by_image


def _open_all(
    images: Iterable[tuple[str, dict[str, Any]]], num_workers: int
) -> Iterator[tuple[str, tuple[str | None, tuple[int, int] | BadRowError]]]:
    """Yield each image's key with the result of `_open`; only a few images are in memory at a time."""
    images = iter(images)
    with ThreadPoolExecutor(max(num_workers, 1)) as threads:
        while batch := list(itertools.islice(images, 16 * max(num_workers, 1))):
            yield from zip((key for key, _ in batch), threads.map(_open, [image for _, image in batch]), strict=True)


def _open(image: dict[str, Any]) -> tuple[str | None, tuple[int, int] | BadRowError]:
    """Return a digest of the image's bytes, and its (height, width) or the error."""
    digest = None
    try:
        data = image["bytes"] if image["bytes"] is not None else Path(image["path"]).read_bytes()
        digest = _digest(data)
        decoded = open_image({"path": image["path"], "bytes": data})
    except BadRowError as error:
        return digest, error
    except FileNotFoundError:
        return None, MissingImageError(f"{image['path']}: the image is missing; add the file")
    except (OSError, ValueError) as error:  # a folder, or a file that cannot be read or decoded
        return digest, BadRowError(one_line(error), "image_damaged")
    return digest, (decoded.height, decoded.width)


def _digest(data: bytes) -> str:
    return hashlib.blake2b(data, digest_size=16).hexdigest()


def _compare(reports: Sequence[SplitReport], source: DataSource) -> None:
    """Add images that are in two splits to the report of the later split."""
    design = source.may_leak()
    for first, second in itertools.combinations(reports, 2):
        shared = [identity for identity in second.identities if identity in first.identities]
        if not shared:
            continue
        if design or _are_test_splits(first.split, second.split):
            reason = design or "neither is used for training or model selection"
            message = f"{len(shared):,} images are also in {first.split}, by design: {reason}"
            second.notices.append(Finding("shared_image", second.split, message, len(shared)))
            continue
        for identity in shared:
            (name, _), (other_name, row) = second.identities[identity], first.identities[identity]
            assert first.rows is not None
            message = (
                f"{name}: the image is also in {first.split}{'' if name == other_name else f' as {other_name}'} "
                f"(reference {first.rows['ref_id'][row]}); this leaks data: remove it from one split"
            )
            second.errors.append(Finding("shared_image", second.split, message))


def _are_test_splits(*splits: str) -> bool:
    return all(split.startswith("test") for split in splits)


def _references(ref_ids: Sequence[int]) -> str:
    more = f" and {len(ref_ids) - 1} more" if len(ref_ids) > 1 else ""
    return f"reference {ref_ids[0]}{more}"
