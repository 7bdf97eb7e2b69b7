"""Divide a dataset into train, val and test; implements `detris data split`.

<output>/README.md                   dataset card
<output>/train/metadata.jsonl        one line per reference, see `detris_peft.data.load_folder`
<output>/train/images/0001.jpg       the original files
<output>/train/masks/7.png           named by the id of the reference
"""

from __future__ import annotations

import math
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import datasets

from ....outputs import mark_folder
from ....progress import progress_bar
from ...errors import BadRows, collect_notices, join_names
from ...readers import dataset_path
from ...readers.folder import BAD_MASK
from ...sources import DataSource
from ..output_folder import check_output, write_folder, written_files
from .assignment import assign_groups
from .card import split_card
from .defaults import FRACTIONS, HIGHEST_DISTANCE, MAX_DISTANCE, SPLITS
from .lines import Ids, extra_fields
from .perceptual_hash import group_near_duplicates
from .result import DuplicateGroup, SplitResult, WrittenSplit
from .source_images import SourceImage, SourceImages
from .writer import SplitWriter


def split_dataset(
    source: DataSource,
    output: str | os.PathLike[str],
    splits: Sequence[str] | None = None,
    *,
    fractions: Sequence[float] = FRACTIONS,
    seed: int = 0,
    max_distance: int = MAX_DISTANCE,
    keep_folders: bool = False,
    bad_rows: BadRows | None = None,
    overwrite: bool = False,
    allow_outside: bool = False,
    num_workers: int = 2,
    progress: bool = True,
) -> SplitResult:
    """Write a folder with the splits train, val and test, each with a metadata.jsonl; no image is in two of them.

    Near-duplicates are kept in one split. The split of an image depends on the content of the images, their numbers of
    references, and the seed alone, so that it is the same on every machine. The output is written atomically.

    Args:
        source: the dataset; not a stream.
        output: a new or empty folder.
        splits: the splits of the source to join and divide; by default all.
        fractions: shares of train, val and test among the references, which add up to 1. Two numbers, or a third one
            of 0, make no test split.
        seed: random seed.
        max_distance: maximum number of different bits, of 64, of the perceptual hashes of near-duplicates.
        keep_folders: also keep the images of one folder in one split, such as the frames of a video.
        bad_rows: collects the errors of invalid rows, which are skipped; None raises the first.
        overwrite: replace `output` if an earlier call wrote it.
        allow_outside: also copy images and masks that are not in the dataset's folder or image folder, because their
            names hold "..", are absolute, or are links.
        num_workers: threads that decode images and write masks.
        progress: show progress bars.

    Returns:
        Counts per split, and the groups of near-duplicates.

    Raises:
        ValueError: an option is out of range, `output` must not be written, there are fewer images that are no
            near-duplicates than splits, a file is outside the dataset's folder, or as for `DataSource.load`. A
            `BadRowError` if a row is invalid.
        TypeError: an option has a wrong type.
        FileNotFoundError: see `DataSource.load`.
        OSError: `output` cannot be written, for example because the disk is full.
    """
    shares = split_shares(fractions)
    _check_numbers(seed, max_distance)
    if source.streaming:
        raise ValueError("--streaming: expected a dataset with random access, got a stream; omit --streaming")
    check_output(output, overwrite, dataset_path(source), written_files(Path(output)).__contains__)
    output = Path(os.path.realpath(output))
    splits = [*dict.fromkeys(splits or source.splits())]
    with collect_notices() as notices:
        tables = {split: _load(source, split, bad_rows) for split in splits}
    kinds = Counter(kind for kind, _ in notices)
    if kinds["file_outside"] and not allow_outside:
        message = next(message for kind, message in notices if kind == "file_outside")
        raise ValueError(f"{message} ({kinds['file_outside'] - 1:,} more)" if kinds["file_outside"] > 1 else message)
    images = SourceImages(tables)
    bar = progress_bar(images.read(num_workers, bad_rows), "images", len(images), unit="", disable=not progress)
    found = [*bar]
    if not found:
        raise ValueError(f"{source.dataset}: expected at least one valid row, got none; run `detris data check`")
    duplicates = _group(found, max_distance)
    groups = _merge_by_folder(duplicates, found) if keep_folders else duplicates
    if len(groups) < len(shares):
        raise ValueError(_too_few(source, len(found), len(groups), shares, keep_folders))
    split_of = _assign(found, groups, shares, seed)
    ids = Ids((number, images.row(*row)) for number, image in enumerate(found) for row in image.rows)
    counts = {split: WrittenSplit() for split in shares}
    result = SplitResult(counts, shares, seed, max_distance, flagged=kinds[BAD_MASK], renumbered=ids.renumbered)
    with write_folder(output) as staging:
        writer = SplitWriter(staging, images, extra_fields(source), counts)
        written = writer.write(found, split_of, ids, num_workers)
        names = [*progress_bar(written, "writing: images", len(found), unit="", disable=not progress)]
        result.groups = [
            DuplicateGroup(
                split_of[group[0]],
                [names[number] for number in group],
                sorted({split for number in group for split, _ in found[number].rows}),
            )
            for group in sorted(duplicates, key=len, reverse=True)
            if len(group) > 1
        ]
        card = split_card(output.name, Path(source.dataset).name, result)
        # Names of folders may hold bytes that are not UTF-8.
        (staging / "README.md").write_text(card, encoding="utf-8", errors="backslashreplace")
        mark_folder(staging, "dataset")
    return result


