"""Run lengths of Label Studio's brush.

Those in brush.json were written by `label_studio_sdk.converter.brush` 2.1.2, which is not installed here.
"""

import base64
import json

import numpy as np
import pytest

from detris_peft.data.errors import BadRowError
from detris_peft.data.readers.labels.label_studio_brush import decode_brush
from tests.helpers.reference import FIXTURES

FIXTURE = FIXTURES / "labels/label_studio/brush.json"


def disc(height, width):
    y, x = np.mgrid[:height, :width]
    return np.hypot(x - width * 0.4, y - height * 0.5) - height * 0.35


def recorded(name):
    return list(base64.b64decode(json.loads(FIXTURE.read_text())[name]))


def small():
    mask = np.zeros((6, 8), bool)
    mask[1:4, 2:6] = mask[5, 7] = True
    return mask


BRUSHES = {
    "small": small(),
    "disc": disc(240, 320) < 0,
    "soft": np.clip(255 * (0.5 - disc(24, 32) / 3), 0, 255).astype(np.uint8) > 0,  # in RGBA with a soft edge
    "full": np.ones((200, 200), bool),  # a run of more than 65536 values
}


@pytest.mark.parametrize("name", BRUSHES)
def test_run_lengths_of_the_converter_are_decoded(name):
    expected = BRUSHES[name]
    np.testing.assert_array_equal(decode_brush(recorded(name), *expected.shape, "brush"), expected)


def test_runs_of_different_values_are_decoded():
    """The converter writes them with a length of 1 only, the editor also longer ones."""
    bits = f"{8:032b}{7:05b}" + "".join(f"{size - 1:04b}" for size in (3, 4, 8, 16))
    bits += "0" + "00" + f"{5:03b}" + "".join(f"{value:08b}" for value in (9, 9, 9, 0, 7, 7))  # pixel 0, part of 1
    bits += "1" + "00" + f"{1:03b}" + f"{255:08b}"  # the rest of pixel 1
    data = int(bits.ljust(-(-len(bits) // 8) * 8, "0"), 2).to_bytes(-(-len(bits) // 8), "big")
    assert decode_brush(list(data), 1, 2, "brush").tolist() == [[False, True]]


BAD_RUNS = {
    "not a list": ("5", "expected run lengths as a list of bytes, got '5'"),
    "not bytes": ([300], "expected run lengths as a list of bytes, got"),
    "text": (["a"], "expected run lengths as a list of bytes, got"),
    "empty": ([], "ones that end too early"),
    "cut": (recorded("small")[:-4], "ones that end too early"),
    "another size": (recorded("full"), r"for an image of 8x6 pixels, got 160,000 values"),
}


@pytest.mark.parametrize(("rle", "message"), BAD_RUNS.values(), ids=BAD_RUNS)
def test_damaged_run_lengths_are_named(rle, message):
    with pytest.raises(BadRowError, match=f"region 'b': 'rle': .*{message}"):
        decode_brush(rle, 6, 8, "a.json: region 'b': 'rle'")
