"""Images, sentences and masks in; tensors out; and predicted masks back at the images' own sizes.

The only owner of pixel geometry. The letterbox: a image of H×W pixels is scaled by min(s/H, s/W), s being
`image_size`, and centered on a canvas; what it leaves free is filled with CLIP's mean color. One affine matrix says
so; images and masks go through it forwards, predictions backwards.
"""

import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from PIL import ExifTags, Image, ImageOps
from transformers import BatchFeature
from transformers.processing_utils import ProcessorMixin

from .tokenization_detris import clean_sentence

# CLIP's statistics, also in front of DINOv2: the method was published, and its weights trained, with them.
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


class DetrisProcessor(ProcessorMixin):
    """Prepares the model's inputs and turns its logits into masks.

    Args:
        tokenizer: tokenizer of the text encoder. Its own padding is not used: see `pad_token_id`.
        image_size: s, the longer side of a image after scaling, in pixels.
        max_text_length: L, tokens of a sentence with start and end; longer ones are cut and keep the end token.
        mask_threshold: a pixel is foreground if its probability is above this.
        pad_token_id: id that fills a sentence up to L. 0 for CLIP, whose Hugging Face tokenizer would pad with the
            end token and so hide where the sentence ends.
        keep_aspect_ratio: False is the paper's s×s canvas; True trims it to the smallest h×w, multiples of
            `patch_size`, that holds every image of the batch.
        patch_size: side of the image encoder's patches, in pixels; only used with `keep_aspect_ratio`.
        image_mean, image_std: per channel, of values in [0, 1]; the mean also colors the border.
    """

    def __init__(
        self,
        tokenizer,
        image_size: int = 448,
        max_text_length: int = 17,
        mask_threshold: float = 0.35,  # the released implementation's, not 0.5
        pad_token_id: int = 0,
        keep_aspect_ratio: bool = False,
        patch_size: int = 14,
        image_mean: tuple[float, ...] = CLIP_MEAN,
        image_std: tuple[float, ...] = CLIP_STD,
    ):
        super().__init__(tokenizer)
        self.image_size = image_size
        self.max_text_length = max_text_length
        self.mask_threshold = mask_threshold
        self.pad_token_id = pad_token_id
        self.keep_aspect_ratio = keep_aspect_ratio
        self.patch_size = patch_size
        self.image_mean = list(image_mean)
        self.image_std = list(image_std)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, **kwargs) -> "DetrisProcessor":
        """As in transformers, which would fill in for missing files: sizes that the model was not trained with.

        Raises:
            FileNotFoundError: a local folder lacks one of the processor's files.
        """
        folder = Path(pretrained_model_name_or_path)
        if folder.is_dir():
            for name in ("processor_config.json", "tokenizer.json"):
                if not (folder / kwargs.get("subfolder", "") / name).is_file():
                    raise FileNotFoundError(
                        f"{folder} lacks the processor's {name}: write it there with DetrisProcessor.save_pretrained."
                    )
        return super().from_pretrained(pretrained_model_name_or_path, **kwargs)

    @classmethod
    def from_config(cls, config, tokenizer) -> "DetrisProcessor":
        """The processor for a `DetrisConfig` and its text encoder's tokenizer."""
        return cls(
            tokenizer,
            image_size=config.image_size,
            max_text_length=config.max_text_length,
            mask_threshold=config.mask_threshold,
            pad_token_id=config.pad_token_id,
            patch_size=config.vision_config.patch_size,
        )

    @property
    def model_input_names(self) -> list[str]:
        return ["pixel_values", "input_ids", "labels"]

    def __call__(
        self, images=None, text=None, masks=None, return_tensors: str | None = "pt", original_sizes=None
    ) -> BatchFeature:
        """Prepares one image and sentence, or B of each; either may be left out.

        Args:
            images: PIL image of any mode (EXIF rotation is applied, alpha is dropped, 16 bits become 8), or an
                array (H,W), (H,W,1), (H,W,3) or (H,W,4) of uint8, uint16 or bool; or a list of them.
            text: sentence or list of sentences, one per image.
            masks: (H,W) array, tensor or PIL image, foreground > 0, as the image stands after EXIF rotation.
            return_tensors: "pt" or "np".
            original_sizes: (B,2), the (H,W) of the files whose JPEG decoder gave a half, a quarter or an eighth of it;
                None where the images came whole. Masks and results are of these sizes.

        Returns:
            `pixel_values` (B,3,h,w) float32, `target_sizes` (B,2) the images' own (H,W), `labels` (B,h,w) float32
            in [0,1], soft at warped edges, and `input_ids` (B,L); h = w = `image_size` unless `keep_aspect_ratio`.

        Raises:
            ValueError: numbers of images, sentences and masks differ; a mask is not of its image's size; a
                image is not what a decoder makes of its original size; a sentence is empty; an array is no image.
            TypeError: an item is of another type than listed above.
        """
        images, text, masks = _as_list(images), _as_list(text), _as_list(masks)
        original_sizes = (
            None if original_sizes is None else [(int(height), int(width)) for height, width in original_sizes]
        )
        given = {"images": images, "text": text, "masks": masks, "original_sizes": original_sizes}
        counts = {name: len(items) for name, items in given.items() if items is not None}
        for name in ("masks", "original_sizes"):
            if given[name] is not None and images is None:
                raise ValueError(f"{name} came without images: pass the images they belong to")
        if len(set(counts.values())) != 1 or 0 in counts.values():
            raise ValueError(f"got {counts or 'nothing'}: pass images or text, one sentence and one mask per image")

        data: dict[str, Any] = {}
        if images is not None:
            arrays: Iterable[np.ndarray] = (to_rgb(image, f"images[{i}]") for i, image in enumerate(images))
            # Where sizes are known, one image's pixels after the other pass through the same piece of memory.
            if (sizes := original_sizes) is None:
                arrays = list(arrays)
                sizes = [pixels.shape[:2] for pixels in arrays]
            canvas = self.canvas_size(sizes)
            # Written into place: to copy a batch's megabytes once more takes about as long as to warp them.
            data["pixel_values"] = np.empty((len(sizes), 3, *canvas), dtype=np.float32)
            for i, (pixels, size) in enumerate(zip(arrays, sizes, strict=True)):
                reduction = _reduction(pixels.shape[:2], size, f"images[{i}]")
                self._warp_image(pixels, size, reduction, out=data["pixel_values"][i])
            data["target_sizes"] = np.array(sizes, dtype=np.int64)
            if masks is not None:
                data["labels"] = np.empty((len(sizes), *canvas), dtype=np.float32)
                for i, (mask, size) in enumerate(zip(masks, sizes, strict=True)):
                    self._warp_mask(_to_foreground(mask, size, f"masks[{i}]"), out=data["labels"][i])
        if text is not None:
            data["input_ids"] = self._tokenize(text)
        return BatchFeature(data, tensor_type=return_tensors)

    def post_process_referring_segmentation(
        self, outputs, target_sizes, threshold: float | None = None, return_probabilities: bool = False
    ) -> list[torch.Tensor]:
        """Logits to masks at the images' own sizes: sigmoid, bicubic to the canvas, letterbox backwards, threshold.

        Args:
            outputs: the model's output, or its logits (B,1,h',w') alone.
            target_sizes: (B,2), the (H,W) the processor gave; with `keep_aspect_ratio` those of the whole batch,
                because they determine its canvas.
            threshold: probability above which a pixel is foreground; None takes `mask_threshold`.
            return_probabilities: give the probabilities themselves; bicubic may leave [0, 1] by a little.

        Returns:
            B tensors (H,W) on the CPU: bool, or float32 with `return_probabilities`.
        """
        logits = outputs if isinstance(outputs, torch.Tensor) else outputs.logits
        sizes = [(int(height), int(width)) for height, width in target_sizes]
        if len(sizes) != len(logits):
            raise ValueError(f"got {len(logits)} logit maps and {len(sizes)} target_sizes: pass one (H, W) per map")
        threshold = self.mask_threshold if threshold is None else threshold
        canvas = self.canvas_size(sizes)
        # align_corners=True and the backward warp belong to the method: other choices shift the mask by half a pixel.
        on_canvas = F.interpolate(logits.detach().float().sigmoid(), canvas, mode="bicubic", align_corners=True)
        maps = []
        for probability, (height, width) in zip(on_canvas[:, 0].cpu().numpy(), sizes, strict=True):
            backwards = cv2.INTER_CUBIC | cv2.WARP_INVERSE_MAP
            matrix = self._letterbox((height, width), canvas)
            warped = cv2.warpAffine(probability, matrix, (width, height), flags=backwards, borderValue=0.0)
            maps.append(torch.from_numpy(warped))
        return maps if return_probabilities else [probability > threshold for probability in maps]

    def is_visible(self, mask: np.ndarray) -> bool:
        """Whether anything of a mask (H, W) is left in its label, after the letterbox on the square canvas."""
        # Sampled points lie 1 / scale apart and look at 2 x 2 pixels: a full square wider than that meets one. Most
        # masks fill one in the middle of their box; of the others the label itself is made.
        side = math.ceil(1 / self._scale(*mask.shape)) + 2
        left, top, width, height = cv2.boundingRect(mask)
        x, y = left + (width - side) // 2, top + (height - side) // 2
        if min(width, height) >= side and mask[y : y + side, x : x + side].all():
            return True
        label = np.empty((self.image_size, self.image_size), dtype=np.float32)
        self._warp_mask(mask > 0, out=label)
        return bool(label.any())

    def canvas_size(self, sizes) -> tuple[int, int]:
        """(h, w) of `pixel_values` for a batch of images of these (H, W)."""
        if not self.keep_aspect_ratio:
            return self.image_size, self.image_size
        longest = np.max([np.multiply(size, self._scale(*size)) for size in sizes], axis=0)
        # A whole number of pixels may come out as n + 1e-13, which is no reason for one more patch.
        patches = np.ceil(np.round(longest / self.patch_size, 6)).astype(int)
        return int(patches[0]) * self.patch_size, int(patches[1]) * self.patch_size

    def _scale(self, height: int, width: int) -> float:
        return min(self.image_size / height, self.image_size / width)

    def _letterbox(self, size: tuple[int, int], canvas: tuple[int, int]) -> np.ndarray:
        """(2,3) matrix from a image's (x, y) to the canvas'.

        It maps corner to corner without the half pixel between a pixel's corner and its center, and goes through
        three points in float32, because the released implementation, and so its weights, did both.
        """
        (height, width), (canvas_height, canvas_width) = size, canvas
        scale = self._scale(height, width)
        new_width, new_height = width * scale, height * scale
        left, top = (canvas_width - new_width) / 2, (canvas_height - new_height) / 2
        corners = np.array([[0, 0], [width, 0], [0, height]], dtype=np.float32)
        placed = np.array([[left, top], [left + new_width, top], [left, top + new_height]], dtype=np.float32)
        return cv2.getAffineTransform(corners, placed)

    def _warp_image(self, image: np.ndarray, size: tuple[int, int], reduction: int, out: np.ndarray) -> None:
        """uint8 (H,W,3), decoded at 1 / reduction of its size → normalized float32 (3,h,w) in `out`."""
        border = [255 * channel for channel in self.image_mean]
        matrix = self._letterbox(size, out.shape[1:])
        if reduction > 1:
            # A decoder's pixel stands for a square of them, in whose middle it lies.
            middle = (reduction - 1) / 2
            matrix = matrix @ np.array([[reduction, 0, middle], [0, reduction, middle], [0, 0, 1]])
        warped = cv2.warpAffine(image, matrix, out.shape[:0:-1], flags=cv2.INTER_CUBIC, borderValue=border)
        # A pixel has 256 values a channel: they are normalized once and looked up, which is exact and much faster.
        mean, std = np.array(self.image_mean, np.float32), np.array(self.image_std, np.float32)
        levels = (np.arange(256, dtype=np.float32) / np.float32(255) - mean[:, None]) / std[:, None]
        for plane, level, normalized in zip(cv2.split(warped), levels, out, strict=True):
            cv2.LUT(plane, level, dst=normalized)

    def _warp_mask(self, foreground: np.ndarray, out: np.ndarray) -> None:
        """bool (H,W) → float32 (h,w) in [0,1] in `out`; warped as 8 bits, like the images."""
        pixels = np.ascontiguousarray(foreground).view(np.uint8) * np.uint8(255)
        matrix = self._letterbox(foreground.shape, out.shape)
        warped = cv2.warpAffine(pixels, matrix, out.shape[::-1], flags=cv2.INTER_LINEAR, borderValue=0)
        np.divide(warped, np.float32(255), out=out)

    def _tokenize(self, sentences: list[str]) -> np.ndarray:
        """Sentences → int64 (B,L): start, tokens, end, padding."""
        cleaned = [clean_sentence(sentence, f"text[{i}]") for i, sentence in enumerate(sentences)]
        input_ids = np.full((len(cleaned), self.max_text_length), self.pad_token_id, dtype=np.int64)
        for row, ids in zip(input_ids, self.tokenizer(cleaned)["input_ids"], strict=True):
            if len(ids) > self.max_text_length:
                ids = [*ids[: self.max_text_length - 1], ids[-1]]  # the sentence's state is read at the end token
            row[: len(ids)] = ids
        return input_ids


