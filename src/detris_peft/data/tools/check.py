"""What is wrong with a dataset, found before it costs a night: the work of `detris data check`."""

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
from tqdm.auto import tqdm

from ..errors import BadRowError, BadRows, MissingImageError
from ..masks import mask_area
from ..readers.refer import PUBLISHED_REFERENCES, SHARED_BY_DESIGN
from ..schema import open_image
from ..sources import DataSource
from .report import Finding, SplitReport


def check_data(
    source: DataSource,
    splits: Sequence[str] | None = None,
    *,
    count_tokens: Callable[[list[str]], list[int]] | None = None,
    max_text_length: int = 17,
    is_visible: Callable[[Mapping[str, Any]], bool] | None = None,
    images: bool = True,
    num_workers: int = 2,
    progress: bool = True,
) -> list[SplitReport]:
    """Read every row of the splits, decode every image once, and compare the splits with each other.

    Args:
        source: any but a stream.
        splits: by default all.
        count_tokens: sentences to their numbers of tokens, start and end included. None counts words, of which each
            is at least one token.
        max_text_length: L, the tokens that the text encoder reads.
        is_visible: whether anything is left of a row's `mask` at the model's size; None does not ask.
        images: False does not open images that are files: faults in them stay unseen, and one image under two
            names.
        num_workers: threads that decode; Pillow decodes without Python's lock.
        progress: show a bar.

    Raises:
        FileNotFoundError, ValueError: there is no such dataset. Whatever is wrong with a split is reported.
    """
    if source.streaming:
        raise ValueError("--streaming cannot be checked, it is read as it comes: leave it out")
    reports: list[SplitReport] = []
    for split in dict.fromkeys(splits or source.splits()):
        bad_rows = BadRows()
        try:
            rows = source.load(split, bad_rows)
        except (OSError, ValueError, pickle.UnpicklingError) as error:
            unreadable = Finding("split_unreadable", split, " ".join(str(error).split()))
            reports.append(SplitReport(split, errors=[unreadable]))
            continue
        assert isinstance(rows, datasets.Dataset)  # `streaming` was refused
        report = _count(split, rows, bad_rows, source)
        report.notices += _long_sentences(split, rows, count_tokens, max_text_length)
        if is_visible is not None:
            report.errors += _vanishing(split, rows, is_visible)
        _check_images(report, rows, images, num_workers, progress)
        # A line that is no JSON names no split: each split's reader meets it.
        told = {finding.message for other in reports for finding in other.errors}
        report.errors = [finding for finding in report.errors if finding.message not in told]
        reports.append(report)
    _compare(reports, source)
    return reports


def _count(split: str, rows: datasets.Dataset, bad_rows: BadRows, source: DataSource) -> SplitReport:
    sets = set(rows["dataset"])
    report = SplitReport(
        split,
        references=len(rows),
        sentences=sum(map(len, rows["sentences"])),
        no_target=sum(rows["no_target"]),
        errors=[Finding(error.kind, split, str(error)) for error in bad_rows],
        rows=rows,
    )
    if source.dataset == "mixed" and rows.info.description:  # what its reader says of its leaks
        report.notices.append(Finding("leak", split, rows.info.description, 0))
    found = len(rows) + len(bad_rows)
    if len(sets) == 1:
        report.published = PUBLISHED_REFERENCES.get((sets.pop(), source.split_by), {}).get(split)
    if report.published not in (None, found):
        message = f"{found:,} references, published are {report.published:,}: the files are not those of the papers"
        report.notices.append(Finding("count_differs", split, message, abs(found - report.published)))
    return report


def _long_sentences(
    split: str, rows: datasets.Dataset, count_tokens: Callable[[list[str]], list[int]] | None, limit: int
) -> Iterator[Finding]:
    place = [index for index, sentences in enumerate(rows["sentences"]) for _ in sentences]
    texts = [sentence for sentences in rows["sentences"] for sentence in sentences]
    if count_tokens is None:
        counts: Iterable[int] = (len(text.split()) + 2 for text in texts)
    else:
        chunks = (texts[start : start + 1000] for start in range(0, len(texts), 1000))
        counts = itertools.chain.from_iterable(map(count_tokens, chunks))
    least = "" if count_tokens else "at least "
    ref_ids = rows["ref_id"]
    for index, text, count in zip(place, texts, counts, strict=True):
        if count > limit:
            message = f"reference {ref_ids[index]}: {least}{count} tokens, the first {limit} are read: {text!r}"
            yield Finding("sentence_too_long", split, message)


def _vanishing(
    split: str, rows: datasets.Dataset, is_visible: Callable[[Mapping[str, Any]], bool]
) -> Iterator[Finding]:
    columns = (rows[name] for name in ("mask", "no_target", "ref_id", "file_name"))
    for mask, no_target, ref_id, file_name in zip(*columns, strict=True):
        if not no_target and not is_visible(mask):
            message = (
                f"{file_name}: the mask of reference {ref_id} has {mask_area(mask)} pixels, of which none is left at "
                "the model's size: draw it larger, cut the image to its surroundings, or remove it"
            )
            yield Finding("mask_empty", split, message)


