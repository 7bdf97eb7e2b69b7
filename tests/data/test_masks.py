"""RLE decoding equals pycocotools', except for damaged input, for which pycocotools reads out of bounds."""

from __future__ import annotations

import numpy as np
import pytest
from pycocotools import mask as coco

from detris_peft.data import BadRowError, decode_mask, encode_mask
from detris_peft.data.masks import run_lengths


@pytest.mark.parametrize("share", [0, 0.01, 0.5, 0.99, 1])
@pytest.mark.parametrize("size", [(1, 1), (1, 70), (70, 1), (37, 53), (480, 640)])
def test_decoded_masks_and_run_lengths_equal_those_of_pycocotools(size, share):
    pixels = (np.random.default_rng(0).random(size) < share).astype(np.uint8)
    mask = encode_mask(pixels, *size)
    decoded = decode_mask(mask)
    assert decoded.dtype == np.uint8
    np.testing.assert_array_equal(decoded, pixels)
    plain = {"size": list(size), "counts": run_lengths(mask["counts"]).tolist()}
    assert coco.frPyObjects(plain, *size)["counts"].decode() == mask["counts"]


@pytest.mark.parametrize(
    ("size", "counts"),
    [
        ([29, 55], "ka1l"),  # fills the image, but another number begins: pycocotools overruns its buffer
        ([2, 2], "o"),
        ([2, 2], "P" * 40 + "0"),
        ([2, 2], "oooooooooooo0"),
        ([2, 2], "é"),
        ([0, 0], "0"),
        ([-1, -4], "4"),
        ([2, 2], [10**30, 4]),
    ],
)
def test_damaged_run_lengths_are_a_bad_row(size, counts):
    with pytest.raises(BadRowError) as caught:
        decode_mask({"size": size, "counts": counts})
    assert caught.value.kind == "mask_malformed"
