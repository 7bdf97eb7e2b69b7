"""Reader for the JSON that Label Studio exports (https://labelstud.io/guide/task_format).

<folder>/project-1-at-2026-01-31.json    or the path of the file itself
<folder>/images/1a2b3c4d-roses.jpg       the images, with or without the prefix of an upload

[{"id": 1, "data": {"image": "/data/upload/1/1a2b3c4d-roses.jpg"},
  "annotations": [{"was_cancelled": false, "result": [
    {"id": "x1", "type": "polygonlabels", "original_width": 640, "original_height": 480,
     "value": {"points": [[10.5, 20.0], ...], "polygonlabels": ["rose"]}},
    {"id": "x1", "type": "textarea", "from_name": "caption", "value": {"text": ["the left rose"]}}]}]}]

Coordinates are percent of the width and height of the upright image, whatever `image_rotation` is: the editor rotates
the view, not the coordinates. A rectangle is rotated around its corner (x, y), an ellipse around its center. Results
of one id describe one region. Of several annotations of a task, the first that was not cancelled is read; predictions
and drafts are not.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from ....safe_loading import read_json
from ...errors import BadRowError, join_names, notice, short
from ...masks import as_integer
from ..paths import find_image_folder
from ..registry import Source, dataset_path
from .files import IMAGE_SUFFIXES, MAX_DETECTED, SPLIT_FOLDERS, ImageFinder, files_in, head_keys
from .label_studio_shapes import GEOMETRY, WITHOUT_AREA, draw_shape, shape_kind
from .objects import LabeledImage, LabeledObject, object_id
from .reader import LabelReader
from .shapes import notice_without_area
from .text_fields import find_text, split_sentences

_LISTS = ("annotations", "completions")  # the second is the name in old versions
# Only JSON-MIN has these keys, which its tasks share with no other format.
_MINIMAL = {"annotation_id", "annotator", "lead_time"}
_UPLOAD_PREFIX = re.compile(r"^[0-9a-f]{8}-")
_LOCAL_FILE = "?d="


class LabelStudioReader(LabelReader):
    """Reads a JSON export, or a folder that contains one, or one per split: train.json and val.json."""

    name = "label_studio"
    title = "Label Studio"
    accepts = "a Label Studio JSON export"
    options = ("image_folder",)
    text_field = 'a <TextArea perRegion="true"> of the labeling setup'

    def detect(self, source: Source) -> bool:
        path = dataset_path(source)
        return path is not None and bool(_exports(path))

    def splits(self, source: Source) -> Iterable[str]:
        return _files(source)

    def annotation_files(self, source: Source) -> Iterable[Path]:
        return _files(source).values()

    def images(self, source: Source, split: str) -> Iterator[LabeledImage | BadRowError]:
        file = _files(source)[split]
        folder = file.parent
        if source.image_folder is not None:
            folder = find_image_folder(Path(source.data_root), source.image_folder)
        finder, left_out = ImageFinder(folder), Counter[str]()
        for where, task in _tasks(file):
            try:
                results = _results(task, where)
                if results:
                    yield _labeled_image(task, results, where, split, finder, left_out)
            except BadRowError as error:
                yield error
        notice_without_area(left_out, source.dataset)


def _exports(path: Path) -> list[Path]:
    """Return the Label Studio files among the first JSON files of a folder, or the file itself if it is one."""
    files = [path] if path.suffix.lower() == ".json" and path.is_file() else files_in(path, ".json")[:MAX_DETECTED]
    return [file for file in files if _is_export(*head_keys(file))]


def _is_export(kind: str, keys: frozenset[str]) -> bool:
    # A long list of annotations may precede "data", but not "id".
    raw = keys & {*_LISTS, "predictions"} and keys & {"data", "id"}
    return kind == "list" and bool(raw or keys >= _MINIMAL)


def _files(source: Source) -> dict[str, Path]:
    """Return the file of each split.

    Raises:
        FileNotFoundError: there is none.
        ValueError: there are several whose names are not those of splits.
    """
    path = dataset_path(source)
    files = _exports(path) if path is not None else []
    if not files:
        raise FileNotFoundError(f"{source.dataset}: expected a Label Studio JSON export, found none; pass its path")
    if len(files) == 1 and files[0] == path:
        return {"train": files[0]}
    splits = {SPLIT_FOLDERS.get(file.stem.lower()): file for file in files}
    if None not in splits and len(splits) == len(files):
        return {str(split): file for split, file in splits.items()}
    if len(files) > 1:
        names = join_names(file.name for file in files)
        raise ValueError(
            f"{source.dataset}: expected one Label Studio export, got {names}; pass the path of one file, or name "
            "them train.json and val.json"
        )
    return {"train": files[0]}


def _tasks(file: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yield the tasks of a file, each with the prefix of its error messages."""
    content = read_json(file)
    tasks = [task for task in content if isinstance(task, Mapping)] if isinstance(content, list) else []
    if not tasks or len(tasks) < len(content):
        raise ValueError(
            f"{file}: expected a list of Label Studio tasks, got {short(content)}; export the project as JSON"
        )
    if not any(task.get(name) for task in tasks for name in _LISTS):
        if tasks[0].keys() >= _MINIMAL:
            got = "those of JSON-MIN, which does not say to which region a text belongs; export the project as JSON"
        else:
            got = (
                f"{len(tasks):,} tasks without any, and predictions are not read; submit annotations, and export again"
            )
        raise ValueError(f"{file}: expected tasks with 'annotations', got {got}")
    for index, task in enumerate(tasks):
        number = task.get("id")
        yield f"{file}: task {short(index if number is None else number)}", task


