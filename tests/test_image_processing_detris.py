"""Tests of the image processor: reference numbers, every kind of image and mask, and reduced JPEGs."""

import io
import warnings
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from detris_peft import DetrisImageProcessor
from detris_peft.defaults import CLIP_MEAN, CLIP_STD

FIXTURE = Path(__file__).parent / "fixtures" / "tiny_processing.safetensors"
CASES = range(4)


@pytest.fixture(scope="module")
def tensors():
    return load_file(FIXTURE)


@pytest.fixture(scope="module")
def processor():
    return DetrisImageProcessor(image_size=112)


def to_levels(pixel_values):
    """Normalized (3,h,w) → (3,h,w) in 0 … 255."""
    mean, std = (torch.tensor(values)[:, None, None] for values in (CLIP_MEAN, CLIP_STD))
    return (pixel_values * std + mean) * 255


def random_image(height=40, width=60, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


# --- Reference numbers -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", CASES)
def test_letterbox_matches_the_reference(processor, tensors, case):
    image, mask = (tensors[f"{case}.{name}"].numpy() for name in ("image", "mask"))
    inputs = processor(images=image, masks=mask)
    expected = to_levels(tensors[f"{case}.pixel_values"])
    assert (to_levels(inputs.pixel_values[0]) - expected).abs().max() <= 1 + 1e-3  # OpenCV releases round differently
    assert (inputs.labels[0] - tensors[f"{case}.labels"]).abs().max() <= 1 / 255
    assert inputs.target_sizes.tolist() == [list(image.shape[:2])]
    assert inputs.pixel_values.dtype == inputs.labels.dtype == torch.float32


def test_predictions_match_the_reference(processor, tensors):
    sizes = [tensors[f"{case}.mask"].shape for case in CASES]
    outputs = SimpleNamespace(logits=torch.stack([tensors[f"{case}.logits"] for case in CASES]))
    probabilities = processor.post_process_referring_segmentation(outputs, sizes, return_probabilities=True)
    masks = processor.post_process_referring_segmentation(outputs.logits.double(), torch.tensor(sizes))
    for case in CASES:
        assert (probabilities[case] - tensors[f"{case}.probabilities"]).abs().max() <= 1e-3
        assert masks[case].dtype == torch.bool
        assert (masks[case] == tensors[f"{case}.prediction"]).float().mean() >= 0.999


# --- Images ----------------------------------------------------------------------------------------------------------


def assert_same_inputs(processor, image, expected):
    """Check that `image` gives the same inputs as the uint8 RGB array `expected`, without a warning of Pillow."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        inputs = processor(images=image)
    assert torch.equal(inputs.pixel_values, processor(images=np.ascontiguousarray(expected)).pixel_values)
    assert inputs.target_sizes.tolist() == [list(expected.shape[:2])]


def as_rgb(gray):
    return np.repeat(gray[..., None], 3, axis=2)


def test_arrays_of_every_layout_are_read(processor):
    rgb = random_image()
    gray = rgb[..., 0]
    wide = gray.astype(np.uint16) * 257
    for array in (gray, gray[..., None], wide, wide.astype(">u2"), wide[..., None]):
        assert_same_inputs(processor, array, as_rgb(gray))
    assert_same_inputs(processor, gray > 99, as_rgb((gray > 99).astype(np.uint8) * 255))
    assert_same_inputs(processor, np.dstack([rgb, gray]), rgb)
    assert_same_inputs(processor, rgb.astype(np.uint16) * 256, rgb)
    assert_same_inputs(processor, rgb[::-1, ::-1], rgb[::-1, ::-1].copy())  # negative strides


@pytest.mark.parametrize("mode", ["RGB", "L", "LA", "RGBA", "P", "1", "CMYK", "YCbCr", "PA"])
def test_pil_images_of_every_mode_are_read(processor, mode):
    image = Image.fromarray(random_image()).convert("P" if mode == "PA" else mode).convert(mode)
    assert_same_inputs(processor, image, np.asarray(image.convert("RGB")))


def test_alpha_is_dropped_not_composited(processor):
    rgb = random_image()
    transparent = np.dstack([rgb, np.zeros(rgb.shape[:2], np.uint8)])
    assert_same_inputs(processor, Image.fromarray(transparent), rgb)


@pytest.mark.parametrize("transparency", [3, bytes(range(256))])
def test_palette_with_transparency_keeps_its_colors(processor, transparency, tmp_path):
    image = Image.fromarray(random_image()).convert("P")
    expected = np.asarray(image.convert("RGB"))
    image.save(tmp_path / "palette.png", transparency=transparency)
    assert_same_inputs(processor, Image.open(tmp_path / "palette.png"), expected)


def test_sixteen_bit_png_is_scaled_not_clipped(processor, tmp_path):
    gray = random_image()[..., 0]
    Image.fromarray(gray.astype(np.uint16) * 257).save(tmp_path / "wide.png")
    with Image.open(tmp_path / "wide.png") as image:
        assert_same_inputs(processor, image, as_rgb(gray))
        assert_same_inputs(processor, Image.fromarray(np.asarray(image, dtype=np.int32)), as_rgb(gray))  # mode "I"


@pytest.mark.parametrize(
    ("orientation", "turn"),
    [
        (3, lambda a: np.rot90(a, 2)),
        (6, lambda a: np.rot90(a, -1)),
        (8, np.rot90),
        (5, lambda a: a.transpose(1, 0, 2)),
    ],
)
def test_exif_rotation_is_applied(processor, orientation, turn, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(random_image()).save(tmp_path / "turned.png", exif=exif)
    with Image.open(tmp_path / "turned.png") as image:
        expected = turn(random_image())
        assert_same_inputs(processor, image, expected)
        processor(images=image, masks=np.zeros(expected.shape[:2], bool))  # of the size after rotation
        if expected.shape != random_image().shape:
            with pytest.raises(
                ValueError, match=r"masks\[0\]: expected shape \(60, 40\), .* rotation, got \(40, 60\)"
            ):
                processor(images=image, masks=np.zeros((40, 60), bool))


def test_padding_is_the_mean_color_and_label_zero(processor):
    inputs = processor(images=np.full((10, 100, 3), 255, np.uint8), masks=np.ones((10, 100), bool))
    assert inputs.pixel_values[0, :, 0].abs().max() < 0.01  # the normalized mean, rounded to 8 bits
    assert inputs.labels[0, 0].max() == 0
    assert inputs.labels[0, 56, :-1].min() == 1  # the last column is soft: half a pixel is cut off


@pytest.mark.parametrize(
    "image",
    [
        np.zeros((4, 4), np.float32),
        np.zeros((3, 20, 20), np.uint8),
        np.zeros((0, 4, 3), np.uint8),
        np.zeros(4, np.uint8),
    ],
)
def test_arrays_of_other_shapes_and_types_are_rejected(processor, image):
    with pytest.raises(ValueError, match=r"images\[1\]"):
        processor(images=[random_image(), image])


@pytest.mark.parametrize("image", [b"photo", None, 7])
def test_objects_that_are_not_images_are_rejected(processor, image):
    with pytest.raises(TypeError, match=r"images\[1\]: expected a path, a PIL image"):
        processor(images=[random_image(), image])


def test_paths_and_tensors_give_the_inputs_of_the_image(processor, tmp_path):
    image = random_image()
    Image.fromarray(image).save(tmp_path / "photo.png")
    first, last = torch.from_numpy(image).permute(2, 0, 1), torch.from_numpy(image)
    expected = processor(images=image).pixel_values
    for form in (tmp_path / "photo.png", str(tmp_path / "photo.png"), first, last, first / 255, first[None]):
        assert torch.equal(processor(images=form).pixel_values, expected)
    with pytest.raises(FileNotFoundError, match=r"none.jpg: expected an image, found no such file"):
        processor(images=str(tmp_path / "none.jpg"))
    with pytest.raises(ValueError, match=r"images\[0\]: expected floats from 0 to 1, got -1 to 1"):
        processor(images=first / 127.5 - 1)


def test_pil_images_of_unknown_range_are_rejected(processor):
    for image in (Image.fromarray(np.zeros((4, 4), np.float32)), Image.fromarray(np.full((4, 4), 1 << 20, np.int32))):
        with pytest.raises(ValueError, match="whose range is unknown"):
            processor(images=image)


@pytest.mark.parametrize("format_", ["PNG", "JPEG", "WEBP"])
def test_damaged_exif_is_ignored(processor, format_):
    file = io.BytesIO()
    Image.fromarray(random_image()).save(file, format_, exif=b"Exif\x00\x00damaged")
    assert processor(images=Image.open(file)).target_sizes.tolist() == [[40, 60]]


def test_pil_images_that_cannot_be_decoded_are_named(processor):
    file = io.BytesIO()
    Image.fromarray(random_image()).save(file, "PNG")
    closed = Image.open(io.BytesIO(file.getvalue()))
    closed.close()
    for image in (Image.open(io.BytesIO(file.getvalue()[:-99])), closed):
        with pytest.raises(ValueError, match=r"images\[1\]: expected an image, got a file that cannot be decoded"):
            processor(images=[random_image(), image])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"images": []}, "images: expected at least one, got an empty list"),
        ({"images": b"photo"}, r"images\[0\]: expected a path, a PIL image.*, got bytes"),
        ({"images": {"path": "photo.jpg"}}, r"images\[0\]: expected a path, a PIL image.*, got dict"),
        ({"images": Image.new("RGB", (0, 4))}, r"images\[0\]: expected shape .*, got \(4, 0, 3\)"),
        ({"images": np.full((4, 4), np.nan)}, r"images\[0\]: expected uint8"),
        ({"masks": []}, "masks: expected at least one"),
        ({"masks": np.full((40, 60), np.nan)}, r"masks\[0\]: expected numbers or booleans, .*, got NaN"),
        ({"masks": np.full((40, 60), None)}, r"masks\[0\]: expected numbers or booleans, .*, got object"),
        ({"masks": Image.new("RGBA", (60, 40), (255, 255, 255, 9))}, None),  # foreground everywhere
        (
            {"masks": Image.new("RGBA", (60, 40), (255, 255, 255, 0))},
            r"masks\[0\]: expected a mask without transparency",
        ),
        ({"masks": "mask.png"}, r"masks\[0\]: expected an \(H, W\) array, tensor or PIL image, got str"),
        ({"original_sizes": "ab"}, r"original_sizes: expected one \(H, W\) of positive integers"),
        ({"original_sizes": [(0, 60)]}, r"original_sizes: expected .*, got \[\(0, 60\)\]"),
        ({"original_sizes": [(40.5, 60)]}, r"original_sizes: expected .*, got \[\(40.5, 60\)\]"),
        ({"return_tensors": "tf"}, 'return_tensors: expected "pt", "np" or None, got \'tf\''),
    ],
)
def test_inputs_that_cannot_be_used_are_named(processor, arguments, message):
    if message is None:
        assert processor(**{"images": random_image(), **arguments}).labels.any()
        return
    with pytest.raises((ValueError, TypeError), match=message):
        processor(**{"images": random_image(), **arguments})


@pytest.mark.parametrize(
    ("field", "values"),
    [
        ("image_size", [0, -3, "448", 4.5, True, None, 10**9]),
        ("patch_size", [0, "14"]),
        ("mask_threshold", [0, 1, float("nan"), "0.5", None]),
        ("keep_aspect_ratio", ["yes", 1]),
        ("image_mean", [[2, 0, 0], [0.5], None, [float("nan")] * 3]),
        ("image_std", [[0, 1, 1], [-1, 1, 1], [float("nan")] * 3, [float("inf")] * 3, [1, 1], "abc", 1.0]),
    ],
)
def test_impossible_fields_are_named(field, values):
    for value in values:
        with pytest.raises(ValueError, match=f"DetrisImageProcessor: {field}: expected .*; correct it"):
            DetrisImageProcessor(**{field: value})
    assert DetrisImageProcessor(image_std=np.full(3, 0.5)).image_std == [0.5, 0.5, 0.5]


# --- Masks -----------------------------------------------------------------------------------------------------------


def test_masks_of_every_kind_give_the_same_labels(processor):
    mask = random_image()[..., 0] > 128
    expected = processor(images=random_image(), masks=mask).labels
    assert ((expected > 0) & (expected < 1)).any()  # soft at warped edges
    index = Image.fromarray(mask.astype(np.uint8), mode="P")
    same = [mask.astype(np.uint8), mask * 255, mask.astype(np.float32), torch.from_numpy(mask), Image.fromarray(mask)]
    white_first = Image.fromarray(mask).convert("L").quantize(2)
    same += [torch.from_numpy(mask).bfloat16().requires_grad_(), white_first]
    for other in [*same, Image.fromarray(mask.astype(np.uint8) * 7), index]:
        assert torch.equal(processor(images=random_image(), masks=other).labels, expected)


@pytest.mark.parametrize("keep_aspect_ratio", [False, True])
@pytest.mark.parametrize("size", [(90, 140), (150, 60), (37, 223), (480, 640), (112, 112)])
def test_masks_round_trip(size, keep_aspect_ratio):
    processor = DetrisImageProcessor(image_size=112, keep_aspect_ratio=keep_aspect_ratio)
    rows, columns = np.ogrid[: size[0], : size[1]]
    mask = (rows - size[0] * 0.4) ** 2 + (columns - size[1] * 0.6) ** 2 < (min(size) * 0.3) ** 2
    inputs = processor(images=np.zeros((*size, 3), np.uint8), masks=mask)
    logits = 20 * inputs.labels[:, None] - 10
    (prediction,) = processor.post_process_referring_segmentation(logits, inputs.target_sizes, threshold=0.5)
    prediction = prediction.numpy()
    assert prediction.shape == size
    assert (prediction & mask).sum() / (prediction | mask).sum() > 0.93


def test_threshold_is_applied(processor):
    logits = torch.logit(torch.full((1, 1, 8, 8), 0.4))
    inside = np.s_[5:-5, 5:-5]
    for threshold, expected in ((None, True), (0.35, True), (0.45, False), (0.0, True)):
        (mask,) = processor.post_process_referring_segmentation(logits, [(30, 30)], threshold)
        assert (mask[inside] == expected).all()
    with pytest.raises(ValueError, match="target_sizes: expected 1, got 2"):
        processor.post_process_referring_segmentation(logits, [(30, 30), (30, 30)])


@pytest.mark.parametrize(
    ("outputs", "message"),
    [
        (None, "outputs: expected the output of the model or its logits, got NoneType"),
        (np.zeros((1, 1, 8, 8)), "outputs: expected .*, got ndarray"),
        (torch.zeros(1, 8, 8), r"outputs: expected floating-point logits \(B, 1, H, W\), got torch.float32 of shape"),
        (torch.zeros(1, 1, 8, 8, dtype=torch.int64), "outputs: expected floating-point logits .*, got torch.int64"),
        (torch.full((1, 1, 8, 8), float("nan")), "outputs: expected logits, got NaN"),
    ],
)
def test_outputs_without_logits_are_named(processor, outputs, message):
    with pytest.raises((ValueError, TypeError), match=message):
        processor.post_process_referring_segmentation(outputs, [(30, 30)])
    for arguments, expected in (
        (([(30,)],), r"target_sizes: expected one \(H, W\)"),
        ((None,), "target_sizes: expected 1, got 0"),
        (([(30, 30)], "a"), "threshold: expected a probability"),
        (([(30, 30)], 2), "threshold: expected a probability"),
    ):
        with pytest.raises(ValueError, match=expected):
            processor.post_process_referring_segmentation(torch.zeros(1, 1, 8, 8), *arguments)


def test_half_precision_logits_are_supported(processor):
    logits = torch.randn(1, 1, 8, 8).bfloat16()
    (mask,) = processor.post_process_referring_segmentation(logits, [(30, 40)])
    assert mask.shape == (30, 40)


def test_keep_aspect_ratio_only_trims_the_padding():
    letterbox = DetrisImageProcessor(image_size=112)
    trimmed = DetrisImageProcessor(image_size=112, keep_aspect_ratio=True, patch_size=14)
    image = random_image(56, 112)
    pixels = trimmed(images=image).pixel_values
    assert pixels.shape == (1, 3, 56, 112)
    assert torch.equal(pixels, letterbox(images=image).pixel_values[:, :, 28:84])
    assert trimmed(images=[image, random_image(112, 50)]).pixel_values.shape == (2, 3, 112, 112)
    assert trimmed(images=[image, random_image(60, 112)]).pixel_values.shape == (2, 3, 70, 112)
    assert trimmed(images=random_image(426, 640)).pixel_values.shape == (1, 3, 84, 112)
    assert trimmed.canvas_size([(25, 50)]) == (56, 112)  # 25 · 2.24 is 56.00000000000001 in floating point


# --- Images reduced by a JPEG decoder --------------------------------------------------------------------------------


def test_reduced_images_are_aligned_with_the_original(processor):
    """A pixel of a reduced image is the center of a square of pixels. A color ramp would reveal a shift."""
    ramp = np.broadcast_to(np.arange(240, dtype=np.uint8)[None, :, None], (120, 240, 3))
    half = np.broadcast_to(np.arange(120, dtype=np.uint8)[None, :, None] * 2, (60, 120, 3)).copy()  # 0.5 darker
    full = to_levels(processor(images=np.ascontiguousarray(ramp)).pixel_values[0])
    reduced = processor(images=half, original_sizes=[(120, 240)], masks=np.ones((120, 240)))
    difference = (full - to_levels(reduced.pixel_values[0]))[:, 32:-32, 4:-4]
    assert abs(float(difference.mean()) - 0.5) < 0.1
    assert reduced.target_sizes.tolist() == [[120, 240]]
    assert reduced.labels.shape == (1, 112, 112)


def test_impossible_original_sizes_are_rejected(processor):
    with pytest.raises(ValueError, match=r"images\[0\]: expected .* \(100, 60\) or a half, .*, got \(40, 60\)"):
        processor(images=random_image(), original_sizes=[(100, 60)])
    with pytest.raises(ValueError, match="one mask per image"):
        processor(images=[random_image(), random_image()], original_sizes=[(40, 60)])


def test_original_sizes_do_not_change_images_that_are_not_reduced(processor):
    images = [random_image(40, 60), random_image(300, 200), random_image(7, 90)]
    sizes = [image.shape[:2] for image in images]
    batch = processor(images=images, original_sizes=sizes, masks=[image[..., 0] > 128 for image in images])
    assert torch.equal(batch.pixel_values, processor(images=images).pixel_values)
    for image, pixels, label in zip(images, batch.pixel_values, batch.labels, strict=True):
        alone = processor(images=image, masks=image[..., 0] > 128)
        assert torch.equal(alone.pixel_values[0], pixels)
        assert torch.equal(alone.labels[0], label)


@pytest.mark.parametrize("size", [(40, 60), (113, 300), (900, 1000), (1500, 20)])
def test_a_mask_is_visible_if_and_only_if_its_label_is_not_empty(processor, size):
    rng = np.random.default_rng(0)
    outcomes = set()
    for _ in range(40):
        mask = np.zeros(size, dtype=np.uint8)
        top, left = (int(rng.integers(side)) for side in size)
        mask[top : top + int(rng.integers(1, 14)), left : left + int(rng.integers(1, 14))] = 1
        if rng.random() < 0.5:  # sparse pixels in a large box
            mask &= (rng.random(size) < 0.1).astype(np.uint8)
            mask[tuple(int(rng.integers(side)) for side in size)] = 1
        label = processor(images=np.zeros((*size, 3), np.uint8), masks=mask).labels
        assert processor.is_visible(mask) == bool(label.any())
        outcomes.add(bool(label.any()))
    assert outcomes == ({True, False} if max(size) >= 300 else {True})
    for other in ([1], np.zeros((0, 4), np.uint8), np.zeros((4, 4))):
        with pytest.raises(ValueError, match=r"mask: expected a uint8 array \(H, W\), got"):
            processor.is_visible(other)
