"""Write the images, masks and lines of the splits."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from PIL import Image

from ...masks import decode_mask
from ...readers.folder import METADATA
from ..output_folder import unique_name
from .lines import Ids
from .result import WrittenSplit
from .source_images import SourceImage, SourceImages, map_in_threads


@dataclass
class _Item:
    """An image with its lines, to be written to the folder of a split."""

    folder: Path
    name: str  # relative to the folder
    file: Path | bytes
    lines: list[dict[str, Any]]
    masks: dict[str, Mapping[str, Any]]  # RLEs by name, relative to the folder


@dataclass
class SplitWriter:
    """Writes the splits of a dataset.

    Args:
        folder: an empty folder.
        source: the dataset.
        extra: fields to add to the lines, by split and ref_id of the source.
        counts: counts of each split, to be completed.
    """

    folder: Path
    source: SourceImages
    extra: Mapping[tuple[str, int], Mapping[str, Any]]
    counts: Mapping[str, WrittenSplit]

    def write(self, images: Sequence[SourceImage], splits: Sequence[str], ids: Ids, num_workers: int) -> Iterator[str]:
        """Write the images with their lines and masks, and yield the name of each image, relative to the folder.

        Args:
            images: the images.
            splits: the split of each image.
            ids: ids of all rows of the images.
            num_workers: number of threads.
        """
        for split in self.counts:
            (self.folder / split / "masks").mkdir(parents=True)
        with ExitStack() as stack:
            files = {
                # JSON text may hold half of a surrogate pair, which is written as it was: escaped.
                split: stack.enter_context(
                    open(self.folder / split / METADATA, "w", encoding="utf-8", errors="backslashreplace")
                )
                for split in self.counts
            }
            for item, _ in map_in_threads(_write_files, self._items(images, splits, ids), num_workers):
                split = item.folder.name
                files[split].writelines(json.dumps(line, ensure_ascii=False) + "\n" for line in item.lines)
                yield f"{split}/{item.name}"

    def _items(self, images: Sequence[SourceImage], splits: Sequence[str], ids: Ids) -> Iterator[_Item]:
        names: dict[str, set[str]] = {split: set() for split in self.counts}
        for number, (image, split) in enumerate(zip(images, splits, strict=True)):
            name = f"images/{unique_name(_output_name(image), names[split])}"
            item = _Item(self.folder / split, name, self.source.file(*image.rows[0]), [], {})
            for position in image.rows:
                self._add_row(item, self.source.row(*position), ids, number)
            self._count(self.counts[split], item)
            yield item

    def _add_row(self, item: _Item, row: Mapping[str, Any], ids: Ids, number: int) -> None:
        new_ids = ids.of(number, row)
        line = {"file_name": item.name, "sentences": row["sentences"], **new_ids}
        line = {**self.extra.get((row["split"], row["ref_id"]), {}), **line}
        if row["no_target"]:
            line["no_target"] = True
        else:
            line["mask_file_name"] = f"masks/{new_ids['ref_id']}.png"
            item.masks[line["mask_file_name"]] = row["mask"]
        item.lines.append(line)

    def _count(self, counts: WrittenSplit, item: _Item) -> None:
        counts.images += 1
        counts.references += len(item.lines)
        counts.sentences += sum(len(line["sentences"]) for line in item.lines)
        counts.no_target += len(item.lines) - len(item.masks)
        counts.licenses[str(item.lines[0].get("license") or "")] += 1


def _write_files(item: _Item) -> None:
    file = item.folder / item.name
    file.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(item.file, bytes):
        file.write_bytes(item.file)
    else:
        shutil.copyfile(item.file, file)
    for name, mask in item.masks.items():
        Image.fromarray(decode_mask(mask) > 0).save(item.folder / name)


def _output_name(image: SourceImage) -> str:
    """Return the name of an image below the image folder: without the folders of the split and of the images."""
    path = PurePosixPath(image.name.replace("\\", "/"))
    parts = [*path.parts]
    for folder in (image.rows[0][0], "images"):
        if len(parts) > 1 and parts[0] == folder:
            del parts[0]
    path = PurePosixPath(*parts)
    return str(path if path.suffix else path.with_suffix(image.content.suffix))
