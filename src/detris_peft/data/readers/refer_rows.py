"""Rows from the references, images and annotations of the REFER and gRefCOCO formats."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from dataclasses import field as dataclass_field
from pathlib import Path
from typing import Any

from ..errors import BadRowError
from ..masks import encode_mask, mask_area, outside_frame, unite_masks
from ..schema import make_row
from .refer_fields import field, read_category, read_sentences


@dataclass
class ReferRows:
    """Converts references into rows.

    Attributes:
        dataset: the dataset's name.
        refs_file, instances_file: where the content comes from, for error messages.
        references: content of the first file.
        images, annotations: content of the second, keyed by id: one of each id, or several that differ.
        repeated: error messages, keyed by index in `references`.
        find_targets: returns the annotation ids of a reference; its second argument prefixes error messages.
    """

    dataset: str
    refs_file: Path
    instances_file: Path
    references: Sequence[Mapping[str, Any]]
    images: Mapping[int, list[dict]]
    annotations: Mapping[int, list[dict]]
    repeated: Mapping[int, str]
    find_targets: Callable[[Mapping[str, Any], str], list[int]]
    # Keyed by annotation id and image size: in gRefCOCO many references share an annotation.
    _masks: dict[tuple[int, int, int], dict[str, Any]] = dataclass_field(default_factory=dict)

    def convert(self, indices: Iterable[int]) -> Iterator[dict[str, Any] | BadRowError]:
        """Yield the row of each reference, without its image, or the error."""
        for index in indices:
            reference = self.references[index]
            try:
                field(reference, "split", str, f"{self.refs_file}: reference {reference.get('ref_id')!r:.60}")
                if index in self.repeated:
                    message = f"{self.refs_file}: {self.repeated[index]}; renumber or remove it"
                    raise BadRowError(message, "duplicate_id")
                yield self._row(reference)
            except BadRowError as error:
                yield error

    def _row(self, reference: Mapping[str, Any]) -> dict[str, Any]:
        """Convert a reference into a row; every error is a BadRowError that names file, id and field."""
        ref_id = field(reference, "ref_id", int, f"{self.refs_file}: a reference")
        where = f"{self.refs_file}: reference {ref_id}"
        ann_ids = self.find_targets(reference, where)
        image_id = field(reference, "image_id", int, where)
        sentences, sent_ids = read_sentences(reference, where)
        annotations = [self._annotation(ann_id, image_id, where) for ann_id in ann_ids]
        image = self._entry("image", self.images, image_id, where)
        where_image = f"{self.instances_file}: image {image_id}"
        file_name = field(image, "file_name", str, where_image)
        height, width = (field(image, name, int, where_image) for name in ("height", "width"))
        if height < 1 or width < 1:
            raise BadRowError(
                f"{where_image}: expected positive 'height' and 'width', got {height}, {width}; fix them"
            )
        masks = [self._mask(annotation, height, width, ref_id) for annotation in annotations]
        return make_row(
            image=file_name,
            sentences=sentences,
            mask=masks[0] if len(masks) == 1 else unite_masks(masks, height, width),
            ref_id=ref_id,
            ann_ids=ann_ids,
            image_id=image_id,
            sent_ids=sent_ids,
            category_id=read_category(reference, annotations, where),
            split=reference["split"],
            dataset=self.dataset,
            file_name=file_name,
        )

    def _annotation(self, ann_id: int, image_id: int, where: str) -> dict:
        annotation = self._entry("annotation", self.annotations, ann_id, where)
        annotated = annotation.get("image_id", image_id)
        if annotated != image_id:
            raise BadRowError(
                f"{where}: expected annotations of image {image_id}, got annotation {ann_id} of image {annotated}; "
                "fix 'image_id' or 'ann_id'"
            )
        return annotation

    def _entry(self, kind: str, entries: Mapping[int, list[dict]], number: int, where: str) -> dict:
        """Return the image or annotation with this id."""
        found = entries.get(number, [])
        if not found and str(number) in entries:
            raise BadRowError(
                f"{self.instances_file}: expected integers as ids, got {kind} {str(number)!r} as text; remove the "
                "quotes"
            )
        if not found:
            raise BadRowError(
                f"{self.instances_file}: no {kind} {number}, expected by {where}; the files do not match, download "
                "both again"
            )
        if len(found) > 1:
            name = "file_name" if kind == "image" else "segmentation"
            values = " and ".join(f"{entry.get(name)!r:.60}" for entry in found[:2])
            raise BadRowError(
                f"{self.instances_file}: expected one {kind} with the id {number}, got two that differ ('{name}': "
                f"{values}), required by {where}; renumber one of them",
                "duplicate_id",
            )
        return found[0]

    def _mask(self, annotation: Mapping[str, Any], height: int, width: int, ref_id: int) -> dict[str, Any]:
        ann_id = annotation["id"]
        key = (ann_id, height, width)
        if key not in self._masks:
            where = f"{self.instances_file}: annotation {ann_id}"
            segmentation = annotation.get("segmentation")
            try:
                mask = encode_mask(segmentation, height, width)
            except BadRowError as error:
                raise BadRowError(f"{where}: {error}", error.kind) from None
            if not mask_area(mask):
                fix = f"fix 'segmentation' or remove reference {ref_id}"
                if outside_frame(segmentation, height, width):
                    raise BadRowError(
                        f"{where}: the mask is entirely outside the image of {width}x{height} pixels; {fix}",
                        "mask_out_of_frame",
                    )
                raise BadRowError(f"{where}: the mask is empty; {fix}", "mask_empty")
            self._masks[key] = mask
        return self._masks[key]