def split_shares(fractions: Sequence[float]) -> dict[str, float]:
    """Return the share of each split, without those of 0.

    Raises:
        TypeError: a fraction is not a number.
        ValueError: the fractions are not two or three, do not add up to 1, or that of train or val is not above 0.
    """
    numbers = [*fractions]
    for number in numbers:
        if isinstance(number, bool) or not isinstance(number, (int, float)):
            raise TypeError(f"fractions: expected numbers, got {type(number).__name__}; pass numbers.")
    got = " ".join(f"{number:g}" for number in numbers)
    if len(numbers) not in (2, 3):
        raise ValueError(
            f"--fractions: expected two or three numbers, for train, val and test, got {got or 'none'}; pass for "
            "example 0.8 0.1 0.1."
        )
    test = numbers[2] if len(numbers) == 3 else 0
    if not (all(map(math.isfinite, numbers)) and min(numbers[:2]) > 0 and test >= 0):
        raise ValueError(
            f"--fractions: expected numbers above 0, and for test also 0, got {got}; pass for example 0.8 0.1 0.1."
        )
    if not math.isclose(sum(numbers), 1, abs_tol=1e-3):
        raise ValueError(f"--fractions: expected a sum of 1, got {got}, whose sum is {sum(numbers):g}; change them.")
    return {split: number / sum(numbers) for split, number in zip(SPLITS, numbers, strict=False) if number}


def _check_numbers(seed: int, max_distance: int) -> None:
    for name, value, highest in (("seed", seed, None), ("max_distance", max_distance, HIGHEST_DISTANCE)):
        if isinstance(value, bool) or not isinstance(value, int):
            raise TypeError(f"{name}: expected an integer, got {type(value).__name__}; pass one.")
        if value < 0 or (highest is not None and value > highest):
            wanted = "0 or more" if highest is None else f"0 to {highest}"
            raise ValueError(f"{name}: expected {wanted}, got {value}; change it.")


def _load(source: DataSource, split: str, bad_rows: BadRows | None) -> datasets.Dataset:
    rows = source.load(split, bad_rows)
    assert isinstance(rows, datasets.Dataset)  # not a stream, as `streaming` is rejected
    return rows


def _group(images: Sequence[SourceImage], max_distance: int) -> list[list[int]]:
    """Return the numbers of the images in groups of near-duplicates, in the order of their first images."""
    # Equal files are near-duplicates, also if all pixels have one color and the hash says nothing.
    equal: dict[str, list[int]] = {}
    for number, image in enumerate(images):
        equal.setdefault(image.content.digest, []).append(number)
    files = [*equal.values()]
    hashes = [images[numbers[0]].content.hash for numbers in files]
    groups = group_near_duplicates(hashes, max_distance)
    return sorted(sorted(number for file in group for number in files[file]) for group in groups)


def _merge_by_folder(groups: Sequence[list[int]], images: Sequence[SourceImage]) -> list[list[int]]:
    """Return the groups, those with images of one folder merged."""
    merged: list[list[int]] = []
    group_of_folder: dict[str, list[int]] = {}
    for group in groups:
        folders = {os.path.dirname(images[number].name) for number in group}
        same = [group_of_folder[folder] for folder in folders if folder in group_of_folder]
        union = sorted({number for earlier in (*same, group) for number in earlier})
        merged = [*(one for one in merged if one not in same), union]
        folders |= {os.path.dirname(images[number].name) for number in union}
        group_of_folder.update(dict.fromkeys(folders, union))
    return sorted(merged)


def _assign(
    images: Sequence[SourceImage], groups: Sequence[Sequence[int]], shares: Mapping[str, float], seed: int
) -> list[str]:
    """Return the split of each image."""
    keys = [min(images[number].content.digest for number in group) for group in groups]
    weights = [sum(len(images[number].rows) for number in group) for group in groups]
    chosen = assign_groups(dict(zip(keys, weights, strict=True)), shares, seed)
    splits = [""] * len(images)
    for key, group in zip(keys, groups, strict=True):
        for number in group:
            splits[number] = chosen[key]
    return splits


def _too_few(source: DataSource, images: int, groups: int, shares: Mapping[str, float], folders: bool) -> str:
    problem = f"{source.dataset}: expected at least {len(shares)} images for the splits {join_names(shares)}"
    fewer = ", or pass --fractions with two numbers" if len(shares) > 2 else ""
    if images < len(shares):
        return f"{problem}, got {images}; add images{fewer}"
    return (
        f"{problem} that are not near-duplicates of each other, got {images:,} images in {groups} "
        f"{'group' if groups == 1 else 'groups'} of near-duplicates{' or folders' if folders else ''}; add other "
        f"images, lower --max_distance{', omit --keep_folders' if folders else ''}{fewer}"
    )
