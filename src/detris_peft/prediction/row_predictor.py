"""Prediction of the rows of a job: images are loaded in threads while the model runs. Rows can fail one by one."""

from __future__ import annotations

import json
import os
import re
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image

from ..errors import one_line
from .image_loading import load_image
from .pairs import Pair
from .prediction import Prediction
from .predictor import DetrisPredictor, PreparedImage

SAVED = {"overlay": "overlays", "mask": "masks", "probability": "probabilities"}  # folder of each kind of image
MAX_JPEG_SIDE = 65_500  # pixels
_LOOK_AHEAD = 1  # batches whose images are loaded while the model runs
_SLUG_LENGTH = 40

Rows = Sequence[tuple[int, Pair]]


@dataclass(frozen=True)
class RowResult:
    """The result of one row.

    Attributes:
        row: number of the row, from 0.
        line: its record as one line of JSON.
        failed: whether the record is an error instead of a prediction.
    """

    row: int
    line: str
    failed: bool


@dataclass(frozen=True, eq=False)
class LoadedImage:
    """An image that is ready for the model, or an error; `image` is kept only to draw on it."""

    prepared: PreparedImage | None = None
    image: Image.Image | None = None
    error: str | None = None


class RowPredictor:
    """Predicts rows, and writes the images that are saved with them.

    Args:
        predictor: the predictor.
        threshold: probability above which a pixel is foreground; default: the checkpoint's.
        save: kinds of images to write, keys of `SAVED`.
        folder: folder of their folders.
        total: number of rows of the job, which determines the width of the numbers in file names.
    """

    def __init__(
        self,
        predictor: DetrisPredictor,
        threshold: float | None = None,
        save: Sequence[str] = (),
        folder: Path | None = None,
        total: int = 0,
    ) -> None:
        self.predictor = predictor
        self.threshold = threshold
        self.save = [name for name in SAVED if name in save]
        self.folder = folder or Path()
        self.digits = max(6, len(str(total)))

    def stream(self, batches: Iterable[Rows], num_workers: int = 1) -> Iterator[list[RowResult]]:
        """Yield the results of each batch, in order.

        Args:
            batches: the rows of each forward pass.
            num_workers: threads that decode and letterbox the images of the next batch.

        Raises:
            OSError: an image cannot be written.
        """
        pool = ThreadPoolExecutor(num_workers, "load_images")
        pending: deque[tuple[Rows, list[Future[LoadedImage]]]] = deque()
        last: tuple[str, Future[LoadedImage]] | None = None
        try:
            for rows in batches:
                futures = []
                for _, pair in rows:
                    # Consecutive rows with the same image load it once.
                    if last is None or not pair.source or pair.source != last[0]:
                        last = pair.source, pool.submit(self.load, pair)
                    futures.append(last[1])
                pending.append((rows, futures))
                if len(pending) > _LOOK_AHEAD:
                    yield self._finish(*pending.popleft())
            while pending:
                yield self._finish(*pending.popleft())
        finally:
            pool.shutdown(wait=False, cancel_futures=True)

    def load(self, pair: Pair) -> LoadedImage:
        """Load the image of a row. An image that cannot be read gives an error instead of raising it."""
        if pair.error is not None:
            return LoadedImage(error=pair.error)
        try:
            image = load_image(pair.source)
            return LoadedImage(self.predictor.prepare(image), image if "overlay" in self.save else None)
        except (OSError, ValueError, TypeError) as error:
            return LoadedImage(error=one_line(error))

    def predict(self, rows: Rows, loaded: Sequence[LoadedImage]) -> list[RowResult]:
        """Return the result of each row, after one forward pass for those without an error."""
        valid = [
            (image.prepared, pair.text)
            for (_, pair), image in zip(rows, loaded, strict=True)
            if image.prepared is not None and pair.error is None
        ]
        keep = "probability" in self.save
        predictions = iter(self.predictor.predict_batch(valid, self.threshold, keep) if valid else [])
        results = []
        for (row, pair), image in zip(rows, loaded, strict=True):
            error = pair.error or image.error
            if error is not None:
                record = {"row": row + 1, "image": pair.image, "text": pair.text, "error": error}
            else:
                prediction = next(predictions)
                record = prediction.to_json(pair.image)
                if self.save:
                    record["files"] = self._save(row, pair, prediction, image.image)
            results.append(RowResult(row, json.dumps(record, ensure_ascii=False), error is not None))
        return results

    def _finish(self, rows: Rows, futures: Sequence[Future[LoadedImage]]) -> list[RowResult]:
        return self.predict(rows, [future.result() for future in futures])

    def _save(self, row: int, pair: Pair, prediction: Prediction, image: Image.Image | None) -> dict[str, str]:
        """Write the images of a row; return their paths, relative to the folder, by kind."""
        name = f"{row + 1:0{self.digits}}_{slug(Path(pair.image.split('?')[0]).stem)}_{slug(pair.text)}"
        files = {}
        for kind in self.save:
            suffix = ".jpg" if kind == "overlay" and max(prediction.size) <= MAX_JPEG_SIDE else ".png"
            files[kind] = f"{SAVED[kind]}/{name}{suffix}"
            _write_image(self.folder / files[kind], _drawn(kind, prediction, image))
        return files


def encode_image(image: Image.Image, suffix: str) -> bytes:
    """Return the content of an image file: JPEG (quality 92) for .jpg and .jpeg, else PNG.

    Raises:
        ValueError: the image is too large for a JPEG.
    """
    buffer = BytesIO()
    if suffix.lower() in (".jpg", ".jpeg"):
        if max(image.size) > MAX_JPEG_SIDE:
            raise ValueError(
                f"expected an image of at most {MAX_JPEG_SIDE:,} pixels per side for a {suffix} file, got "
                f"{image.width:,}x{image.height:,}; write a .png file."
            )
        image.convert("RGB").save(buffer, format="JPEG", quality=92)
    else:
        image.save(buffer, format="PNG")
    return buffer.getvalue()


def _drawn(kind: str, prediction: Prediction, image: Image.Image | None) -> Image.Image:
    if kind == "mask":
        return prediction.mask_image()
    if kind == "overlay":
        assert image is not None
        return prediction.overlay(image)
    assert prediction.probabilities is not None
    return Image.fromarray(np.rint(prediction.probabilities * 65535).astype(np.uint16))


def _write_image(file: Path, image: Image.Image) -> None:
    """Write an image under a temporary name that is the same at each attempt, and rename it. Nothing is synced."""
    part = file.with_name(f".{file.name}.part")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        part.write_bytes(encode_image(image, file.suffix))
        part.replace(file)
    except BaseException as error:
        with suppress(OSError):
            part.unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise unwritable(error, file) from None
        raise


def unwritable(error: OSError, file: str | os.PathLike) -> OSError:
    """Return the error for a file that cannot be written, with what to do about it."""
    reason = error.strerror or one_line(error)
    return OSError(
        f"{os.fspath(file)}: cannot be written ({reason}); free some space or change its permissions, and continue "
        "with --resume."
    )


def slug(text: str) -> str:
    """Return a part of a file name: lower-case ASCII letters and digits, joined by hyphens."""
    words = re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")
    return words[:_SLUG_LENGTH].strip("-") or "x"
