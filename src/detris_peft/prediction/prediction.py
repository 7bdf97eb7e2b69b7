"""What a predictor returns for one image and one sentence."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from ..data.masks import encode_mask
from ..mask_measures import mask_box, mask_score
from ..visualization import overlay


@dataclass(frozen=True, eq=False)
class Prediction:
    """The object that a sentence refers to in an image of H×W pixels.

    Attributes:
        text: the sentence.
        mask: (H, W) bool, at the original size of the image.
        score: mean probability inside the mask, in [0, 1]; 0.0 for an empty mask.
        box: (x1, y1, x2, y2) in pixels; x2 and y2 are exclusive. None for an empty mask.
        probabilities: (H, W) float32 in [0, 1], if they were requested.
    """

    text: str
    mask: np.ndarray
    score: float
    box: tuple[int, int, int, int] | None
    probabilities: np.ndarray | None = None

    @classmethod
    def from_probabilities(
        cls, text: str, probabilities: np.ndarray, threshold: float, keep_probabilities: bool = False
    ) -> Prediction:
        """Return the prediction for probabilities (H, W), whose foreground is above the threshold."""
        mask = probabilities > threshold
        kept = probabilities.clip(0, 1) if keep_probabilities else None  # bicubic interpolation may exceed [0, 1]
        return cls(text, mask, mask_score(probabilities, mask), mask_box(mask), kept)

    @property
    def no_target(self) -> bool:
        """Whether the mask is empty: the model found nothing that the sentence refers to."""
        return self.box is None

    @property
    def size(self) -> tuple[int, int]:
        """(H, W) of the image in pixels."""
        return self.mask.shape[0], self.mask.shape[1]

    def to_rle(self) -> dict[str, Any]:
        """Return the mask as a compressed COCO RLE: `size` ([H, W]) and `counts` (str)."""
        return encode_mask(self.mask, *self.size)

    def to_json(self, image: str) -> dict[str, Any]:
        """Return the record of a JSON Lines file.

        Args:
            image: name of the image, such as its path.

        Returns:
            `image`, `text`, `segmentation` (RLE), `bbox` ([x, y, width, height] in pixels, or None), `score` and
            `no_target`.
        """
        x1, y1, x2, y2 = self.box or (0, 0, 0, 0)
        return {
            "image": image,
            "text": self.text,
            "segmentation": self.to_rle(),
            "bbox": None if self.box is None else [x1, y1, x2 - x1, y2 - y1],
            "score": round(self.score, 6),
            "no_target": self.no_target,
        }

    def to_supervision(self) -> Any:
        """Return the prediction as `supervision.Detections`, empty if there is no target.

        Its `data["class_name"]` holds the sentence.

        Raises:
            ImportError: supervision is not installed.
        """
        try:
            import supervision
        except ImportError:
            raise ImportError(
                "to_supervision: expected supervision to be installed, found no such package; run: pip install "
                "supervision."
            ) from None
        if self.box is None:
            return supervision.Detections.empty()
        return supervision.Detections(
            xyxy=np.array([self.box], np.float32),
            mask=self.mask[None],
            confidence=np.array([self.score], np.float32),
            class_id=np.array([0]),
            data={"class_name": np.array([self.text])},
        )

    def mask_image(self) -> Image.Image:
        """Return the mask as an image in mode "L": 255 inside, 0 outside."""
        return Image.fromarray(self.mask.astype(np.uint8) * 255)

    def overlay(self, image: Image.Image) -> Image.Image:
        """Return the image with the mask drawn on it.

        Raises:
            ValueError: the image has another size.
        """
        return overlay(image, self.mask)
