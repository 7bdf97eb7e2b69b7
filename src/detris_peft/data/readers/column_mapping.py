"""Which columns of a `datasets` repository mean what."""

from __future__ import annotations

import dataclasses
import importlib.resources
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

_MAPPINGS = importlib.resources.files("detris_peft.data.readers") / "mappings"
_IDS = ("ref_id", "ann_id", "image_id", "sent_ids", "category_id")


@dataclass(frozen=True)
class ColumnMapping:
    """Which columns give what; a path such as "sentences.sent" or "info.file_name" goes into structs, lists and JSON.

    Args:
        image: a image column, or one of file names.
        sentences: a text, or a list of them.
        mask: a PNG (image column or file name), polygons or an RLE; any of them also as JSON text.
        box: in place of `mask`: a box, whose rectangle becomes the mask.
        box_format: "xywh" or "xyxy".
        units: of polygons and boxes: "pixels", or "fractions" of the image's width and height.
        rows: a list column; each of its items is a row, with the paths that go through it.
        no_target: true where the sentences refer to nothing.
        split: names each row's split; then rows are taken from all of the repository's splits.
        splits: our name of a split to the repository's: {"testA": "test"}.
        ref_id, ann_id, image_id, sent_ids, category_id, file_name: where they are kept; made up otherwise.
        repositories: names on the Hub that this mapping is for; it is taken there without being asked for.
    """

    image: str = "image"
    sentences: str = "sentences"
    mask: str | None = None
    box: str | None = None
    box_format: str = "xywh"
    units: str = "pixels"
    rows: str | None = None
    no_target: str | None = None
    split: str | None = None
    splits: Mapping[str, str] = field(default_factory=dict)
    ref_id: str | None = None
    ann_id: str | None = None
    image_id: str | None = None
    sent_ids: str | None = None
    category_id: str | None = None
    file_name: str | None = None
    repositories: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if (self.mask is None) == (self.box is None):
            raise ValueError(
                "a column mapping needs 'mask' or 'box', one of them: name the column that marks the target"
            )
        for name, allowed in (("box_format", ("xywh", "xyxy")), ("units", ("pixels", "fractions"))):
            if getattr(self, name) not in allowed:
                raise ValueError(f"a column mapping's '{name}' is {getattr(self, name)!r}: use {' or '.join(allowed)}")

    @classmethod
    def parse(cls, text: str) -> ColumnMapping:
        """From a shipped mapping's name, a YAML file, or "image=img,sentences=caption,mask=segmentation".

        Raises:
            FileNotFoundError: there is no such mapping or file.
            ValueError: it does not describe a mapping.
        """
        if "=" in text:
            pairs = [pair.partition("=") for pair in text.split(",")]
            return cls._from({name.strip(): value.strip() for name, _, value in pairs}, f"columns {text!r}")
        if text in shipped_mappings():
            return cls._from_yaml((_MAPPINGS / f"{text}.yaml").read_text(encoding="utf-8"), text)
        file = Path(text)
        if not file.is_file():
            raise FileNotFoundError(
                f"{text}: no such column mapping: give a YAML file, image=...,sentences=...,mask=..., or one of "
                f"{', '.join(shipped_mappings())}"
            )
        return cls._from_yaml(file.read_text(encoding="utf-8"), text)

    @classmethod
    def for_repository(cls, name: str) -> ColumnMapping | None:
        """The shipped mapping for a dataset on the Hub, if there is one."""
        mappings = map(cls.parse, shipped_mappings())
        return next((one for one in mappings if name.lower() in map(str.lower, one.repositories)), None)

    def paths(self) -> dict[str, str]:
        """Every path that is given, by the name of its field."""
        names = ("image", "sentences", "mask", "box", "rows", "no_target", "split", *_IDS, "file_name")
        return {name: getattr(self, name) for name in names if getattr(self, name) is not None}

    @classmethod
    def _from_yaml(cls, text: str, where: str) -> ColumnMapping:
        try:
            return cls._from(yaml.safe_load(text), where)
        except yaml.YAMLError as error:
            raise ValueError(f"{where}: not readable as YAML ({' '.join(str(error).split())}): mend it") from None

    @classmethod
    def _from(cls, values: Any, where: str) -> ColumnMapping:
        names = [one.name for one in dataclasses.fields(cls)]
        if not isinstance(values, dict):
            raise ValueError(f"{where}: is {values!r:.40}: a column mapping has the fields {', '.join(names)}")
        unknown = sorted(map(str, values.keys() - set(names)))
        if unknown:
            raise ValueError(
                f"{where}: {', '.join(unknown)} is unknown: a column mapping has the fields {', '.join(names)}"
            )
        for name, value in values.items():
            wanted = {"splits": dict, "repositories": list}.get(name, str)
            if not isinstance(value, wanted) or not value:
                raise ValueError(f"{where}: '{name}' is {value!r}: it must be of type {wanted.__name__} and not empty")
        try:
            return cls(**{**values, "repositories": tuple(values.get("repositories", ()))})
        except ValueError as error:
            raise ValueError(f"{where}: {error}") from None


def shipped_mappings() -> list[str]:
    """Names of the mappings that come with the package."""
    return sorted(Path(file.name).stem for file in _MAPPINGS.iterdir() if file.name.endswith(".yaml"))


def look_up(row: Any, path: str) -> Any:
    """What stands at a path in a row; lists on the way give a list, text on the way is read as JSON.

    Raises:
        ValueError: text on the way is no JSON.
    """
    if path in row:
        return row[path]
    for key in path.split("."):
        row = _step(row, key)
    return row


def _step(value: Any, key: str) -> Any:
    if isinstance(value, str):
        value = json.loads(value)
    if isinstance(value, list):
        return [_step(item, key) for item in value]
    return value.get(key) if isinstance(value, Mapping) else None
