"""Make a dataset with referring expressions from instance masks and classes; implements `detris data describe`.

<output>/README.md                   dataset card
<output>/train/metadata.jsonl        one line per described object, see `detris_peft.data.load_folder`
<output>/train/images/0001.jpg       the original files
<output>/train/masks/7.png           named by the id of the annotation
"""

from __future__ import annotations

import json
import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TextIO

from PIL import Image

from ....outputs import mark_folder
from ....progress import progress_bar
from ...errors import BadRows
from ...masks import decode_mask
from ...readers import dataset_path
from ...readers.folder import METADATA
from ...readers.row_cache import share_rows
from ...sources import DataSource
from ..output_folder import check_output, check_split_names, unique_name, write_folder, written_files
from .card import description_card
from .defaults import MAX_EXPRESSIONS, MIN_AREA, PREVIEW
from .expressions import choose_expressions, find_expressions
from .objects import SceneObject
from .scenes import Scene, SceneReader


@dataclass
class DescribedSplit:
    """Counts of one split.

    Args:
        images: images with at least one described object.
        objects: described objects.
        sentences: sentences of all objects.
        kinds: sentences of each kind, see `KINDS`.
        crowds: objects without a sentence because they have no clear place: crowds, objects without pixels, and masks
            in many parts.
        small: objects without a sentence because they are smaller than `min_area`.
        ambiguous: objects without a sentence because none is true of them alone.
        empty_images: images without annotations.
        undescribed_images: images with annotations, but without a described object.
        licenses: described images per license, as the dataset names it.
    """

    images: int = 0
    objects: int = 0
    sentences: int = 0
    kinds: Counter[str] = field(default_factory=Counter)
    crowds: int = 0
    small: int = 0
    ambiguous: int = 0
    empty_images: int = 0
    undescribed_images: int = 0
    licenses: Counter[str] = field(default_factory=Counter)


@share_rows()
def describe_dataset(
    source: DataSource,
    output: str | os.PathLike[str],
    splits: Sequence[str] | None = None,
    *,
    min_area: float = MIN_AREA,
    max_expressions: int = MAX_EXPRESSIONS,
    seed: int = 0,
    bad_rows: BadRows | None = None,
    overwrite: bool = False,
    allow_outside: bool = False,
    progress: bool = True,
    finish: Callable[[Path, Mapping[str, DescribedSplit]], None] | None = None,
) -> dict[str, DescribedSplit]:
    """Write a folder with metadata.jsonl whose sentences are made from the instance masks and classes of a dataset.

    Each sentence is true of exactly one annotated object of its image; see `expressions.py` for the rules. The output
    is written atomically. The choice among the true sentences depends on the seed, the split and the annotation's id
    alone, so that it is the same on every machine.

    Args:
        source: a COCO instances file, or the export of another labeling tool whose objects have masks and classes.
        output: a new or empty folder.
        splits: the splits to describe; by default all.
        min_area: share of the image's pixels that an object must cover to be described or to be mentioned. Smaller
            objects only make sentences ambiguous.
        max_expressions: maximum number of sentences per object, of different kinds if possible.
        seed: seed of the choice among the true sentences.
        bad_rows: collects the errors of invalid annotations, whose images are skipped; None raises the first.
        overwrite: replace `output` if an earlier call wrote it.
        allow_outside: also copy images that are not in the image folder, because their names hold "..", are absolute,
            or are links.
        progress: show a progress bar.
        finish: called with the finished folder and the counts, before the folder is moved to `output`; if it raises,
            nothing is written.

    Returns:
        Counts, keyed by split.

    Raises:
        ValueError: the dataset has no objects with masks and classes, nothing in a split can be described, an option
            is out of range, or `output` must not be written. A `BadRowError` if an annotation is invalid.
        TypeError: an option has a wrong type.
        FileNotFoundError: the dataset or an image does not exist.
        OSError: `output` cannot be written, for example because the disk is full.
    """
    if isinstance(min_area, bool) or not isinstance(min_area, (int, float)):
        raise TypeError(f"min_area: expected a number, got {type(min_area).__name__}; pass one.")
    for name, value in (("max_expressions", max_expressions), ("seed", seed)):
        if isinstance(value, bool) or not isinstance(value, int):
            raise TypeError(f"{name}: expected an integer, got {type(value).__name__}; pass one.")
    if not 0 <= min_area < 1:
        raise ValueError(f"min_area: expected a share of the image from 0 to below 1, got {min_area}; change it.")
    if max_expressions < 1:
        raise ValueError(f"max_expressions: expected 1 or more, got {max_expressions}; change it.")
    ours = {PREVIEW, *written_files(Path(output))}
    check_output(output, overwrite, dataset_path(source), ours.__contains__)
    reader = SceneReader(source, bad_rows, allow_outside)
    output = Path(os.path.realpath(output))
    splits = [*dict.fromkeys(splits or source.splits())]
    check_split_names(splits)
    counts: dict[str, DescribedSplit] = {}
    with write_folder(output) as staging:
        for split in splits:
            scenes = progress_bar(reader.scenes(split), f"{split}: images", unit="", disable=not progress)
            counts[split] = _write_split(scenes, staging / split, split, min_area, max_expressions, seed)
            counts[split].empty_images = reader.skipped[split]
            if not counts[split].objects:
                found = counts[split]
                raise ValueError(
                    f"{source.dataset} {split}: expected at least one object that a sentence can refer to, got none "
                    f"({found.small:,} too small, {found.ambiguous:,} ambiguous, {found.crowds:,} crowds or without a "
                    "mask); lower --min_area, add masks, or pass other --splits"
                )
        card = description_card(output.name, Path(source.dataset).name, counts, min_area, max_expressions, seed)
        # Names of folders may hold bytes that are not UTF-8.
        (staging / "README.md").write_text(card, encoding="utf-8", errors="backslashreplace")
        mark_folder(staging, "dataset")
        if finish is not None:
            finish(staging, counts)
    return counts


