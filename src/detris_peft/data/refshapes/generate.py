"""RefShapes: a synthetic referring-segmentation dataset, written to disk in REFER's layout.

    python -m detris_peft.data.refshapes OUT --seed 0
    load_refer("OUT", "refshapes", "unc", "val")

No image is in two splits. train and val have the same distribution; testA needs attributes only; testB refers to
combinations of color and class that are neither drawn nor named in any other split (`scenes.HELD_OUT`). The same seed
gives the same bytes, and an image does not depend on the number of images.
"""

import argparse
import json
import os
import pickle
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from pycocotools import mask as coco

from ...atomic import atomic_update_dir, atomic_write_dir, remove
from ...errors import one_line
from ...outputs import MARKER, check_output_folder, mark_folder
from ..masks import mask_area
from .expressions import REFERENCE_TYPES, sample_references
from .scenes import CLASSES, Shape, draw_scene, sample_scene

DATASET, SPLIT_BY = "refshapes", "unc"
IMAGE_FOLDER = "train2014"
_FILES = ("instances.json", f"refs({SPLIT_BY}).p")
SPLITS = ("train", "val", "testA", "testB")
NOVEL = 0.6  # share of held-out combinations among testB's shapes
MAX_TRIES = 5000  # a typical scene takes about ten


@dataclass
class _Records:
    references: list[dict] = field(default_factory=list)
    images: list[dict] = field(default_factory=list)
    annotations: list[dict] = field(default_factory=list)
    sentences: int = 0


def write_refshapes(
    root: str | os.PathLike[str],
    *,
    seed: int = 0,
    train: int = 2000,
    val: int = 200,
    test: int = 200,
    image_size: int = 112,
    min_objects: int = 3,
    max_objects: int = 6,
    references: int = 2,
    place: float = 0.35,
    relation: float = 0.15,
    overwrite: bool = False,
) -> Path:
    """Write RefShapes to `root`: images to images/train2014, annotations to refshapes.

    Everything is written to temporary folders first, and the annotations are moved in last, so that a partial dataset
    is never visible.

    Args:
        root: data root to write to; created if missing.
        seed: the same seed gives the same bytes.
        train, val, test: number of images; `test` applies to testA and testB each.
        image_size: side of the images in pixels.
        min_objects, max_objects: range of the number of shapes per image.
        references: references per image, each to a different shape and with 1 to 3 sentences.
        place, relation: shares of references that need an absolute position or a relation to another shape; the
            remaining references need attributes only.
        overwrite: replace an existing RefShapes.

    Returns:
        The folder of the annotations.

    Raises:
        FileExistsError: RefShapes exists already, and `overwrite` is False.
        ValueError: an argument is out of range, or the folder holds other files.
    """
    if min(train, val, test) < 0 or image_size < 32:
        raise ValueError(
            f"expected train, val and test >= 0 and image_size >= 32, got train={train}, val={val}, test={test}, "
            f"image_size={image_size}"
        )
    if not 2 <= min_objects <= max_objects <= 8 or not 1 <= references <= min_objects:
        raise ValueError(
            f"expected 2 <= min_objects <= max_objects <= 8 and 1 <= references <= min_objects, got "
            f"min_objects={min_objects}, max_objects={max_objects}, references={references}"
        )
    if place < 0 or relation < 0 or place + relation > 1:
        raise ValueError(
            f"expected place and relation to be shares whose sum is at most 1, got place={place}, relation={relation}"
        )
    root = Path(root)
    target = root / DATASET
    _check_target(target, overwrite)
    records = _Records()
    shares = (1 - place - relation, place, relation)
    # The inner context exits first, so annotations appear only when all images are in place.
    with atomic_write_dir(target) as annotations, atomic_update_dir(root / "images") as images:
        folder = images / IMAGE_FOLDER
        folder.mkdir()
        for split_index, (split, count) in enumerate(zip(SPLITS, (train, val, test, test), strict=True)):
            for index in range(count):
                # One generator per image, so that an image does not depend on the number of images.
                rng = np.random.default_rng([seed, split_index, index])
                objects = int(rng.integers(min_objects, max_objects + 1))
                _add_image(records, rng, split, index, objects, references, shares, image_size, folder)
        _write_annotations(records, annotations)
        _remove_existing(root)
    return target


def _check_target(target: Path, overwrite: bool) -> None:
    """Raise an error if the folder of the annotations must not be written or replaced."""
    names = {path.name for path in target.iterdir()} if target.is_dir() else set()
    if names and names <= {*_FILES, MARKER}:  # without the marker: written by an earlier version
        if not overwrite:
            raise FileExistsError(
                f"{target}: expected a new folder, got an existing RefShapes; pass --overwrite, or another folder"
            )
        return
    if names:
        raise ValueError(
            f"{target}: expected a new folder, or RefShapes, got one with {min(names - {*_FILES, MARKER})}; choose "
            "another folder"
        )
    check_output_folder(target, overwrite, "OUT")