def _results(task: Mapping[str, Any], where: str) -> list[Mapping[str, Any]]:
    """Return the results of the first annotation that was not cancelled, or no results."""
    name = next((name for name in _LISTS if task.get(name)), None)
    annotations = task[name] if name else []
    if not isinstance(annotations, list) or not all(isinstance(one, Mapping) for one in annotations):
        raise BadRowError(
            f"{where}: expected '{name}' as a list of objects, got {short(annotations)}; export the project as JSON"
        )
    valid = [one for one in annotations if not (one.get("was_cancelled") or one.get("skipped"))]
    if len(valid) > 1:
        notice("several_annotations", f"{where}: {len(valid)} annotations, of which the first is read")
    results = valid[0].get("result") if valid else []
    if not isinstance(results, list) or not all(isinstance(one, Mapping) for one in results):
        raise BadRowError(
            f"{where}: expected 'result' as a list of objects, got {short(results)}; export the project as JSON"
        )
    return results


def _labeled_image(
    task: Mapping[str, Any],
    results: Sequence[Mapping[str, Any]],
    where: str,
    split: str,
    finder: ImageFinder,
    left_out: Counter[str],
) -> LabeledImage:
    """Return the image of a task.

    Args:
        task: the task.
        results: the results of its annotation.
        where: prefix of error messages.
        split: split of the image.
        finder: finds images.
        left_out: counts the regions without an area, by their kinds.

    Raises:
        BadRowError: the task does not name an image.
    """
    file = _find_image(task.get("data"), where, finder)
    name = finder.relative(file)
    objects: list[LabeledObject | BadRowError] = []
    for key, region in _regions(results).items():
        place = f"{where}: region {short(key)}"
        try:
            found = _object(region, object_id(name, key), place)
        except BadRowError as error:
            found = error
        if found is not None:
            objects.append(found)
        elif kinds := [kind for kind in map(shape_kind, region) if kind in WITHOUT_AREA]:
            left_out[kinds[0]] += 1
        elif _texts(region):
            notice(
                "text_of_image",
                f'{where}: a text that belongs to no region is not read; set perRegion="true" in the <TextArea>',
            )
    if any(as_integer(result.get("image_rotation")) for result in results):
        notice(
            "image_rotation",
            f"{where}: the view was rotated while it was labeled; check with --preview that the masks fit",
        )
    return LabeledImage(
        where=where,
        file=file,
        name=name,
        root=finder.folder,
        split=split,
        objects=objects,
        size=next(filter(None, map(_size, results)), None),
    )


def _find_image(data: Any, where: str, finder: ImageFinder) -> Path:
    """Return the path of the image that "data" names; if it is not found, the path where it is expected."""
    texts = {key: value for key, value in data.items() if isinstance(value, str)} if isinstance(data, Mapping) else {}
    names = [_file_name(texts[key]) for key in sorted(texts, key=lambda key: key not in ("image", "img"))]
    name = next((name for name in names if name.lower().endswith(IMAGE_SUFFIXES)), None)
    if name is None:
        raise BadRowError(
            f"{where}: expected 'data' with the name or URL of an image, got {short(data)}; label one image per task",
            "image_missing",
        )
    base = Path(name).name
    plain = _UPLOAD_PREFIX.sub("", base)
    for candidate in (name, base, plain):
        file = finder.find(candidate)
        if os.path.isfile(file):
            return file
    return finder.find(plain)


