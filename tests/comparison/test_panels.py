"""Panels: masks, contours and their place."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from detris_peft.comparison.panels import CONTOUR_COLOR, iou_caption, panel, predicted_mask
from detris_peft.data.masks import encode_mask
from tests.comparison.made_results import make_counts


@pytest.mark.parametrize("shape", [(30, 60), (120, 240)])
def test_a_panel_shows_the_contour_of_the_target_at_its_place(shape):
    height, width = shape
    target = np.zeros(shape, np.uint8)
    target[height // 2 :, : width // 2] = 1  # the lower left quarter
    pixels = panel(Image.new("RGB", (width, height), "white"), np.zeros(shape, np.uint8), (120, 80), target=target)
    assert pixels.shape == (80, 120, 3)
    rows, columns = np.nonzero((pixels == CONTOUR_COLOR).all(axis=2))
    # 10 rows of padding above and below the image, which has 60 rows.
    assert (columns.min(), rows.max()) == pytest.approx((0, 69), abs=2)
    assert (columns.max(), rows.min()) == pytest.approx((59, 40), abs=2)
    assert (pixels[:8] == 255).all()


def test_an_empty_target_has_no_contour():
    pixels = panel(Image.new("RGB", (20, 20)), None, (40, 40), target=np.zeros((20, 20), np.uint8))
    assert not pixels.any()


def test_predicted_masks_and_captions():
    mask = np.zeros((4, 4), np.uint8)
    mask[:, :2] = 1
    masks = {"7": encode_mask([[0, 0, 2, 0, 2, 4, 0, 4]], 4, 4)["counts"]}
    assert (predicted_mask(masks, "7", (4, 4)) == mask).all()
    assert predicted_mask(masks, "8", (4, 4)) is None
    with pytest.raises(ValueError, match=r"predictions: sample 7: .*remove the folder predictions"):
        predicted_mask(masks, "7", (9, 9))
    counts = make_counts([(1, 2)])
    assert [iou_caption(counts, name) for name in ("0", "8")] == ["IoU 50", ""]
