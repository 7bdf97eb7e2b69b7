"""JPEGs that are decoded no larger than the model needs: how large, where they lie, and what stays as it was."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import ExifTags, Image

from detris_peft import DetrisProcessor
from detris_peft.data import BadRowError, Collator, Sample, decode_row, encode_mask
from detris_peft.tokenization_detris import train_tokenizer


@pytest.fixture(scope="module")
def processor():
    return DetrisProcessor(train_tokenizer(["the red circle"], 120), image_size=56)


def photograph(folder, width, height, orientation=1):
    """A row for a smooth image, in which a shift by a part of a pixel shows, and a mask of an ellipse."""
    x, y = np.meshgrid(np.arange(width) / 60, np.arange(height) / 45)
    pixels = np.stack([np.sin(x + y), np.cos(x), np.sin(y) * np.cos(x)], axis=-1) * 100 + 128
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    path = folder / "photograph.jpg"
    Image.fromarray(pixels.astype(np.uint8)).save(path, quality=98, subsampling=0, exif=exif)
    if orientation >= 5:
        width, height = height, width
    across, down = np.meshgrid(np.arange(width) / width, np.arange(height) / height)
    mask = encode_mask((across - 0.4) ** 2 + (down - 0.6) ** 2 < 0.04, height, width)
    row = {"image": {"path": str(path), "bytes": None}, "mask": mask}
    return row | {"ref_id": 1, "no_target": False, "file_name": path.name}


@pytest.mark.parametrize(
    ("size", "image_size", "decoded"),
    [
        ((640, 480), 448, (640, 480)),  # COCO's, at the paper's size: nothing changes
        ((640, 480), 320, (320, 240)),
        ((1003, 757), 448, (502, 379)),
        ((757, 1003), 125, (95, 126)),
        ((1003, 757), 126, (251, 190)),
    ],
)
def test_the_decoder_gives_no_less_than_the_model_needs(tmp_path, size, image_size, decoded):
    row = photograph(tmp_path, *size)
    image, mask = decode_row(row, image_size)
    assert image.size == decoded
    assert mask.shape == size[::-1]
    np.testing.assert_array_equal(mask, decode_row(row)[1])


@pytest.mark.parametrize("size", [(640, 480), (1003, 757)])
@pytest.mark.parametrize("orientation", [1, 2, 3, 6, 8])
def test_a_smaller_image_lies_where_the_whole_one_does(processor, tmp_path, size, orientation):
    row = photograph(tmp_path, *size, orientation)
    whole, small = (decode_row(row, image_size) for image_size in (None, 56))
    # A turned image whose size does not divide would come to lie a part of a pixel off, and stays whole.
    divides = orientation == 1 or size == (640, 480)
    assert small[0].size == tuple(-(-side // 8) if divides else side for side in whole[0].size)
    first, second = Collator(processor)([Sample(image, "the red circle", mask, 1) for image, mask in (whole, small)])[
        "pixel_values"
    ]
    levels = (first - second).abs()[:, 10:-10, 10:-10] * 255 * np.mean(processor.image_std)
    # What is left is the average over a pixel. Without its middle it would be 3 or more, a file's pixel off 1.1.
    assert levels.mean() < 0.8


def test_nothing_but_pixel_values_depends_on_how_large_it_was_decoded(processor, tmp_path):
    row = photograph(tmp_path, 640, 480)
    batch = Collator(processor)([Sample(*pair) for pair in samples(row)])
    assert (batch["labels"][0] == batch["labels"][1]).all()
    assert batch["target_sizes"].tolist() == [[480, 640], [480, 640]]
    np.testing.assert_array_equal(*batch["masks"])


def samples(row):
    for image_size in (None, 56):
        image, mask = decode_row(row, image_size)
        yield image, "the red circle", mask, 1


def test_images_that_are_no_jpeg_stay_whole(tmp_path):
    row = photograph(tmp_path, 640, 480)
    path = tmp_path / "photograph.png"
    Image.open(row["image"]["path"]).save(path)
    row["image"] = {"path": str(path), "bytes": None}
    assert decode_row(row, 56)[0].size == (640, 480)


def test_faults_are_named_also_where_a_image_is_decoded_smaller(tmp_path):
    row = photograph(tmp_path, 640, 480)
    content = (tmp_path / "photograph.jpg").read_bytes()
    cut = {**row, "image": {"path": None, "bytes": content[: len(content) // 2]}}
    gone = {**row, "image": {"path": str(tmp_path / "gone.jpg"), "bytes": None}}
    other = {**row, "mask": encode_mask(np.ones((60, 80)), 60, 80)}  # the size as decoded, not the file's
    for bad, kind in ((cut, "image_damaged"), (gone, "image_missing"), (other, "mask_malformed")):
        with pytest.raises(BadRowError) as caught:
            decode_row(bad, 56)
        assert caught.value.kind == kind