def _as_list(items) -> list | None:
    if items is None or isinstance(items, list):
        return items
    several = isinstance(items, Iterable) and not isinstance(items, (str, Image.Image, np.ndarray, torch.Tensor))
    return list(items) if several else [items]


def to_rgb(image, name: str = "image") -> np.ndarray:
    """PIL image of any mode, or array (H,W), (H,W,1), (H,W,3), (H,W,4) → uint8 (H,W,3), as the model sees it."""
    if isinstance(image, Image.Image):
        if image.getexif().get(ExifTags.Base.Orientation, 1) != 1:  # else it would be copied
            image = ImageOps.exif_transpose(image)
        if image.mode.startswith("I") or image.mode == "F":
            image = np.asarray(image)
            if image.dtype == np.int32 and image.min() >= 0 and image.max() < 1 << 16:
                image = image.astype(np.uint16)  # mode "I": how older Pillows open 16-bit grey
        else:
            # Straight from a palette with transparency Pillow warns, hence RGBA. Colors under alpha stay as they are.
            if image.mode != "RGB":
                image = image.convert("RGBA" if image.mode == "P" else "RGB")
            image = np.asarray(image)
    if not isinstance(image, np.ndarray):
        raise TypeError(f"{name} is of type {type(image).__name__}: pass a PIL image or an (H, W, C) array")
    if image.ndim == 2:
        image = image[..., None]
    if image.ndim != 3 or image.size == 0 or image.shape[2] not in (1, 3, 4):
        raise ValueError(f"{name} has shape {image.shape}: pass (H, W), (H, W, 1), (H, W, 3) or (H, W, 4)")
    if np.issubdtype(image.dtype, np.uint16):
        image = (image >> 8).astype(np.uint8)  # the high byte, as libpng does
    elif image.dtype == bool:
        image = image.astype(np.uint8) * 255
    elif image.dtype != np.uint8:
        raise ValueError(f"{name} is {image.dtype}, whose range is unknown: scale it to uint8 in [0, 255]")
    image = image[..., :3]
    return np.ascontiguousarray(np.broadcast_to(image, (*image.shape[:2], 3)))


def _reduction(shown: tuple[int, ...], size: tuple[int, ...], name: str) -> int:
    """By what a JPEG decoder divided a image of this (H, W) to make one of the shown (H, W)."""
    for factor in (1, 2, 4, 8):
        if tuple(shown) == tuple(-(-side // factor) for side in size):
            return factor
    raise ValueError(
        f"{name} has shape {shown}, which is neither its original size {size} nor a half, a quarter or an eighth of "
        "it: leave out original_sizes, or pass the size of the file"
    )


def _to_foreground(mask, size: tuple[int, int], name: str) -> np.ndarray:
    """Mask of a image of this (H, W) → bool (H,W)."""
    if not isinstance(mask, (Image.Image, np.ndarray, torch.Tensor)):
        raise TypeError(f"{name} is of type {type(mask).__name__}: pass an (H, W) array, tensor or PIL image")
    pixels = mask.cpu().numpy() if isinstance(mask, torch.Tensor) else np.asarray(mask)
    if pixels.shape != tuple(size):
        raise ValueError(
            f"{name} has shape {pixels.shape}, its image {tuple(size)} after EXIF rotation: pass a mask of that size"
        )
    return pixels > 0
