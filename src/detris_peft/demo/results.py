"""What the page shows and offers for download: overlays, captions, mask images and JSON."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Sequence
from io import BytesIO

import numpy as np
from PIL import Image

from ..prediction import Prediction
from ..prediction.row_predictor import encode_image, slug
from ..visualization import overlay
from .limits import DISPLAY_SIZE, MIN_DISPLAY_SIZE


def display_image(image: Image.Image, prediction: Prediction) -> Image.Image:
    """Return the image with the mask drawn on it, at the size at which the page shows it."""
    longer = max(image.size)
    scale = min(max(longer, MIN_DISPLAY_SIZE), DISPLAY_SIZE) / longer  # enlarged, so that the outline is thin
    width, height = (max(round(side * scale), 1) for side in image.size)
    shown = image.resize((width, height), Image.Resampling.BICUBIC, reducing_gap=2.0)
    mask = Image.fromarray(prediction.mask).resize((width, height), Image.Resampling.NEAREST)
    return overlay(shown, np.asarray(mask))


def caption(prediction: Prediction, title: str = "") -> str:
    """Return the sentence with its score, or with "no target"; before it the title of the checkpoint, if given."""
    start = f"{title}: " if title else ""
    return f"{start}{prediction.text} · {'no target' if prediction.no_target else f'score {prediction.score:.2f}'}"


def mask_iou(first: np.ndarray, second: np.ndarray) -> float:
    """Return the intersection over union of two masks (H, W); 1.0 if both are empty."""
    union = np.count_nonzero(first | second)
    return np.count_nonzero(first & second) / union if union else 1.0


def masks_file(predictions: Sequence[Prediction]) -> tuple[str, bytes]:
    """Return name and content of a download: a PNG for one mask, a zip file of PNGs for several."""
    files = {}
    for i, prediction in enumerate(predictions, start=1):
        files[f"{i:02}_{slug(prediction.text)}.png"] = encode_image(prediction.mask_image(), ".png")
    if len(files) == 1:
        return "mask.png", files.popitem()[1]
    buffer = BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:  # PNGs are compressed already
        for name, content in files.items():
            archive.writestr(zipfile.ZipInfo(name), content)
    return "masks.zip", buffer.getvalue()


def json_file(predictions: Sequence[Prediction], image_name: str) -> tuple[str, bytes]:
    """Return name and content of a JSON file with a list of records, see `Prediction.to_json`."""
    records = [prediction.to_json(image_name) for prediction in predictions]
    return "predictions.json", (json.dumps(records, indent=2) + "\n").encode()