def _write_split(
    scenes: Iterable[Scene], folder: Path, split: str, min_area: float, limit: int, seed: int
) -> DescribedSplit:
    counts = DescribedSplit()
    (folder / "masks").mkdir(parents=True)
    names: set[str] = set()
    with open(folder / METADATA, "w", encoding="utf-8") as metadata:
        for scene in scenes:
            lines = _describe_scene(scene, split, min_area, limit, seed, counts)
            if not lines:
                counts.undescribed_images += 1
                continue
            name = unique_name(scene.name, names)
            file = folder / "images" / name
            file.parent.mkdir(parents=True, exist_ok=True)
            if scene.image.data is None:
                shutil.copyfile(scene.image.file, file)
            else:
                file.write_bytes(scene.image.data)
            for item, line in lines:
                _write_object(item, {"file_name": f"images/{name}", **line}, folder, metadata)
            counts.images += 1
            counts.licenses[scene.image.license or ""] += 1
    return counts


def _describe_scene(
    scene: Scene, split: str, min_area: float, limit: int, seed: int, counts: DescribedSplit
) -> list[tuple[SceneObject, dict[str, Any]]]:
    """Return the described objects of one image with the content of their lines, and count them."""
    found = find_expressions(scene.objects, min_area)
    # Class names may hold words of the rules: "the left shoe", if there is a class "left shoe".
    texts = Counter(
        text for kinds in found for text in {t for kind in kinds.values() for wordings in kind for t in wordings}
    )
    repeated = frozenset(text for text, count in texts.items() if count > 1)
    described = []
    for item, kinds in zip(scene.objects, found, strict=True):
        if item.split != split:
            continue
        chosen = choose_expressions(kinds, limit, f"{seed} {split} {item.ann_id}", repeated)
        if not chosen:
            reason = "crowds" if item.mask is None else "small" if item.area < min_area else "ambiguous"
            setattr(counts, reason, getattr(counts, reason) + 1)
            continue
        counts.objects += 1
        counts.sentences += len(chosen)
        counts.kinds.update(expression.kind for expression in chosen)
        line = {
            "sentences": [expression.sentence for expression in chosen],
            "kinds": [expression.kind for expression in chosen],
            "ref_id": item.ann_id,
            "ann_id": item.ann_id,
            "category_id": item.category_id,
            "category": item.name,
            "license": scene.image.license,
            "url": scene.image.url,
        }
        described.append((item, line))
    return described


def _write_object(item: SceneObject, line: dict[str, Any], folder: Path, metadata: TextIO) -> None:
    """Write the mask of an object, and its line of the metadata.jsonl."""
    assert item.mask is not None  # otherwise nothing is said about it
    name = f"masks/{item.ann_id}.png"
    Image.fromarray(decode_mask(item.mask) > 0).save(folder / name)
    metadata.write(json.dumps({**line, "mask_file_name": name}, ensure_ascii=False) + "\n")
