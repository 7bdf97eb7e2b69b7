"""Reader for Ref-YouTube-VOS (Seo et al., 2020, "URVOS"), and for Ref-DAVIS17 in the same layout.

<folder>/meta_expressions/train/meta_expressions.json   or <folder>/train/meta_expressions.json
<folder>/train/JPEGImages/003234408d/00000.jpg          the frames
<folder>/train/Annotations/003234408d/00000.png         palette images, whose index is the number of the object
<folder>/train/meta.json                                optional: the objects' classes

{"videos": {"003234408d": {"frames": ["00000", "00005"],
                           "expressions": {"0": {"exp": "a penguin on the left", "obj_id": "1"}}}}}

Layout: https://github.com/wjn922/ReferFormer/blob/main/docs/data.md. A row is an object in a frame, with all its
expressions; the frame is an image of its own. Only the split "train" has public masks; Ref-DAVIS17 also has "valid".
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from .... import images
from ....safe_loading import read_json
from ...errors import BadRowError, MissingImageError, notice, short
from ...fields import check_sentence, open_header
from ...masks import as_integer, encode_mask
from ..paths import note_outside
from ..registry import Source, dataset_folder, dataset_path
from .files import split_folders
from .objects import LabeledImage, LabeledObject, object_id
from .reader import LabelReader

_EXPRESSIONS = "meta_expressions.json"
_MASKS = "Annotations"


class RefYouTubeVosReader(LabelReader):
    """Reads folders with meta_expressions.json, JPEGImages and Annotations for each split."""

    name = "ref_youtube_vos"
    title = "Ref-YouTube-VOS"
    accepts = f"a Ref-YouTube-VOS folder with meta_expressions/train/{_EXPRESSIONS}"
    text_field = f"'exp' of {_EXPRESSIONS}"

    def detect(self, source: Source) -> bool:
        path = dataset_path(source)
        return path is not None and path.is_dir() and bool(_expression_files(path))

    def splits(self, source: Source) -> Iterable[str]:
        root = dataset_folder(source)
        problems = {split: _missing_masks(root, split) for split in _expression_files(root)}
        if all(problems.values()):
            raise ValueError(next(iter(problems.values())))
        return [split for split, problem in problems.items() if not problem]

    def annotation_files(self, source: Source) -> Iterable[Path]:
        root = dataset_folder(source)
        classes = [folder / "meta.json" for folder in split_folders(root).values()]
        return [*_expression_files(root).values(), *filter(Path.is_file, classes)]

    def _require_split(self, source: Source, split: str) -> None:
        root = dataset_folder(source)
        if split in _expression_files(root) and (problem := _missing_masks(root, split)):
            raise ValueError(problem)
        super()._require_split(source, split)

    def images(self, source: Source, split: str) -> Iterator[LabeledImage | BadRowError]:
        root = dataset_folder(source)
        file, folder = _expression_files(root)[split], _split_folder(root, split)
        classes = _videos(folder / "meta.json") if (folder / "meta.json").is_file() else {}
        total, hidden = 0, 0
        for video, content in _videos(file).items():
            where = f"{file}: video {video!r:.60}"
            try:
                frames, expressions = _frames_and_expressions(content, where)
            except BadRowError as error:
                yield error
                continue
            sentences: dict[int, list[str]] = defaultdict(list)
            for key, expression in expressions.items():
                try:
                    number, sentence = _number_and_sentence(expression, f"{where}: expression {key!r:.60}")
                except BadRowError as error:  # once per video, not in every frame
                    yield error
                else:
                    sentences[number].append(sentence)
            labels = {number: _label(classes.get(video), number, where) for number in sentences}
            for frame in frames:
                try:
                    image = _frame(folder, split, f"{video}/{frame}", sentences, labels)
                except BadRowError as error:
                    yield error
                    continue
                total += len(sentences)
                hidden += len(sentences) - len(image.objects)
                yield image
        if hidden:
            notice(
                "not_visible",
                f"{file}: {hidden:,} of {total:,} rows are left out, as their objects are not visible in their frames",
            )


def _expression_files(root: Path) -> dict[str, Path]:
    """Return the existing files with expressions, keyed by our names of the splits."""
    folders = {**split_folders(root), **split_folders(root / "meta_expressions")}
    candidates = {split: folder / _EXPRESSIONS for split, folder in folders.items()}
    return {split: file for split, file in candidates.items() if file.is_file()}


def _split_folder(root: Path, split: str) -> Path:
    return split_folders(root).get(split, root / split)


def _missing_masks(root: Path, split: str) -> str:
    """Return the error message for a split without masks, or "" if it has masks."""
    file, folder = _expression_files(root)[split], _split_folder(root, split) / _MASKS
    if not folder.is_dir():
        problem = f"{folder}: expected the masks of the split, got no such folder"
    elif split != "train" and b"obj_id" not in file.read_bytes():
        problem = f"{file}: expected 'obj_id' in the expressions, got none"
    else:
        return ""
    return (
        f"{problem}; the masks of Ref-YouTube-VOS's valid and test splits are not public, so load its split train, "
        "which `detris data split` divides"
    )


def _videos(file: Path) -> Mapping[str, Any]:
    content = read_json(file)
    videos = content.get("videos") if isinstance(content, Mapping) else content
    if not isinstance(videos, Mapping):
        raise ValueError(f"{file}: expected an object 'videos' with one field per video, got {short(videos)}; fix it")
    return videos


def _frames_and_expressions(video: Any, where: str) -> tuple[list[str], Mapping[str, Any]]:
    frames, expressions = (video.get(n) if isinstance(video, Mapping) else None for n in ("frames", "expressions"))
    if not isinstance(frames, list) or not all(isinstance(frame, str) and frame for frame in frames):
        raise BadRowError(f"{where}: expected a list of texts as 'frames', got {short(frames)}; fix it")
    if not isinstance(expressions, Mapping):
        raise BadRowError(f"{where}: expected an object 'expressions', got {short(expressions)}; fix it")
    return frames, expressions


def _number_and_sentence(expression: Any, where: str) -> tuple[int, str]:
    """Return the number of the object that an expression refers to, and its sentence."""
    if not isinstance(expression, Mapping):
        raise BadRowError(f"{where}: expected an object with 'exp' and 'obj_id', got {short(expression)}; fix it")
    number, sentence = expression.get("obj_id"), expression.get("exp", "")
    if isinstance(number, bool) or as_integer(number) not in range(1, 256):
        raise BadRowError(f"{where}: expected an 'obj_id' from 1 to 255, got {short(number)}; fix it")
    check_sentence(sentence, f"{where}: 'exp'")
    return as_integer(number), sentence


def _label(video: Any, number: int, where: str) -> str | BadRowError | None:
    """Return the class of an object according to the entry of its video in meta.json."""
    entry = video
    for key in ("objects", str(number), "category"):
        entry = entry.get(key) if isinstance(entry, Mapping) else None
    if entry is None or isinstance(entry, str):
        return entry
    where = f"{where}: object {number}"
    return BadRowError(f"{where}: expected text as 'category' in meta.json, got {short(entry)}; fix it")


def _frame(
    folder: Path, split: str, name: str, sentences: Mapping[int, list[str]], labels: Mapping[int, Any]
) -> LabeledImage:
    """Return a frame with its visible objects.

    Args:
        folder: folder of the split.
        name: name of the frame: "<video>/<frame>".
        sentences, labels: sentences and class of each object of the video, keyed by its number.

    Raises:
        BadRowError: the masks are missing or invalid.
    """
    file, image = folder / _MASKS / f"{name}.png", folder / "JPEGImages" / f"{name}.jpg"
    runs = _read_runs(file, folder / _MASKS)
    objects = [
        LabeledObject(
            where=f"{file}: object {number}",
            ann_id=object_id(f"{name}.jpg", number),
            mask=partial(runs.mask, number, f"{file}: object {number}"),
            label=labels[number],
            sentences=texts,
            text_field="exp",
        )
        for number, texts in sentences.items()
        if number in runs.values
    ]
    return LabeledImage(str(file), image, f"{name}.jpg", folder / "JPEGImages", split, objects)


@dataclass(frozen=True)
class _Runs:
    """The runs of equal indices in a palette image, in column-major order: 100 times less memory than its pixels.

    Args:
        values: index of each run, uint8 (N).
        ends: number of pixels up to the end of each run (N).
        height, width: size of the image in pixels.
    """

    values: np.ndarray
    ends: np.ndarray
    height: int
    width: int

    def mask(self, number: int, where: str, height: int, width: int) -> Mapping[str, Any]:
        """Return the pixels with one index as compressed RLE; the last three arguments as for `LabeledObject.mask`."""
        inside = self.values == number
        changes = np.flatnonzero(inside[1:] != inside[:-1])
        # An RLE starts with the background, perhaps of length 0.
        edges = np.concatenate(([0] * (1 + inside[0]), self.ends[changes], self.ends[-1:]))
        rle = {"size": [self.height, self.width], "counts": np.diff(edges).tolist()}
        try:
            return encode_mask(rle, height, width)
        except BadRowError as error:
            raise BadRowError(f"{where}: {error}", error.kind) from None


def _read_runs(file: Path, root: Path) -> _Runs:
    """Return the runs of a palette image; errors as for `_frame`."""
    try:
        with open_header({"path": str(file)}, "masks of a frame", any_depth=True) as header:
            if header.mode not in ("P", "L", "1"):
                raise BadRowError(
                    f"{file}: expected a palette image whose indices are the objects' numbers, got the mode "
                    f"{header.mode}; extract the dataset's archive again"
                )
            mask = images.decode(header, str(file))
    except MissingImageError:
        raise BadRowError(f"{file}: the masks of the frame are missing; add the file", "mask_malformed") from None
    except ValueError as error:
        raise BadRowError(str(error).removesuffix("."), "mask_malformed") from None
    note_outside(file, root, str(file))
    # Encoding the runs of all objects at once takes a fifth of the time of encoding one mask per object.
    indices = cv2.transpose(np.asarray(mask).astype(np.uint8, copy=False)).ravel()
    lasts = np.append(np.flatnonzero(indices[1:] != indices[:-1]), indices.size - 1)
    return _Runs(indices[lasts], lasts + 1, mask.height, mask.width)