def _add_image(
    records: _Records,
    rng: np.random.Generator,
    split: str,
    index: int,
    objects: int,
    references: int,
    shares: Sequence[float],
    side: int,
    folder: Path,
) -> None:
    novel = split == "testB"
    types = ["attributes"] * references
    if split != "testA":
        types = rng.choice(REFERENCE_TYPES, size=references, p=shares).tolist()
    scene, described = _describable_scene(rng, objects, types, novel)
    image, segmentations, masks = draw_scene(rng, scene, side)
    image_id = len(records.images) + 1
    stem = f"{DATASET}_{split}_{index:06d}"
    # High quality without chroma subsampling keeps the edges aligned with the masks.
    Image.fromarray(image).save(folder / f"{stem}.jpg", quality=95, subsampling=0)
    records.images.append({"id": image_id, "file_name": f"{stem}.jpg", "height": side, "width": side})
    first = len(records.annotations) + 1
    for shape, segmentation, mask in zip(scene, segmentations, masks, strict=True):
        rle: Any = mask
        records.annotations.append(
            {
                "id": len(records.annotations) + 1,
                "image_id": image_id,
                "category_id": CLASSES.index(shape.kind) + 1,
                "segmentation": segmentation,
                "area": mask_area(mask),
                "bbox": coco.toBbox(rle).tolist(),
                "iscrowd": 0,
                "attributes": asdict(shape),
            }
        )
    for shape_index, reference_type, sentences in described:
        ann_id = first + shape_index
        sent_ids = [*range(records.sentences, records.sentences + len(sentences))]
        records.sentences += len(sentences)
        records.references.append(
            {
                "ref_id": len(records.references) + 1,
                "ann_id": ann_id,
                "image_id": image_id,
                "category_id": CLASSES.index(scene[shape_index].kind) + 1,
                "split": split,
                "file_name": f"{stem}_{ann_id}.jpg",  # the suffix is as in REFER's own files
                "needs": reference_type,
                "sent_ids": sent_ids,
                "sentences": [
                    {"tokens": text.split(), "raw": text, "sent_id": sent_id, "sent": text}
                    for sent_id, text in zip(sent_ids, sentences, strict=True)
                ],
            }
        )


def _describable_scene(
    rng: np.random.Generator, objects: int, types: Sequence[str], novel: bool
) -> tuple[tuple[Shape, ...], list[tuple[int, str, list[str]]]]:
    """Sample scenes until one allows references of all types, so that the shares of the types are as requested."""
    for _ in range(MAX_TRIES):
        scene = sample_scene(rng, objects, NOVEL if novel else 0.0)
        references = sample_references(rng, scene, types, novel=novel)
        if references is not None:
            return scene, references
    raise ValueError(
        f"expected a scene of {objects} objects with {len(types)} references ({', '.join(types)}), found none in "
        f"{MAX_TRIES} tries; request fewer references"
    )


def _write_annotations(records: _Records, folder: Path) -> None:
    content: dict[str, Any] = {
        "info": {"description": "RefShapes, a synthetic dataset"},
        "images": records.images,
        "annotations": records.annotations,
        "categories": [{"id": number, "name": name} for number, name in enumerate(CLASSES, start=1)],
    }
    (folder / "instances.json").write_text(json.dumps(content), encoding="utf-8")
    # Protocol 2 is the newest that Python 2 supports, so the tools of the REFER API can read it.
    (folder / f"refs({SPLIT_BY}).p").write_bytes(pickle.dumps(records.references, protocol=2))
    mark_folder(folder, "refshapes")


def _remove_existing(root: Path) -> None:
    """Remove an earlier RefShapes, and keep other images in the same folder.

    The annotations are removed first, so that they never describe images of another version.
    """
    remove(root / DATASET)
    for image in (root / "images" / IMAGE_FOLDER).glob(f"{DATASET}_*.jpg"):
        image.unlink()


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line of `write_refshapes`; each option is one of its arguments."""
    parser = argparse.ArgumentParser(
        prog="python -m detris_peft.data.refshapes", formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("out", metavar="OUT", help="data root to write to")
    parser.add_argument("--seed", type=int, default=0, help="random seed; the same seed gives the same bytes")
    parser.add_argument("--train", type=int, default=2000, help="number of training images")
    parser.add_argument("--val", type=int, default=200, help="number of validation images")
    parser.add_argument("--test", type=int, default=200, help="number of images in testA and in testB each")
    parser.add_argument("--image_size", type=int, default=112, help="side of the images in pixels")
    parser.add_argument("--min_objects", type=int, default=3, help="minimum number of shapes per image")
    parser.add_argument("--max_objects", type=int, default=6, help="maximum number of shapes per image")
    parser.add_argument("--references", type=int, default=2, help="references per image")
    parser.add_argument("--place", type=float, default=0.35, help="share of references with a place ('on the left')")
    parser.add_argument(
        "--relation", type=float, default=0.15, help="share of references with a relation ('above the ...')"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace an existing RefShapes")
    options = vars(parser.parse_args(arguments))
    try:
        folder = write_refshapes(options.pop("out"), **options)
    except (OSError, ValueError) as error:
        raise SystemExit(f"error: {one_line(error)}") from error
    print(f"wrote RefShapes to {folder}")
    print(f"read it with load_refer({str(folder.parent)!r}, {DATASET!r}, {SPLIT_BY!r}, ...)")
