"""Decoding with simplejpeg: Pillow's bits, or Pillow."""

import sys
from io import BytesIO

import numpy as np
import pytest
from PIL import Image

from detris_peft import images, jpeg
from detris_peft.image_inputs import to_rgb

pytest.importorskip("simplejpeg")


def pixels(height, width, seed=0):
    """Return smooth colors with noise."""
    rng = np.random.default_rng(seed)
    tiles = rng.integers(0, 256, (height // 16 + 1, width // 16 + 1, 3))
    smooth = tiles.repeat(16, axis=0).repeat(16, axis=1)[:height, :width]
    return (smooth + rng.normal(0, 9, smooth.shape)).clip(0, 255).astype(np.uint8)


def encoded(array, mode="RGB", **options):
    file = BytesIO()
    Image.fromarray(array).convert(mode).save(file, options.pop("format", "JPEG"), **options)
    return file.getvalue()


def by_pillow(data, reduction=1):
    """Return Pillow's pixels, or its error."""
    try:
        image = images.open_header(data)
        if reduction > 1:
            image.draft("RGB", (image.width // reduction, image.height // reduction))
        return to_rgb(images.decode(image, "x"), "x")
    except ValueError as error:
        return str(error)


@pytest.mark.parametrize("reduction", [1, 2, 4, 8])
@pytest.mark.parametrize("progressive", [False, True], ids=["baseline", "progressive"])
@pytest.mark.parametrize(
    "options",
    [{"subsampling": 0}, {"subsampling": 1}, {"subsampling": 2, "quality": 40}, {"mode": "L"}, {"keep_rgb": True}],
    ids=["4:4:4", "4:2:2", "4:2:0", "gray", "RGB"],
)
def test_pixels_are_those_of_pillow(options, progressive, reduction):
    for height, width in ((64, 48), (57, 91), (8, 9)):
        data = encoded(pixels(height, width), progressive=progressive, **options)
        found = jpeg.decode_pixels(images.open_header(data), reduction)
        assert found is not None
        np.testing.assert_array_equal(found, by_pillow(data, reduction))


def with_orientation(value):
    exif = Image.Exif()
    exif[0x0112] = value
    return {"exif": exif}


@pytest.mark.parametrize(
    "data",
    [
        encoded(pixels(20, 30), "CMYK"),
        encoded(pixels(20, 30), **with_orientation(6)),
        encoded(pixels(20, 30), format="PNG"),
        encoded(pixels(20, 30))[:-60],
        encoded(pixels(20, 30))[:-2],
    ],
    ids=["CMYK", "rotated", "PNG", "truncated", "no end"],
)
def test_pillow_decodes_what_is_not_plain_or_damaged(data):
    image = images.open_header(data)
    assert jpeg.decode_pixels(image) is None
    expected = by_pillow(data)
    if isinstance(expected, str):
        with pytest.raises(ValueError, match="cannot be decoded"):
            images.decode(image, "x")
    else:
        np.testing.assert_array_equal(to_rgb(images.decode(image, "x"), "x"), expected)


def test_an_orientation_that_changes_nothing_is_no_rotation():
    data = encoded(pixels(20, 30), **with_orientation(1))
    np.testing.assert_array_equal(jpeg.decode_pixels(images.open_header(data)), by_pillow(data))


def test_damaged_files_give_pillows_pixels_or_its_error():
    rng = np.random.default_rng(0)
    originals = [encoded(pixels(40, 56), progressive=progressive) for progressive in (False, True)]
    outcomes = set()
    for number in range(400):
        data = bytearray(originals[number % 2])
        place = int(rng.integers(len(data)))
        kind = number // 2 % 4
        if kind == 0:
            data[place] ^= 1 << int(rng.integers(8))
        elif kind == 1:
            del data[place : place + int(rng.integers(1, 20))]
        elif kind == 2:
            data[place:place] = rng.bytes(5)
        else:
            data += rng.bytes(5)
        try:
            image = images.open_header(bytes(data))
        except ValueError:
            continue
        found, expected = jpeg.decode_pixels(image), by_pillow(bytes(data))
        outcomes.add((found is None, isinstance(expected, str)))
        if found is not None:
            np.testing.assert_array_equal(found, expected)
    assert {(False, False), (True, True)} <= outcomes


@pytest.fixture
def decoder_again():
    """Choose the decoder again, before and after a test."""
    jpeg._matching_decoder.cache_clear()
    yield
    jpeg._matching_decoder.cache_clear()


@pytest.mark.usefixtures("decoder_again")
def test_without_simplejpeg_pillow_decodes(monkeypatch):
    monkeypatch.setitem(sys.modules, "simplejpeg", None)
    assert jpeg.decode_pixels(images.open_header(encoded(pixels(20, 30)))) is None


@pytest.mark.usefixtures("decoder_again")
def test_a_decoder_of_other_pixels_is_not_used(monkeypatch):
    import simplejpeg

    decode = simplejpeg.decode_jpeg
    monkeypatch.setattr(simplejpeg, "decode_jpeg", lambda *args, **options: decode(*args, **options, fastdct=True))
    assert jpeg.decode_pixels(images.open_header(encoded(pixels(20, 30)))) is None