def _file_name(value: str) -> str:
    """Return the path of a file in a URL, or in the path that Label Studio makes of it; other text unchanged."""
    if _LOCAL_FILE in value:  # /data/local-files/?d=photos/a.jpg
        name = unquote(value.split(_LOCAL_FILE, 1)[1].split("&", 1)[0])
    elif "://" in value or value.startswith("/data/"):
        try:
            name = unquote(urlsplit(value).path)
        except ValueError:  # such as "http://["
            name = value
    else:
        name = value
    return name.replace("\\", "/").lstrip("/")


def _regions(results: Sequence[Mapping[str, Any]]) -> dict[str, list[Mapping[str, Any]]]:
    """Return the results of each region, keyed by its id, or by its index if it has none."""
    regions: dict[str, list[Mapping[str, Any]]] = {}
    for index, result in enumerate(results):
        number = result.get("id")
        regions.setdefault(str(number) if isinstance(number, (str, int)) else f"#{index}", []).append(result)
    for key, region in list(regions.items()):
        parent = str(region[0].get("parentID"))
        if parent in regions and parent != key and not any(map(shape_kind, region)):  # a text below its region
            regions[parent] += regions.pop(key)
    return regions


def _object(region: Sequence[Mapping[str, Any]], ann_id: int, where: str) -> LabeledObject | None:
    """Return the object of a region; None if it has no area."""
    shapes: list[tuple[str, dict[str, Any]]] = []
    for result in region:
        kind, value = shape_kind(result), result.get("value")
        if kind not in GEOMETRY:
            continue
        if not isinstance(value, Mapping):
            raise BadRowError(f"{where}: expected an object as 'value', got {short(value)}; export the project again")
        _size(result, where)
        shape = (kind, {name: value.get(name) for name in (*GEOMETRY[kind], "rotation")})
        if shape not in shapes:  # <Rectangle> with <Labels> are two results of the same shape
            shapes.append(shape)
    if len(shapes) > 1:
        raise BadRowError(
            f"{where}: expected one shape, got {len(shapes)} with the same id; give each region its own id",
            "duplicate_id",
        )
    if not shapes:
        return None
    field, sentences = _sentences(region)
    return LabeledObject(
        where=where,
        ann_id=ann_id,
        mask=partial(draw_shape, *shapes[0], where),
        label=_label(region, where),
        sentences=sentences,
        text_field=field,
    )


def _size(result: Mapping[str, Any], where: str = "") -> tuple[int, int] | None:
    """Return height and width of the image as a result declares them; None if it does not, or if they are invalid.

    Raises:
        BadRowError: they are invalid, and `where` is given.
    """
    height, width = (as_integer(result.get(name)) for name in ("original_height", "original_width"))
    if height is None or width is None:
        return None
    if all(isinstance(side, int) and not isinstance(side, bool) and side > 0 for side in (height, width)):
        return height, width
    if where:
        raise BadRowError(
            f"{where}: expected 'original_width' and 'original_height' in pixels, got {short(width)} and "
            f"{short(height)}; fix them"
        )
    return None


def _label(region: Sequence[Mapping[str, Any]], where: str) -> str | BadRowError | None:
    """Return the first class of a region."""
    for result in region:
        value = result.get("value")
        for key, labels in value.items() if isinstance(value, Mapping) else ():
            if str(key).lower().endswith("labels") and labels:
                first = labels[0] if isinstance(labels, list) else labels
                if isinstance(first, str):
                    return first
                return BadRowError(f"{where}: '{key}': expected a list of names, got {short(labels)}; fix it")
    return None


def _sentences(region: Sequence[Mapping[str, Any]]) -> tuple[str, Any]:
    """Return the field with the sentences of a region, and the sentences, or None."""
    texts = _texts(region)
    found = find_text(texts)
    if found:
        return found
    for name, text in texts.items():  # a text area may have any name
        sentences = split_sentences(text)
        if sentences is not None:
            return name, sentences
    for result in region:  # what the panel "Info" of a region calls meta
        meta = result.get("meta")
        if isinstance(meta, Mapping) and split_sentences(meta.get("text")) is not None:
            return "meta.text", split_sentences(meta["text"])
    return "text", None


def _texts(region: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the texts of a region, keyed by the names of their text areas."""
    areas = [result for result in region if str(result.get("type")).lower() == "textarea"]
    values = ((str(area.get("from_name") or "text"), area.get("value")) for area in areas)
    return {name: value.get("text") for name, value in values if isinstance(value, Mapping)}
