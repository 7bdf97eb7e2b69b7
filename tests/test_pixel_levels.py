"""Tables of the 256 levels: the bits of the arithmetic, on arrays and tensors."""

import numpy as np
import torch

from detris_peft.defaults import CLIP_MEAN, CLIP_STD
from detris_peft.pixel_levels import LABEL_LEVELS, look_up, look_up_on_device, normalized_levels

PIXELS = (
    np.random.default_rng(0).permuted(np.tile(np.arange(256, dtype=np.uint8), (3, 2)), axis=1).T.reshape(2, 8, 32, 3)
)


def test_values_are_those_of_the_arithmetic():
    mean, std = (np.array(values, np.float32) for values in (CLIP_MEAN, CLIP_STD))
    expected = ((PIXELS.astype(np.float32) / np.float32(255) - mean) / std).transpose(0, 3, 1, 2)
    converted = look_up(PIXELS, normalized_levels(CLIP_MEAN, CLIP_STD))
    assert converted.dtype == np.float32
    np.testing.assert_array_equal(converted, expected)
    np.testing.assert_array_equal(
        look_up(PIXELS[..., :1], LABEL_LEVELS)[:, 0], np.divide(PIXELS[..., 0], np.float32(255))
    )


def test_tensors_have_the_bits_of_arrays_on_every_device():
    levels = normalized_levels(CLIP_MEAN, CLIP_STD)
    expected = torch.from_numpy(look_up(PIXELS, levels))
    assert torch.equal(look_up(torch.from_numpy(PIXELS), levels), expected)
    assert torch.equal(look_up_on_device(torch.from_numpy(PIXELS), levels), expected)  # as on a GPU
    if torch.cuda.is_available():
        assert torch.equal(look_up(torch.from_numpy(PIXELS).cuda(), levels).cpu(), expected)
