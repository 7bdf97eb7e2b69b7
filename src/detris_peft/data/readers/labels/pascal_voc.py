"""Reader for Pascal VOC (http://host.robots.ox.ac.uk/pascal/VOC/voc2012/htmldoc/).

VOCdevkit/VOC2012/                          or the folder VOC2012 itself
    Annotations/2007_000032.xml             <annotation><object><name>rose</name>...</object>...</annotation>
    JPEGImages/2007_000032.jpg
    SegmentationObject/2007_000032.png      value n of the palette: pixels of the nth <object>; 255 is void
    SegmentationClass/2007_000032.png       values of classes, used for images without XML; named in labelmap.txt
    ImageSets/Segmentation/train.txt        names of the images of a split; without this folder, all are "train"

A mask may also be in the colors of VOC, as CVAT and Datumaro write it. An <object> may have a <polygon> with <x1>,
<y1>, <x2>, ..., as Roboflow writes it, in XML files next to the images of train/, valid/ and test/. Boxes are not
masks. Sentences are a tag of <object>, such as <description>, or one of its <attributes>.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any
from xml.etree.ElementTree import Element

from ....errors import one_line
from ....safe_loading import read_xml
from ...errors import BadRowError, notice, short
from ...fields import read_mask
from ...masks import all_finite
from ..paths import find_image_folder
from ..registry import Source, dataset_path
from .files import SPLIT_FOLDERS, ImageFinder, files_in, image_with_stem, read_lines, split_folders
from .objects import LabeledImage, LabeledObject, object_id
from .pascal_voc_masks import WORDS, InstanceMasks, class_colors
from .reader import LabelReader
from .text_fields import find_text

_XML, _IMAGES, _MASKS, _CLASSES = "Annotations", "JPEGImages", "SegmentationObject", "SegmentationClass"
_SETS = "ImageSets/Segmentation"
_HEAD = 4096  # bytes
_ROOT = re.compile(rb"<annotation[\s/>]")
# A line in the lists of a class in ImageSets/Main: whether the image has an object of the class.
_MEMBER = re.compile(r"\S+\s+(?:-1|0|1)")
_YEAR = re.compile(r"VOC\d{4}")


class PascalVocReader(LabelReader):
    """Reads a VOC folder, or folders of images with one XML file next to each."""

    name = "pascal_voc"
    title = "Pascal VOC"
    accepts = "a Pascal VOC folder with JPEGImages and SegmentationObject"
    options = ("image_folder",)
    text_field = "the <description> of each <object>"

    def detect(self, source: Source) -> bool:
        path = dataset_path(source)
        return path is not None and path.is_dir() and _root(path) is not None

    def splits(self, source: Source) -> Iterable[str]:
        return _annotations(_folder(source))

    def annotation_files(self, source: Source) -> Iterable[Path]:
        folder = _folder(source)
        files = [file for part in (folder, *split_folders(folder).values()) for file in files_in(part, ".xml")]
        return [*files, *files_in(folder / _XML, ".xml"), *files_in(folder / _MASKS, ".png")]

    def images(self, source: Source, split: str) -> Iterator[LabeledImage | BadRowError]:
        folder = _folder(source)
        annotations = _annotations(folder)[split]
        left_out = {file.stem for file in files_in(folder / _XML, ".xml")} - {file.stem for file in annotations}
        if left_out and not files_in(folder / _SETS, ".txt"):
            notice("no_mask", f"{folder}: {len(left_out):,} images have no mask in {_MASKS}, and are not read")
        root = folder
        if source.image_folder is not None:
            root = find_image_folder(Path(source.data_root), source.image_folder)
        finder, colors = ImageFinder(root), class_colors(folder)
        for file in annotations:
            try:
                yield _labeled_image(folder, file, split, finder, colors)
            except (OSError, ValueError) as error:
                yield error if isinstance(error, BadRowError) else BadRowError(one_line(error).removesuffix("."))


def _root(path: Path) -> Path | None:
    """Return the folder with the files of VOC: the path itself, or VOC2012 or VOCdevkit/VOC2012 below; else None."""
    years = [year for parent in (path, path / "VOCdevkit") for year in _years(parent)]
    for folder in (path, *sorted(years, reverse=True)):
        if (folder / _MASKS).is_dir() or any(map(_is_voc, files_in(folder / _XML, ".xml")[:1])):
            return folder
    parts = (path, *split_folders(path).values())
    return path if any(_is_voc(file) for part in parts for file in files_in(part, ".xml")[:1]) else None


def _years(path: Path) -> list[Path]:
    """Return the subfolders that are named like VOC2012."""
    names = os.listdir(path) if path.is_dir() else []
    return [path / name for name in names if _YEAR.fullmatch(name) and (path / name).is_dir()]


def _is_voc(file: Path) -> bool:
    try:
        with open(file, "rb") as opened:
            return _ROOT.search(opened.read(_HEAD).replace(b"\0", b"")) is not None  # also in UTF-16
    except OSError:
        return False


def _folder(source: Source) -> Path:
    path = dataset_path(source)
    folder = _root(path) if path is not None and path.is_dir() else None
    if folder is None:
        raise FileNotFoundError(
            f"{source.dataset}: expected a folder with {_IMAGES} and {_MASKS}, found none; pass the folder of VOC2012"
        )
    return folder


def _annotations(folder: Path) -> dict[str, list[Path]]:
    """Return the XML files of each split, which need not exist for images that have a mask.

    Raises:
        ValueError: the file of a split is not text.
    """
    annotations = folder / _XML
    sets = {file.stem: file for file in files_in(folder / _SETS, ".txt")}
    if {"train", "val"} & sets.keys():
        sets.pop("trainval", None)  # both of them
    if list(sets) == ["default"]:  # CVAT's name for a task without subsets
        sets = {"train": sets["default"]}
    if sets:
        return {
            SPLIT_FOLDERS.get(name.lower(), name): [annotations / f"{image}.xml" for image in _image_names(file)]
            for name, file in sets.items()
        }
    masks = files_in(folder / _MASKS, ".png")
    if masks:
        return {"train": [annotations / f"{file.stem}.xml" for file in masks]}
    parts = {split: files_in(part, ".xml") for split, part in split_folders(folder).items()}
    found = {split: files for split, files in parts.items() if files}
    return found or {"train": files_in(annotations, ".xml") or files_in(folder, ".xml")}


def _image_names(file: Path) -> list[str]:
    names = [line for _, line in read_lines(file)]
    outside = next((name for name in names if Path(name).is_absolute() or ".." in Path(name).parts), None)
    if outside is not None:
        raise ValueError(f"{file}: expected names of images in {_IMAGES}, got {short(outside)}; fix it")
    if names and all(map(_MEMBER.fullmatch, names)):
        raise ValueError(
            f"{file}: expected one name per line, got the list of a class, {short(names[0])}; keep the names only"
        )
    return names


def _labeled_image(
    folder: Path, file: Path, split: str, finder: ImageFinder, colors: Mapping[tuple[int, int, int], str]
) -> LabeledImage:
    """Return the image of an XML file.

    Args:
        folder: the folder of the dataset.
        file: the XML file, which may be missing if there is a mask.
        split: split of the image.
        finder: finds images.
        colors: name of each class, keyed by its color.

    Raises:
        FileNotFoundError, ValueError: a file is missing, or cannot be read.
    """
    below = file.relative_to(folder / _XML) if file.is_relative_to(folder / _XML) else Path(file.name)
    mask_file = folder / _MASKS / below.with_suffix(".png")
    root = Element("annotation") if mask_file.is_file() and not file.is_file() else read_xml(file)
    if root.tag != "annotation":
        raise ValueError(f"{file}: expected <annotation>, got <{root.tag:.40}>; move files of other formats")
    elements = root.findall("object")
    masks = InstanceMasks(mask_file, [_box(element) for element in elements]) if mask_file.is_file() else None
    if masks is None and elements and not any(element.find("polygon") is not None for element in elements):
        raise BadRowError(
            f"{file}: expected the mask {mask_file}, or a <polygon> in each <object>, got boxes only, which are not "
            "masks; export masks, too",
            "mask_malformed",
        )
    image = _image(folder / _IMAGES / below.parent, file, root.findtext("filename"), finder)
    name = finder.relative(image)
    objects: list[LabeledObject | BadRowError] = []
    if masks is not None and not file.is_file():
        for number, label in masks.labels(folder / _CLASSES / below.with_suffix(".png"), colors).items():
            where = f"{mask_file}: object {number}"
            objects.append(
                LabeledObject(where, object_id(name, number), partial(masks.mask, number, where), label=label)
            )
    for number, element in enumerate(elements, start=1):
        try:
            objects.append(_object(element, number, name, f"{file}: object {number}", masks))
        except BadRowError as error:
            objects.append(error)
    return LabeledImage(str(file), image, name, finder.folder, split, objects, size=_size(root, file))


def _image(images: Path, file: Path, filename: str | None, finder: ImageFinder) -> Path:
    """Return the path of an image: of the same name as its XML file, else as <filename> says."""
    for parent in (images, file.parent, finder.folder):
        same = image_with_stem(parent / file.stem)
        if same is not None:
            return same
    return finder.find((filename or "").strip() or f"{file.stem}.jpg", near=images)


def _size(root: Element, file: Path) -> tuple[int, int] | None:
    """Return height and width as <size> declares them; None without them, or if they are 0."""
    texts = [(root.findtext(f"size/{name}") or "").strip() for name in ("height", "width")]
    try:
        height, width = (int(float(text or 0)) for text in texts)
    except (ValueError, OverflowError):
        raise BadRowError(f"{file}: <size>: expected numbers, got {short(texts)}; fix them") from None
    return (height, width) if height > 0 and width > 0 else None


def _object(
    element: Element, number: int, image: str, where: str, masks: InstanceMasks | None
) -> LabeledObject | BadRowError:
    """Return an object; raise a BadRowError if its outline is invalid.

    Args:
        element: its <object>.
        number: its number in the file, from 1.
        image: name of the image.
        where: prefix of error messages.
        masks: the masks of the image, if it has a PNG.
    """
    polygon = element.find("polygon")
    if masks is not None:
        mask = partial(masks.mask, number, where)
    elif polygon is not None:
        mask = partial(read_mask, _outline(polygon, where), where=f"{where}: <polygon>")
    else:
        raise BadRowError(f"{where}: expected a <polygon>, got a box, which is not a mask; add it", "mask_malformed")
    label = (element.findtext("name") or "").strip()
    field, sentences = find_text(_attributes(element)) or ("description", None)
    return LabeledObject(
        where=where,
        ann_id=object_id(image, number),
        mask=mask,
        label=WORDS.get(label, label) or BadRowError(f"{where}: expected the class as <name>, got nothing; add it"),
        sentences=sentences,
        text_field=field,
    )


def _box(element: Element) -> tuple[float, float, float, float] | None:
    """Return the box of an object, (x1, y1, x2, y2); None if it has none, or an invalid one, as it is not needed."""
    try:
        x1, y1, x2, y2 = (float(element.findtext(f"bndbox/{name}") or "") for name in ("xmin", "ymin", "xmax", "ymax"))
    except ValueError:
        return None
    return (x1, y1, x2, y2) if all_finite([x1, y1, x2, y2]) and x1 < x2 and y1 < y2 else None


def _outline(polygon: Element, where: str) -> list[float]:
    """Return the points <x1>, <y1>, <x2>, ... of a polygon as [x1, y1, x2, ...]."""
    texts = {child.tag: child.text or "" for child in polygon}
    names = [f"{axis}{number}" for number in range(1, len(texts) // 2 + 1) for axis in "xy"]
    try:
        return [float(texts[name]) for name in names]
    except (KeyError, ValueError):
        raise BadRowError(
            f"{where}: <polygon>: expected <x1>, <y1>, <x2>, ... with numbers, got {short(texts)}; fix it",
            "mask_malformed",
        ) from None


def _attributes(element: Element) -> dict[str, Any]:
    """Return the texts of an object's tags and of its <attributes>, each a list."""
    found: dict[str, Any] = {}
    pairs = [(child.tag, child.text) for child in element if not len(child)]
    pairs += [(one.findtext("name"), one.findtext("value")) for one in element.iterfind("attributes/attribute")]
    for name, text in pairs:
        if name and text and text.strip():
            found.setdefault(name.strip(), []).extend(line.strip() for line in text.splitlines())
    return {name: texts[0] if len(texts) == 1 else texts for name, texts in found.items()}
