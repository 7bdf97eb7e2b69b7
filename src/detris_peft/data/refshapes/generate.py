"""RefShapes: a made-up dataset for referring segmentation, written to disk in REFER's layout.

    python -m detris_peft.data.refshapes OUT --seed 0
    load_refer("OUT", "refshapes", "unc", "val")

Splits, all by image: train and val alike; testA needs attributes only; testB refers to combinations of color and
class that stand in no other split, neither drawn nor named (`scenes.HELD_OUT`). The same seed gives the same bytes,
and a image does not depend on how many others there are.
"""

import argparse
import json
import os
import pickle
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from pycocotools import mask as coco

from ..masks import mask_area
from .expressions import SORTS, sample_references
from .scenes import CLASSES, Shape, draw_scene, sample_scene

DATASET, SPLIT_BY = "refshapes", "unc"
SPLITS = ("train", "val", "testA", "testB")
NOVEL = 0.6  # share of held-out combinations among testB's shapes
MAX_TRIES = 5000  # a usual scene takes about ten


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
    """Writes RefShapes below `root`: images into images/train2014, annotations into refshapes.

    Everything is made aside first; the annotations are moved in last, so that there is never half a dataset.

    Args:
        train, val, test: number of images; `test` is for testA and for testB each.
        image_size: the images' side in pixels.
        min_objects, max_objects: shapes in a image.
        references: references in a image, each to another shape, each with 1 to 3 sentences.
        place, relation: shares of references that need an absolute position or a relation to another shape; the
            rest needs attributes only.
        overwrite: replace a RefShapes that is there already.

    Returns:
        The folder of the annotations.

    Raises:
        FileExistsError: there is a RefShapes already.
        ValueError: an argument is out of its range.
    """
    if min(train, val, test) < 0 or image_size < 32:
        raise ValueError("train, val and test must be 0 or more images, and image_size at least 32 pixels")
    if not 2 <= min_objects <= max_objects <= 8 or not 1 <= references <= min_objects:
        raise ValueError("needed: 2 <= min_objects <= max_objects <= 8 and 1 <= references <= min_objects")
    if place < 0 or relation < 0 or place + relation > 1:
        raise ValueError(f"place={place} and relation={relation} must be shares that add up to 1 at most")
    root = Path(root)
    target = root / DATASET
    if target.exists() and not overwrite:
        raise FileExistsError(f"{target} is there already: pass --overwrite (overwrite=True) or another folder")
    root.mkdir(parents=True, exist_ok=True)
    aside = Path(tempfile.mkdtemp(prefix=f".{DATASET}-", dir=root))
    try:
        (aside / "images").mkdir()
        (aside / DATASET).mkdir()
        records = _Records()
        shares = (1 - place - relation, place, relation)
        for number, (split, count) in enumerate(zip(SPLITS, (train, val, test, test), strict=True)):
            for index in range(count):
                # Each image has a stream of its own: it does not change when other counts do.
                rng = np.random.default_rng([seed, number, index])
                objects = int(rng.integers(min_objects, max_objects + 1))
                _add_image(records, rng, split, index, objects, references, shares, image_size, aside / "images")
        _write_annotations(records, aside / DATASET)
        _move_in(aside, root)
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    return target


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
    sorts = ["attributes"] * references if split == "testA" else rng.choice(SORTS, size=references, p=shares).tolist()
    scene, described = _describable_scene(rng, objects, sorts, novel)
    image, segmentations, masks = draw_scene(rng, scene, side)
    image_id = len(records.images) + 1
    stem = f"{DATASET}_{split}_{index:06d}"
    # Full color resolution and few losses: edges stay where the masks are.
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
    for shape_index, sort, sentences in described:
        ann_id = first + shape_index
        sent_ids = [records.sentences + place for place in range(len(sentences))]
        records.sentences += len(sentences)
        records.references.append(
            {
                "ref_id": len(records.references) + 1,
                "ann_id": ann_id,
                "image_id": image_id,
                "category_id": CLASSES.index(scene[shape_index].kind) + 1,
                "split": split,
                "file_name": f"{stem}_{ann_id}.jpg",  # with the suffix that REFER's own files carry
                "needs": sort,
                "sent_ids": sent_ids,
                "sentences": [
                    {"tokens": text.split(), "raw": text, "sent_id": sent_id, "sent": text}
                    for sent_id, text in zip(sent_ids, sentences, strict=True)
                ],
            }
        )


def _describable_scene(
    rng: np.random.Generator, objects: int, sorts: Sequence[str], novel: bool
) -> tuple[tuple[Shape, ...], list[tuple[int, str, list[str]]]]:
    """A scene that can serve all the sorts; others are thrown away, so that the shares come out as asked."""
    for _ in range(MAX_TRIES):
        scene = sample_scene(rng, objects, NOVEL if novel else 0.0)
        references = sample_references(rng, scene, sorts, novel=novel)
        if references is not None:
            return scene, references
    raise ValueError(f"{objects} objects give no {len(sorts)} references ({', '.join(sorts)}): ask for fewer of them")


def _write_annotations(records: _Records, folder: Path) -> None:
    content: dict[str, Any] = {
        "info": {"description": "RefShapes, a made-up dataset"},
        "images": records.images,
        "annotations": records.annotations,
        "categories": [{"id": number, "name": name} for number, name in enumerate(CLASSES, start=1)],
    }
    (folder / "instances.json").write_text(json.dumps(content), encoding="utf-8")
    # Protocol 2, the newest that Python 2 knew: the REFER API's own tools can read it.
    (folder / f"refs({SPLIT_BY}).p").write_bytes(pickle.dumps(records.references, protocol=2))


def _move_in(aside: Path, root: Path) -> None:
    images = root / "images" / "train2014"
    images.mkdir(parents=True, exist_ok=True)
    # Only what an earlier run wrote: real images may stand in the same folder.
    shutil.rmtree(root / DATASET, ignore_errors=True)
    for old in images.glob(f"{DATASET}_*.jpg"):
        old.unlink()
    for new in (aside / "images").iterdir():
        new.replace(images / new.name)
    (aside / DATASET).replace(root / DATASET)


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line of `write_refshapes`; each option is one of its arguments."""
    parser = argparse.ArgumentParser(
        prog="python -m detris_peft.data.refshapes", formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("out", metavar="OUT", help="the data root to write into")
    parser.add_argument("--seed", type=int, default=0, help="same seed, same bytes")
    parser.add_argument("--train", type=int, default=2000, help="images in train")
    parser.add_argument("--val", type=int, default=200, help="images in val")
    parser.add_argument("--test", type=int, default=200, help="images in testA and in testB, each")
    parser.add_argument("--image_size", type=int, default=112, help="side of a image in pixels")
    parser.add_argument("--min_objects", type=int, default=3, help="shapes in a image, at least")
    parser.add_argument("--max_objects", type=int, default=6, help="shapes in a image, at most")
    parser.add_argument("--references", type=int, default=2, help="references in a image")
    parser.add_argument("--place", type=float, default=0.35, help="share that needs a place ('on the left')")
    parser.add_argument("--relation", type=float, default=0.15, help="share that needs a relation ('above the ...')")
    parser.add_argument("--overwrite", action="store_true", help="replace a RefShapes that is there already")
    options = vars(parser.parse_args(arguments))
    try:
        folder = write_refshapes(options.pop("out"), **options)
    except (OSError, ValueError) as error:
        raise SystemExit(f"error: {error}") from error
    print(f"RefShapes is in {folder}; read it with load_refer({str(folder.parent)!r}, {DATASET!r}, {SPLIT_BY!r}, ...)")