def _check_images(report: SplitReport, rows: datasets.Dataset, decode: bool, num_workers: int, progress: bool) -> None:
    """Fill in what has to do with images."""
    rows = rows.cast_column("image", datasets.Image(decode=False))
    names, ref_ids = rows["file_name"], rows["ref_id"]
    users = _users(rows)
    report.images = len(users)
    firsts = {place: indices[0] for place, indices in users.items()}
    opened: Iterable[tuple[str, tuple[str | None, tuple[int, int] | BadRowError | None]]]
    if decode:
        images = ((place, rows[index]["image"]) for place, index in firsts.items())
        bar = tqdm(images, f"{report.split}: images", len(firsts), unit="", leave=False, disable=not progress)
        opened = _opened(bar, num_workers)
    else:
        opened = ((place, (place, None)) for place in firsts)
    masks = rows.select_columns(["mask"])
    same: dict[str, list[str]] = defaultdict(list)
    for place, (identity, size) in opened:
        indices, name = users[place], names[firsts[place]]
        if identity is not None:
            same[identity].append(name)
            report.identities.setdefault(identity, (name, firsts[place]))
        if isinstance(size, BadRowError):
            whose = _references([ref_ids[index] for index in indices])
            report.errors.append(Finding(size.kind, report.split, f"{size} ({whose})", len(indices)))
        elif size is not None:
            for index in indices:
                if (drawn := tuple(masks[index]["mask"]["size"])) != size:
                    message = (
                        f"{name}: the image is {size[1]}x{size[0]} pixels, the mask of reference {ref_ids[index]} "
                        f"{drawn[1]}x{drawn[0]}: use the images that the annotations were made on"
                    )
                    report.errors.append(Finding("mask_malformed", report.split, message))
    for twins in same.values():
        if len(twins) > 1:
            more = f" and {len(twins) - 2} more" if len(twins) > 2 else ""
            message = f"{twins[0]}, {twins[1]}{more}: one image under several names"
            report.notices.append(Finding("same_image", report.split, message, len(twins)))


def _users(rows: datasets.Dataset) -> dict[str, list[int]]:
    """Every image's rows; a image is its file's path, or a digest of its bytes where these are in the row."""
    users: dict[str, list[int]] = defaultdict(list)
    index = 0
    for table in rows.select_columns(["image"]).with_format("arrow").iter(batch_size=100):
        for image in table["image"].to_pylist():  # type: ignore[index]  it is a pyarrow table
            users[image["path"] if image["bytes"] is None else _digest(image["bytes"])].append(index)
            index += 1
    return users


def _opened(
    images: Iterable[tuple[str, dict[str, Any]]], num_workers: int
) -> Iterator[tuple[str, tuple[str | None, tuple[int, int] | BadRowError]]]:
    """Digest of the bytes, and height and width or what is wrong. Only a few images are in memory at a time."""
    images = iter(images)
    with ThreadPoolExecutor(max(num_workers, 1)) as threads:
        while batch := list(itertools.islice(images, 16 * max(num_workers, 1))):
            yield from zip((place for place, _ in batch), threads.map(_open, [one for _, one in batch]), strict=True)


def _open(image: dict[str, Any]) -> tuple[str | None, tuple[int, int] | BadRowError]:
    digest = None
    try:
        data = image["bytes"] if image["bytes"] is not None else Path(image["path"]).read_bytes()
        digest = _digest(data)
        pixels = open_image({"path": image["path"], "bytes": data})
    except BadRowError as error:
        return digest, error
    except FileNotFoundError:
        return None, MissingImageError(f"{image['path']}: the image is missing: put it there")
    except (OSError, ValueError) as error:  # a folder, a file without permission, a damaged one
        return digest, BadRowError(" ".join(str(error).split()), "image_damaged")
    return digest, (pixels.height, pixels.width)


def _digest(data: bytes) -> str:
    return hashlib.blake2b(data, digest_size=16).hexdigest()


def _compare(reports: Sequence[SplitReport], source: DataSource) -> None:
    """Images that stand in two splits: noted with the later one."""
    why = SHARED_BY_DESIGN.get((Path(source.dataset).name, source.split_by))
    if source.leak == "keep":
        why = "leak=keep"
    for first, second in itertools.combinations(reports, 2):
        shared = [identity for identity in second.identities if identity in first.identities]
        if not shared:
            continue
        if why or _both_tests(first.split, second.split):
            reason = why or "nothing is learned or chosen on either"
            message = f"{len(shared):,} images stand in {first.split} too: by design, {reason}"
            second.notices.append(Finding("shared_image", second.split, message, len(shared)))
            continue
        for identity in shared:
            (here, _), (there, row) = second.identities[identity], first.identities[identity]
            assert first.rows is not None
            message = (
                f"{here}: stands in {first.split} too{'' if here == there else f', as {there}'} (reference "
                f"{first.rows['ref_id'][row]}): scores on it would be too good, take it out of one of the two"
            )
            second.errors.append(Finding("shared_image", second.split, message))


def _both_tests(*splits: str) -> bool:
    return all(split.startswith("test") for split in splits)


def _references(ref_ids: Sequence[int]) -> str:
    more = f" and {len(ref_ids) - 1} more" if len(ref_ids) > 1 else ""
    return f"reference {ref_ids[0]}{more}"
