"""Mask overlays and plots."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from detris_peft.data.samples import Sample
from detris_peft.visualization import (
    MASK_COLOR,
    describe_iou,
    overlay,
    overlay_thumbnail,
    plot_curves,
    plot_predictions,
)

PHOTO = np.random.default_rng(0).integers(0, 256, (200, 300, 3), np.uint8)  # no uniform region
BACKGROUNDS = {
    "blue": np.full((200, 300, 3), (30, 60, 220), np.uint8),
    "pale": np.full((200, 300, 3), (250, 248, 240), np.uint8),
    "dark": np.full((200, 300, 3), (9, 8, 12), np.uint8),
    "gray": np.full((200, 300, 3), 128, np.uint8),
    "outline's color": np.full((200, 300, 3), MASK_COLOR, np.uint8),
    "photo": PHOTO,
}


def disk(radius: int = 40) -> np.ndarray:
    y, x = np.mgrid[:200, :300]
    return (x - 150) ** 2 + (y - 100) ** 2 <= radius**2


def luminance(pixels: np.ndarray) -> np.ndarray:
    return pixels.astype(float) @ (0.299, 0.587, 0.114)


@pytest.mark.parametrize("name", BACKGROUNDS)
def test_an_overlay_is_readable_on_any_background(name):
    pixels, mask = BACKGROUNDS[name], disk()
    drawn = np.asarray(overlay(Image.fromarray(pixels), mask))
    np.testing.assert_array_equal(drawn[mask], pixels[mask])  # the object keeps its colors

    far = ~disk(50)  # beyond the outline
    np.testing.assert_allclose(luminance(drawn[far]), 0.5 * luminance(pixels[far]), atol=2)
    assert np.ptp(drawn[far].astype(int), axis=-1).max() <= 0.2 * max(
        np.ptp(pixels[far].astype(int), axis=-1).max(), 20
    )

    # Along any ray from the object, a dark pixel and then a bright one.
    for ray in (drawn[100, 191:200], drawn[100, 109:100:-1], drawn[141:150, 150], drawn[59:50:-1, 150]):
        brightness = luminance(ray)
        assert brightness[0] == 0
        assert brightness[1] > 190
        assert brightness[2:].max() < brightness[1] - 60


def bright(drawn) -> np.ndarray:
    return (np.asarray(drawn) == MASK_COLOR).all(axis=-1)


def test_the_outline_gets_wider_with_the_image():
    for scale in (1, 2, 4):
        image, mask = Image.new("RGB", (300 * scale, 200 * scale)), np.kron(disk(), np.ones((scale, scale)))
        assert bright(overlay(image, mask))[100 * scale].sum() == 2 * scale


def test_an_empty_mask_has_no_outline_and_a_full_one_a_frame():
    image = Image.new("RGB", (300, 200), (100, 100, 100))
    assert (np.asarray(overlay(image, np.zeros((200, 300)))) == 50).all()
    full = overlay(image, np.ones((200, 300)))
    assert bright(full)[0].all()
    assert bright(full)[:, -1].all()
    assert (np.asarray(full)[2:-2, 2:-2] == 100).all()  # one bright and one dark line


@pytest.mark.parametrize("position", [(0, 0), (100, 150), (199, 299), (0, 299)])
def test_an_object_of_one_pixel_keeps_its_color_and_is_outlined(position):
    mask = np.zeros((200, 300), bool)
    mask[position] = True
    drawn = overlay(Image.fromarray(PHOTO), mask)
    np.testing.assert_array_equal(np.asarray(drawn)[position], PHOTO[position])
    assert bright(drawn).sum() >= 3


@pytest.mark.parametrize("size", [(1, 1), (2, 3), (5, 5)])
def test_the_smallest_images_have_overlays(size):
    for mask in (np.zeros(size), np.ones(size), np.eye(*size)):
        assert overlay(Image.new("RGB", size[::-1]), mask).size == size[::-1]


def test_a_tint_and_other_colors_can_be_chosen():
    image = Image.new("L", (300, 200), 100)
    drawn = np.asarray(overlay(image, disk(), color=(0, 200, 0), opacity=0.5))
    assert drawn[100, 150].tolist() == [50, 150, 50]
    assert (drawn == (0, 200, 0)).all(axis=-1).any()


def test_a_small_object_stays_visible_in_a_thumbnail():
    mask = np.zeros((2000, 3000), bool)
    mask[1000, 1500] = True
    thumbnail = overlay_thumbnail(Image.new("RGB", (3000, 2000), "white"), mask, (300, 300))
    assert thumbnail.size == (300, 200)
    assert bright(thumbnail)[95:106, 145:156].any()
    assert (np.asarray(thumbnail) == 255).all(axis=-1).sum() == 1  # one pixel of the object
    enlarged = overlay_thumbnail(Image.fromarray(PHOTO), disk(), (600, 600))
    assert enlarged.size == (600, 400)
    assert overlay_thumbnail(Image.fromarray(PHOTO), None, (300, 300)).tobytes() == PHOTO.tobytes()


def test_the_iou_is_shown_in_percent():
    left, top = np.zeros((4, 4)), np.zeros((4, 4))
    left[:, :2] = top[:2] = 1
    assert describe_iou(left, top) == "IoU 33"
    assert describe_iou(left, np.zeros((4, 4))) == "IoU 0"
    assert describe_iou(np.zeros((4, 4)), np.zeros((4, 4))) == "both empty"


def test_a_mask_of_another_size_raises():
    with pytest.raises(ValueError, match=r"size \(H, W\) \(5, 6\), got \(3, 3\)"):
        overlay(Image.new("RGB", (6, 5)), np.ones((3, 3)))


class HalfModel:
    """Model and processor whose prediction is the left half of each image."""

    device = "cpu"

    def modules(self):
        return []

    def __call__(self, *inputs, **kwargs):
        if kwargs:  # as processor
            return {"pixel_values": torch.zeros(1), "input_ids": torch.zeros(1), "target_sizes": None}
        return SimpleNamespace(logits=None)

    def post_process_referring_segmentation(self, logits, sizes):
        return [torch.arange(30).expand(20, 30) < 15]


class _Samples(list):
    """Samples of which the last one is a no-target pair."""

    @property
    def first_pair(self) -> int:
        return len(self) - 1


def test_each_column_of_predictions_shows_its_iou(monkeypatch):
    drawn = []
    monkeypatch.setattr("detris_peft.visualization.save_figure", lambda figure, file: drawn.extend(figure.axes))
    masks = np.zeros((3, 20, 30), np.uint8)
    masks[0, :, :15] = masks[1, :, :] = 1
    image = Image.new("RGB", (30, 20), (90, 90, 90))
    samples = _Samples(Sample(image, f"sentence {i}", mask, i) for i, mask in enumerate(masks))
    samples.append(Sample(image, "not shown", masks[2], 3, no_target=True))
    plot_predictions(HalfModel(), HalfModel(), samples, "a.png")  # type: ignore[arg-type]
    assert [axes.get_title() for axes in drawn[:3]] == ["sentence 0", "sentence 1", "sentence 2"]
    assert [axes.get_xlabel() for axes in drawn] == [""] * 6 + ["IoU 100", "IoU 50", "IoU 0"]
    shown = [axes.images[0].get_array() for axes in drawn]
    assert all(bright(panel).any() for panel in shown[3:5] + shown[6:])  # outlines
    assert (np.asarray(shown[0]) == 90).all()


def test_curves_of_a_single_epoch(tmp_path):
    record = {"epoch": 1, "train_loss": 0.5, "loss": 0.4, "mIoU": 0.1, "oIoU": 0.2}
    plot_curves([{**record, "Pr@0.5": 0, "Pr@0.7": 0, "Pr@0.9": 0}], tmp_path / "curves.png")
    assert Image.open(tmp_path / "curves.png").size[0] > 1000


@pytest.mark.parametrize(("epochs", "unit"), [([1, 2, 3], "epoch"), ([1, 1, 2], "step")])
def test_curves_of_several_evaluations_per_epoch_are_drawn_over_steps(tmp_path, monkeypatch, epochs, unit):
    drawn = []
    monkeypatch.setattr("detris_peft.visualization.save_figure", lambda figure, file: drawn.extend(figure.axes))
    metrics = dict.fromkeys(("train_loss", "loss", "mIoU", "oIoU", "Pr@0.5", "Pr@0.7", "Pr@0.9"), 0.5)
    plot_curves([{**metrics, "epoch": epoch, "step": 50 * i} for i, epoch in enumerate(epochs, 1)], tmp_path / "a.png")
    for axes in drawn:
        assert axes.get_xlabel() == unit
        assert list(axes.lines[0].get_xdata()) == ([50, 100, 150] if unit == "step" else epochs)
    assert len(drawn) == 2


def test_a_16_bit_image_looks_like_its_8_bits():
    levels = np.arange(30, dtype=np.uint8).reshape(5, 6) * 8
    deep = Image.fromarray(levels.astype(np.uint16) * 257)
    np.testing.assert_array_equal(*(overlay(image, np.zeros((5, 6))) for image in (deep, Image.fromarray(levels))))


def test_a_missing_package_is_named_as_pip_can_install_it(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ImportError, match=r"expected matplotlib to be installed, .*; run: pip install matplotlib\."):
        plot_curves([], tmp_path / "curves.png")
