"""Mask overlays and plots."""

from __future__ import annotations

import sys

import numpy as np
import pytest
from PIL import Image

from detris_peft.visualization import MASK_COLOR, overlay, plot_curves


def test_overlay_fills_the_mask_draws_its_border_and_keeps_the_background():
    image = Image.new("L", (6, 5), 100)
    mask = np.zeros((5, 6), bool)
    mask[1:4, 1:5] = True
    pixels = np.asarray(overlay(image, mask, opacity=0.5))
    assert pixels.shape == (5, 6, 3)
    assert (pixels[~mask] == 100).all()
    assert (pixels[1, 1:5] == MASK_COLOR).all()
    np.testing.assert_array_equal(pixels[2, 2], np.round((100 + np.array(MASK_COLOR)) / 2))


def test_the_border_of_a_mask_follows_the_image_edge():
    assert (np.asarray(overlay(Image.new("RGB", (4, 4)), np.ones((4, 4))))[0] == MASK_COLOR).all()


def test_a_mask_of_another_size_raises():
    with pytest.raises(ValueError, match=r"size \(H, W\) \(5, 6\), got \(3, 3\)"):
        overlay(Image.new("RGB", (6, 5)), np.ones((3, 3)))


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
