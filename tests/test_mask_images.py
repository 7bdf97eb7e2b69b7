"""Masks stored as images: the foreground is the same in every color mode, and ambiguous masks are refused."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image, ImageFilter

from detris_peft.mask_images import is_lossy_webp, read_foreground

MASK = np.zeros((60, 80), bool)
MASK[20:34, 30:54] = True
GRAY = Image.fromarray(MASK.astype(np.uint8) * 255)
LABELS = MASK.astype(np.uint8)
LABELS[5:10, 5:10] = 2


def palette(indices, *colors):
    image = Image.fromarray(indices.astype(np.uint8), "P")
    image.putpalette([channel for color in colors for channel in color])
    return image


def reopened(image, format_="PNG", **options):
    file = io.BytesIO()
    image.save(file, format_, **options)
    return Image.open(file)


BLACK, WHITE, RED = (0, 0, 0), (255, 255, 255), (255, 0, 0)
NOISY = reopened(GRAY, "JPEG", quality=60).convert("L")
SLIGHTLY_NOISY = reopened(GRAY, "JPEG", quality=98).convert("L")
COLOR = Image.merge("RGB", (GRAY, Image.new("L", GRAY.size), Image.new("L", GRAY.size)))
ONE_TARGET = {
    "gray": GRAY,
    "1 bit": GRAY.convert("1"),
    "color": COLOR,
    "16 bits": Image.fromarray(MASK.astype(np.uint16) * 65535),
    "16-bit label": Image.fromarray(MASK.astype(np.uint16) * 300),
    "float": Image.fromarray(MASK.astype(np.float32)),
    "32 bits": Image.fromarray(MASK.astype(np.int32) * 70000),
    "palette": palette(MASK, BLACK, RED),
    "palette, white first": palette(~MASK, WHITE, BLACK),
    "palette of quantize": GRAY.quantize(2),
    "adaptive palette": GRAY.convert("RGB").convert("P", palette=Image.Palette.ADAPTIVE, colors=2),
    "palette without colors": palette(MASK, BLACK, BLACK),
    "palette of a noisy mask": NOISY.quantize(16),
    "opaque": GRAY.convert("RGBA"),
    "transparent where black": Image.merge("RGBA", (GRAY, GRAY, GRAY, GRAY)),
    "PNG of a JPEG": NOISY,
    "PNG of a good JPEG": SLIGHTLY_NOISY,
    "color PNG of a JPEG": NOISY.convert("RGB"),
}


@pytest.mark.parametrize("name", ONE_TARGET)
def test_one_target_is_read_from_every_mode(name):
    image = ONE_TARGET[name]
    for mask in (image, reopened(image, "TIFF" if image.mode in ("F", "I") else "PNG")):
        foreground, values = read_foreground(mask)
        np.testing.assert_array_equal(foreground, MASK)
        assert values == 1


def test_soft_edges_are_divided_at_half_of_the_maximum():
    foreground, values = read_foreground(GRAY.filter(ImageFilter.GaussianBlur(1)))
    assert values == 1
    assert (foreground & MASK).sum() / (foreground | MASK).sum() > 0.95


@pytest.mark.parametrize(
    ("image", "count"),
    [
        (Image.fromarray(LABELS), 2),
        (Image.fromarray(np.where(LABELS == 2, 255, LABELS).astype(np.uint8)), 2),  # 255: "void" in some datasets
        (Image.fromarray(LABELS.astype(np.uint16) * 500), 2),
        (palette(LABELS, BLACK, RED, (0, 255, 0)), 2),
        (palette(LABELS, BLACK, RED, (0, 255, 0)).convert("RGB"), 2),
        (Image.fromarray(MASK * np.arange(1, 81, dtype=np.uint8)), 24),
    ],
)
def test_several_labels_are_foreground_and_counted(image, count):
    foreground, values = read_foreground(image)
    np.testing.assert_array_equal(foreground, MASK if count == 24 else LABELS > 0)
    assert values == count


def test_ambiguous_masks_are_refused():
    white = Image.new("L", GRAY.size, 255)
    photo = np.random.default_rng(0).integers(0, 256, (60, 80, 3), dtype=np.uint8)
    for image, expected in (
        (Image.merge("RGBA", (white, white, white, GRAY)), "without transparency"),
        (Image.merge("LA", (white, GRAY)), "without transparency"),
        (reopened(GRAY, transparency=255), "without transparency"),
        (palette(MASK, WHITE, RED), "background is index 0 and black"),
        (Image.fromarray(photo), "as in a photo"),
        (GRAY.filter(ImageFilter.GaussianBlur(5)), "as in a photo"),
        (Image.fromarray(MASK * np.float32(0.5)), "fractions or NaN"),
        (Image.fromarray(MASK * np.float32("nan")), "fractions or NaN"),
        (Image.fromarray(MASK * np.int32(-1)), "negative"),
        (reopened(GRAY, "JPEG"), "lossless mask, got one in the format JPEG"),
        (reopened(GRAY, "TIFF", compression="jpeg"), "lossless mask, got one in the format TIFF with lossy"),
    ):
        with pytest.raises(ValueError, match=f"expected .*{expected}.*; "):
            read_foreground(image)


def test_lossy_webp_is_recognized():
    for options in ({"quality": 50}, {"lossless": True}):
        file = io.BytesIO()
        COLOR.save(file, "WEBP", **options)
        assert is_lossy_webp(file.getvalue()) == ("quality" in options)
    assert not is_lossy_webp(b"")
