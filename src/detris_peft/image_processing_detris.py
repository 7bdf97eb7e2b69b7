"""Image processor of DETRIS: images and masks to model inputs, and logits back to masks of the original size.

All resizing and coordinate transforms happen here. The letterbox scales an image of H×W pixels by min(s/H, s/W), where
s is `image_size`, centers it on a canvas of h×w pixels, and pads with the mean color. A single affine matrix maps
images and masks to the canvas; its inverse maps predictions back.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from numbers import Real
from typing import Any

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from transformers import BatchFeature
from transformers.image_processing_utils import BaseImageProcessor
from transformers.processing_utils import ImagesKwargs

from .defaults import CLIP_MEAN, CLIP_STD, IMAGE_SIZE, MASK_THRESHOLD, MAX_IMAGE_SIZE
from .field_types import describe_type, has_type
from .image_inputs import as_list, as_sizes, check_counts, checked_logits, reduction_factor, to_foreground, to_rgb
from .mask_measures import mask_box, mask_score
from .pixel_levels import LABEL_LEVELS, look_up, normalized_levels

# Type, accepted values in words, and test of the accepted values.
FIELDS: dict[str, tuple[Any, str, Callable[[Any], bool]]] = {
    "image_size": (int, f"1 to {MAX_IMAGE_SIZE} pixels", lambda value: 1 <= value <= MAX_IMAGE_SIZE),
    "mask_threshold": (float, "above 0 and below 1", lambda value: 0 < value < 1),
    "keep_aspect_ratio": (bool, "True or False", lambda value: True),
    "patch_size": (int, f"1 to {MAX_IMAGE_SIZE} pixels", lambda value: 1 <= value <= MAX_IMAGE_SIZE),
    "image_mean": (
        list[float],
        "three from 0 to 1",
        lambda value: len(value) == 3 and all(0 <= v <= 1 for v in value),
    ),
    "image_std": (
        list[float],
        "three above 0",
        lambda value: len(value) == 3 and all(0 < v < math.inf for v in value),
    ),
}


class DetrisImageProcessorKwargs(ImagesKwargs, total=False):
    """Fields that `from_pretrained` may override."""

    image_size: int
    mask_threshold: float
    keep_aspect_ratio: bool
    patch_size: int


class DetrisImageProcessor(BaseImageProcessor):
    """Letterboxes and normalizes images and masks, and converts logits to masks.

    Args:
        image_size: s, the longer side of an image after scaling, in pixels.
        mask_threshold: probability above which a pixel is foreground.
        keep_aspect_ratio: False: an s×s canvas, as in the paper. True: the smallest h×w canvas that holds every image
            of the batch, both sides multiples of `patch_size`.
        patch_size: side of the image encoder's patches in pixels; only used with `keep_aspect_ratio`.
        image_mean: mean per channel, of values in [0, 1]; also the color of the padding.
        image_std: standard deviation per channel, of values in [0, 1].

    Raises:
        ValueError: a field has a wrong type or value; the message names it.
    """

    valid_kwargs = DetrisImageProcessorKwargs

    def __init__(
        self,
        image_size: int = IMAGE_SIZE,
        mask_threshold: float = MASK_THRESHOLD,
        keep_aspect_ratio: bool = False,
        patch_size: int = 14,
        image_mean: Sequence[float] = CLIP_MEAN,
        image_std: Sequence[float] = CLIP_STD,
        **kwargs,
    ):
        super().__init__(**kwargs)
        fields = {
            "image_size": image_size,
            "mask_threshold": mask_threshold,
            "keep_aspect_ratio": keep_aspect_ratio,
            "patch_size": patch_size,
            "image_mean": image_mean.tolist() if isinstance(image_mean, np.ndarray) else image_mean,
            "image_std": image_std.tolist() if isinstance(image_std, np.ndarray) else image_std,
        }
        for name, value in fields.items():
            kind, expected, is_valid = FIELDS[name]
            if not has_type(value, kind) or not is_valid(value):
                raise ValueError(
                    f"DetrisImageProcessor: {name}: expected {describe_type(kind)}, {expected}, got {value!r:.80}; "
                    "correct it."
                )
        self.image_size = image_size
        self.mask_threshold = mask_threshold
        self.keep_aspect_ratio = keep_aspect_ratio
        self.patch_size = patch_size
        self.image_mean = list(image_mean)
        self.image_std = list(image_std)

    def preprocess(
        self,
        images,
        masks=None,
        return_tensors: str | None = "pt",
        original_sizes=None,
        as_bytes: bool = False,
        **kwargs,
    ) -> BatchFeature:
        """Prepare one image or B images, with or without their masks.

        Args:
            images: path, PIL image of any mode (EXIF rotation is applied, alpha is dropped, 16 bits become 8), array
                (H,W), (H,W,1), (H,W,3) or (H,W,4) of uint8, uint16 or bool, or tensor (3,H,W) or (H,W,3) of uint8 or
                of floats in [0, 1]; or a list of them.
            masks: (H,W) array or tensor, foreground > 0, or PIL image as for `read_foreground`, with the size of the
                image after EXIF rotation.
            return_tensors: "pt" or "np"; None leaves NumPy arrays.
            original_sizes: (B,2), the (H,W) of the files, for images that a JPEG decoder reduced to 1/2, 1/4 or 1/8 of
                their size; None if no image was reduced. Masks and predictions have the original size.
            as_bytes: return what `normalize_bytes` converts to `pixel_values` and `labels`, a quarter of their size:
                `pixel_bytes` (B,h,w,3) and `label_bytes` (B,h,w) of uint8.

        Returns:
            `pixel_values` (B,3,h,w) float32, `target_sizes` (B,2) with the original (H,W), and with masks `labels`
            (B,h,w) float32 in [0,1], soft at warped edges. h = w = `image_size` unless `keep_aspect_ratio`.

        Raises:
            ValueError: the numbers of images and masks differ, a mask does not have the size of its image, an image is
                not a reduction of its original size, an array is not an image, or a PIL image cannot be decoded.
            TypeError: an item has an unsupported type, or a keyword is unknown.
        """
        if kwargs:
            raise TypeError(
                f"expected images, masks, return_tensors, original_sizes and as_bytes, got {', '.join(kwargs)}; "
                "remove the unknown arguments"
            )
        if return_tensors not in ("pt", "np", None):
            raise ValueError(
                f'return_tensors: expected "pt", "np" or None, got {return_tensors!r:.80}; pass one of them'
            )
        images, masks, original_sizes = as_list(images), as_list(masks), as_sizes(original_sizes)
        check_counts(images=images, masks=masks, original_sizes=original_sizes)
        arrays: Iterable[np.ndarray] = (to_rgb(image, f"images[{i}]") for i, image in enumerate(images or ()))
        # If the sizes are known, images are converted one at a time, so that they reuse the same memory.
        if (sizes := original_sizes) is None:
            arrays = list(arrays)
            sizes = [pixels.shape[:2] for pixels in arrays]
        canvas = self.canvas_size(sizes)
        # Warped in place: copying a batch takes about as long as warping it.
        data: dict[str, Any] = {"pixel_bytes": np.empty((len(sizes), *canvas, 3), dtype=np.uint8)}
        for i, (pixels, size) in enumerate(zip(arrays, sizes, strict=True)):
            reduction = reduction_factor(pixels.shape[:2], size, f"images[{i}]")
            self._warp_image(pixels, size, reduction, out=data["pixel_bytes"][i])
        data["target_sizes"] = np.array(sizes, dtype=np.int64)
        if masks is not None:
            data["label_bytes"] = np.empty((len(sizes), *canvas), dtype=np.uint8)
            for i, (mask, size) in enumerate(zip(masks, sizes, strict=True)):
                self._warp_mask(to_foreground(mask, size, f"masks[{i}]"), out=data["label_bytes"][i])
        return BatchFeature(data if as_bytes else self.normalize_bytes(data), tensor_type=return_tensors)

    def post_process_referring_segmentation(
        self, outputs, target_sizes, threshold: float | None = None, return_probabilities: bool = False
    ) -> list[torch.Tensor]:
        """Convert logits to masks of the original size: sigmoid, bicubic to the canvas, inverse letterbox, threshold.

        Args:
            outputs: output of the model, or its logits (B,1,h',w').
            target_sizes: (B,2), the (H,W) returned by the processor; with `keep_aspect_ratio` those of the complete
                batch, because they determine the canvas.
            threshold: probability above which a pixel is foreground; default: `mask_threshold`.
            return_probabilities: return probabilities instead of masks; bicubic interpolation may exceed [0, 1].

        Returns:
            B tensors (H,W) on the CPU: bool, or float32 with `return_probabilities`.

        Raises:
            ValueError: the logits are not (B,1,h',w') or contain NaN, the numbers of logit maps and sizes differ, or
                the threshold is not a probability.
            TypeError: `outputs` has no logits.
        """
        threshold = self._checked_threshold(threshold)
        maps = self._probability_maps(outputs, [] if target_sizes is None else target_sizes)
        return maps if return_probabilities else [probability > threshold for probability in maps]

    def post_process_semantic_segmentation(
        self, outputs, target_sizes=None, threshold: float | None = None
    ) -> list[torch.Tensor]:
        """Convert logits to binary segmentation maps, with the names and keys of transformers' SAM 3.

        Args:
            outputs: output of the model, or its logits (B,1,h',w').
            target_sizes: (B,2), the (H,W) returned by the processor. None: maps of the canvas, without the inverse of
                the letterbox.
            threshold: probability above which a pixel is foreground; default: `mask_threshold`.

        Returns:
            B int64 tensors (H,W) on the CPU: 1 for what the sentence refers to, 0 elsewhere.

        Raises:
            ValueError, TypeError: as for `post_process_referring_segmentation`.
        """
        threshold = self._checked_threshold(threshold)
        return [(map_ > threshold).long() for map_ in self._probability_maps(outputs, target_sizes)]

    def post_process_instance_segmentation(
        self, outputs, threshold: float = 0.3, mask_threshold: float | None = None, target_sizes=None
    ) -> list[dict[str, torch.Tensor]]:
        """Convert logits to instances, with the names and keys of transformers' SAM 3.

        A sentence refers to one object, so that there is one instance per row of the batch, or none: if the mask is
        empty, or its score is not above `threshold`.

        Args:
            outputs: output of the model, or its logits (B,1,h',w').
            threshold: score above which an instance is returned.
            mask_threshold: probability above which a pixel is foreground; default: the field `mask_threshold`.
            target_sizes: (B,2), the (H,W) returned by the processor. None: masks of the canvas, without the inverse of
                the letterbox.

        Returns:
            B dicts of tensors on the CPU, for n = 0 or 1 instances: `scores` (n,) float32, the mean probability inside
            the mask; `boxes` (n,4) float32, (x1, y1, x2, y2) in pixels; `masks` (n,H,W) int64.

        Raises:
            ValueError, TypeError: as for `post_process_referring_segmentation`.
        """
        mask_threshold = self._checked_threshold(mask_threshold, "mask_threshold")
        threshold = self._checked_threshold(threshold)
        instances = []
        for map_ in self._probability_maps(outputs, target_sizes):
            mask = (map_ > mask_threshold).numpy()
            score, box = mask_score(map_.numpy(), mask), mask_box(mask)
            kept = box is not None and score > threshold
            instances.append(
                {
                    "scores": torch.tensor([score] if kept else []),
                    "boxes": torch.tensor([box] if kept else [], dtype=torch.float32).reshape(-1, 4),
                    "masks": torch.from_numpy(mask[None] if kept else mask[None][:0]).long(),
                }
            )
        return instances

    def _checked_threshold(self, threshold: float | None, name: str = "threshold") -> float:
        """Return the threshold; None is the field `mask_threshold`."""
        threshold = self.mask_threshold if threshold is None else threshold
        if not isinstance(threshold, Real) or not 0 <= threshold <= 1:
            raise ValueError(f"{name}: expected a probability from 0 to 1, got {threshold!r:.80}; change it")
        return threshold

    def _probability_maps(self, outputs, target_sizes) -> list[torch.Tensor]:
        """Convert logits to B probability maps (H,W) of the given sizes; None: of the canvas."""
        logits, sizes = checked_logits(outputs), as_sizes(target_sizes, "target_sizes")
        if sizes is not None and len(sizes) != len(logits):
            raise ValueError(f"target_sizes: expected {len(logits)}, got {len(sizes)}; pass one (H, W) per logit map")
        if sizes is not None:
            canvas = self.canvas_size(sizes)
        elif self.keep_aspect_ratio:  # the model returns 4×4 logits per patch
            canvas = logits.shape[2] * self.patch_size // 4, logits.shape[3] * self.patch_size // 4
        else:
            canvas = (self.image_size, self.image_size)
        # align_corners=True and the inverse warp are part of the method: other choices shift the mask by half a pixel.
        on_canvas = F.interpolate(logits.detach().float().sigmoid(), canvas, mode="bicubic", align_corners=True)
        maps = on_canvas[:, 0].cpu()
        if sizes is None:
            return [*maps]
        flags = cv2.INTER_CUBIC | cv2.WARP_INVERSE_MAP
        warped = []
        for probability, (height, width) in zip(maps.numpy(), sizes, strict=True):
            matrix = self.letterbox_matrix((height, width), canvas)
            warped.append(cv2.warpAffine(probability, matrix, (width, height), flags=flags, borderValue=0.0))
        return [torch.from_numpy(probability) for probability in warped]

    def normalize_bytes(self, inputs: Mapping[str, Any]) -> dict[str, Any]:
        """Return inputs with `pixel_bytes` and `label_bytes` converted to `pixel_values` and `labels`.

        Args:
            inputs: output of `preprocess(..., as_bytes=True)`, with arrays or tensors. Other entries are kept.
        """
        converted = dict(inputs)
        if "pixel_bytes" in inputs:
            levels = normalized_levels(self.image_mean, self.image_std)
            converted["pixel_values"] = look_up(converted.pop("pixel_bytes"), levels)
        if "label_bytes" in inputs:
            converted["labels"] = look_up(converted.pop("label_bytes")[..., None], LABEL_LEVELS)[:, 0]
        return converted

    def is_visible(self, mask: np.ndarray) -> bool:
        """Return whether any foreground of a mask (H, W) survives the letterbox on the square canvas."""
        if not isinstance(mask, np.ndarray) or mask.ndim != 2 or not mask.size or mask.dtype != np.uint8:
            got = f"{mask.dtype} of shape {mask.shape}" if isinstance(mask, np.ndarray) else type(mask).__name__
            raise ValueError(f"mask: expected a uint8 array (H, W), got {got}; convert it first")
        # Samples are 1 / scale apart and cover 2 × 2 pixels: a filled square wider than that contains one. Most masks
        # have such a square in the middle of their box; for the others the label is computed.
        side = math.ceil(1 / self._scale(*mask.shape)) + 2
        left, top, width, height = cv2.boundingRect(mask)
        x, y = left + (width - side) // 2, top + (height - side) // 2
        if min(width, height) >= side and mask[y : y + side, x : x + side].all():
            return True
        label = np.empty((self.image_size, self.image_size), dtype=np.uint8)
        self._warp_mask(mask > 0, out=label)
        return bool(label.any())

    def canvas_size(self, sizes) -> tuple[int, int]:
        """Return the (h, w) of `pixel_values` for a batch of images of these (H, W)."""
        if not self.keep_aspect_ratio:
            return self.image_size, self.image_size
        longest = np.max([np.multiply(size, self._scale(*size)) for size in sizes], axis=0)
        # Rounded, so that a floating-point error of 1e-13 does not add a patch.
        patches = np.ceil(np.round(longest / self.patch_size, 6)).astype(int)
        return int(patches[0]) * self.patch_size, int(patches[1]) * self.patch_size

    def letterbox_matrix(self, size: tuple[int, int], canvas: tuple[int, int]) -> np.ndarray:
        """Return the (2,3) matrix from (x, y) in an image of `size` (H, W) to (x, y) on a canvas of (h, w).

        It maps corners to corners without the half-pixel offset of pixel centers, and is computed from three points in
        float32: the released implementation did both, and its weights were trained that way.
        """
        (height, width), (canvas_height, canvas_width) = size, canvas
        scale = self._scale(height, width)
        new_width, new_height = width * scale, height * scale
        left, top = (canvas_width - new_width) / 2, (canvas_height - new_height) / 2
        corners = np.array([[0, 0], [width, 0], [0, height]], dtype=np.float32)
        placed = np.array([[left, top], [left + new_width, top], [left, top + new_height]], dtype=np.float32)
        return cv2.getAffineTransform(corners, placed)

    def _scale(self, height: int, width: int) -> float:
        return min(self.image_size / height, self.image_size / width)

    def _warp_image(self, image: np.ndarray, size: tuple[int, int], reduction: int, out: np.ndarray) -> None:
        """Warp uint8 (H,W,3), decoded at 1 / `reduction` of its size, to uint8 (h,w,3) in `out`."""
        border = [255 * channel for channel in self.image_mean]
        matrix = self.letterbox_matrix(size, out.shape[:2])
        if reduction > 1:
            # Offset by the center of a reduced pixel.
            center = (reduction - 1) / 2
            matrix = matrix @ np.array([[reduction, 0, center], [0, reduction, center], [0, 0, 1]])
        cv2.warpAffine(image, matrix, out.shape[1::-1], dst=out, flags=cv2.INTER_CUBIC, borderValue=border)

    def _warp_mask(self, foreground: np.ndarray, out: np.ndarray) -> None:
        """Warp bool (H,W) to uint8 (h,w) in `out`, 255 for foreground."""
        pixels = np.ascontiguousarray(foreground).view(np.uint8) * np.uint8(255)
        matrix = self.letterbox_matrix(foreground.shape, out.shape)
        cv2.warpAffine(pixels, matrix, out.shape[::-1], dst=out, flags=cv2.INTER_LINEAR, borderValue=0)
