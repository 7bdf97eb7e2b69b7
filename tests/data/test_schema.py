"""Decoding rows: size and alignment of JPEGs that are decoded at a reduced size, and errors that name the image."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import ExifTags, Image

from detris_peft import DetrisProcessor
from detris_peft.data import FEATURES, BadRowError, Collator, Sample, decode_row, encode_mask, make_row, to_dataset
from detris_peft.data.schema import ImageFeature, check_row
from detris_peft.tokenization_detris import train_tokenizer


@pytest.fixture(scope="module")
def processor():
    return DetrisProcessor(train_tokenizer(["the red circle"], 120), image_size=56)


def photograph(folder, width, height, orientation=1):
    """Return a row with a smooth image, in which subpixel shifts are measurable, and the mask of an ellipse."""
    x, y = np.meshgrid(np.arange(width) / 60, np.arange(height) / 45)
    colors = np.stack([np.sin(x + y), np.cos(x), np.sin(y) * np.cos(x)], axis=-1) * 100 + 128
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    path = folder / "photograph.jpg"
    Image.fromarray(colors.astype(np.uint8)).save(path, quality=98, subsampling=0, exif=exif)
    if orientation >= 5:
        width, height = height, width
    across, down = np.meshgrid(np.arange(width) / width, np.arange(height) / height)
    mask = encode_mask((across - 0.4) ** 2 + (down - 0.6) ** 2 < 0.04, height, width)
    row = {"image": {"path": str(path), "bytes": None}, "mask": mask}
    row |= {"ref_id": 1, "no_target": False, "file_name": path.name, "sentences": ["the red circle"]}
    return row | {"split": "val", "dataset": "toys", "image_id": 1, "category_id": -1, "ann_ids": [1], "sent_ids": [1]}


@pytest.mark.parametrize(
    ("size", "image_size", "decoded"),
    [
        ((640, 480), 448, (640, 480)),  # COCO's size at the paper's image_size: not reduced
        ((640, 480), 320, (320, 240)),
        ((1003, 757), 448, (502, 379)),
        ((757, 1003), 125, (95, 126)),
        ((1003, 757), 126, (251, 190)),
    ],
)
def test_reduced_jpegs_are_at_least_as_large_as_image_size(tmp_path, size, image_size, decoded):
    row = photograph(tmp_path, *size)
    image, mask = decode_row(row, image_size)
    assert image.size == decoded
    assert mask.shape == size[::-1]
    np.testing.assert_array_equal(mask, decode_row(row)[1])


@pytest.mark.parametrize("size", [(640, 480), (1003, 757)])
@pytest.mark.parametrize("orientation", [1, 2, 3, 6, 8])
def test_reduced_images_are_aligned_with_full_size_images(processor, tmp_path, size, orientation):
    row = photograph(tmp_path, *size, orientation)
    full, small = (decode_row(row, image_size) for image_size in (None, 56))
    # A rotated image whose size is not divisible would be shifted by a subpixel, so it is not reduced.
    divisible = orientation == 1 or size == (640, 480)
    assert small[0].size == tuple(-(-side // 8) if divisible else side for side in full[0].size)
    first, second = Collator(processor)([Sample(image, "the red circle", mask, 1) for image, mask in (full, small)])[
        "pixel_values"
    ]
    levels = (first - second).abs()[:, 10:-10, 10:-10] * 255 * np.mean(processor.image_std)
    # The remaining difference is averaging within a pixel. Ignoring pixel centers gives 3 or more, a shift by one
    # pixel of the file 1.1.
    assert levels.mean() < 0.8


def test_reduced_decoding_changes_only_pixel_values(processor, tmp_path):
    row = photograph(tmp_path, 640, 480)
    batch = Collator(processor)([Sample(*pair) for pair in samples(row)])
    assert (batch["labels"][0] == batch["labels"][1]).all()
    assert batch["target_sizes"].tolist() == [[480, 640], [480, 640]]
    np.testing.assert_array_equal(*batch["masks"])


def samples(row):
    for image_size in (None, 56):
        image, mask = decode_row(row, image_size)
        yield image, "the red circle", mask, 1


def test_png_images_are_not_reduced(tmp_path):
    row = photograph(tmp_path, 640, 480)
    path = tmp_path / "photograph.png"
    Image.open(row["image"]["path"]).save(path)
    row["image"] = {"path": str(path), "bytes": None}
    assert decode_row(row, 56)[0].size == (640, 480)


def test_make_row_has_the_columns_of_the_schema():
    arguments = {"image": "a.jpg", "sentences": ["a", "b"], "mask": encode_mask(np.ones((2, 2)), 2, 2), "ref_id": 3}
    arguments |= {"image_id": 1, "split": "val", "dataset": "toys", "file_name": "a.jpg"}
    row, empty = (make_row(**arguments, ann_ids=ann_ids) for ann_ids in ([7, 8], []))
    assert [*row] == [*FEATURES]
    assert (row["ann_id"], row["ann_ids"], row["no_target"], row["sent_ids"]) == (7, [7, 8], False, [3000, 3001])
    assert (empty["ann_id"], empty["ann_ids"], empty["no_target"], empty["category_id"]) == (-1, [], True, -1)
    assert to_dataset([row, empty]).features == FEATURES


def test_reduced_decoding_reports_damaged_rows(tmp_path):
    row = photograph(tmp_path, 640, 480)
    content = (tmp_path / "photograph.jpg").read_bytes()
    truncated = {**row, "image": {"path": None, "bytes": content[: len(content) // 2]}}
    missing = {**row, "image": {"path": str(tmp_path / "missing.jpg"), "bytes": None}}
    other = {**row, "mask": encode_mask(np.ones((60, 80)), 60, 80)}  # the reduced size, not the file's
    for bad, kind in ((truncated, "image_damaged"), (missing, "image_missing"), (other, "mask_malformed")):
        with pytest.raises(BadRowError) as caught:
            decode_row(bad, 56)
        assert caught.value.kind == kind


BAD_ROWS = {
    "blank sentence": ({"sentences": ["the red circle", "&nbsp;"]}, "row_malformed", "non-blank text"),
    "no sentence": ({"sentences": []}, "row_malformed", "expected a sentence, got none"),
    "null sentences": ({"sentences": None}, "row_malformed", "expected a sentence, got none"),
    "half a surrogate pair": ({"sentences": ["red \ud83d"]}, "row_malformed", "surrogate"),
    "large id": ({"ref_id": 2**63}, "row_malformed", "64-bit integers"),
    "id of 5000 digits": ({"image_id": 10**5000}, "row_malformed", "64-bit integers"),
    "null id": ({"category_id": None}, "row_malformed", "64-bit integers, got nothing"),
    "no image": ({"image": None}, "image_missing", "expected an image, got nothing"),
    "empty image": ({"image": {"path": None, "bytes": None}}, "image_missing", "expected an image"),
    "url": ({"image": {"path": "http://127.0.0.1:1/a.jpg", "bytes": None}}, "image_damaged", "got a URL"),
    "eps": ({"image": {"path": "a.png", "bytes": b"%!PS-Adobe-3.0 EPSF-3.0\n"}}, "image_damaged", "decoded"),
    "no mask": ({"mask": None}, "mask_malformed", "expected a mask, got nothing"),
    "null size": ({"mask": {"size": None, "counts": "0"}}, "mask_malformed", "expected a mask with a size"),
    "swapped size": ({"mask": encode_mask(np.ones((80, 60)), 80, 60)}, "mask_malformed", "height and width swapped"),
    "foreground": (
        {"no_target": True},
        "mask_malformed",
        "expected a mask without foreground, as 'no_target' is true",
    ),
    "empty mask": ({"mask": encode_mask(np.zeros((60, 80)), 60, 80)}, "mask_empty", "the mask is empty"),
}


@pytest.mark.parametrize("name", BAD_ROWS)
def test_all_ways_to_check_a_row_agree(tmp_path, name):
    row = photograph(tmp_path, 80, 60)
    check_row(row)
    changes, kind, message = BAD_ROWS[name]
    for check in (decode_row, check_row, lambda row: decode_row(row, 8)):
        with pytest.raises(BadRowError, match=message) as caught:
            check({**row, **changes})
        assert caught.value.kind == kind
        assert "reference" in str(caught.value)
        assert str(caught.value).isprintable()


def test_make_row_refuses_what_cannot_be_stored():
    arguments = {"image": "a.jpg", "sentences": ["a"], "mask": encode_mask(np.ones((2, 2)), 2, 2), "ref_id": 3}
    arguments |= {"image_id": 1, "split": "val", "dataset": "toys", "file_name": "a.jpg", "ann_ids": [1]}
    make_row(**{**arguments, "ref_id": np.int64(3)})
    for changes in ({"sentences": ["\u200b"]}, {"file_name": "caf\udce9.jpg"}, {"ref_id": 2**70}, {"sent_ids": ["x"]}):
        with pytest.raises(BadRowError, match=r"reference .*: .*expected"):
            make_row(**{**arguments, **changes})


def test_float_images_are_bad_rows_by_their_header(tmp_path):
    file = tmp_path / "depth.tif"
    Image.fromarray(np.zeros((60, 80), np.float32)).save(file)
    row = {**photograph(tmp_path, 80, 60), "image": {"path": str(file), "bytes": None}}
    for check in (decode_row, check_row):
        with pytest.raises(BadRowError, match=r"depth\.tif: .*floating-point values.* \(reference 1\)") as caught:
            check(row)
        assert caught.value.kind == "image_damaged"


def test_damaged_exif_leaves_an_image_as_it_is(tmp_path):
    row = photograph(tmp_path, 80, 60)
    for format_ in ("PNG", "WEBP", "JPEG"):
        file = tmp_path / f"damaged.{format_.lower()}"
        Image.open(row["image"]["path"]).save(file, format_, exif=b"Exif\x00\x00damaged")
        damaged = {**row, "image": {"path": str(file), "bytes": None}}
        check_row(damaged)
        assert decode_row(damaged)[0].size == decode_row(damaged, 80)[0].size == (80, 60)


def test_the_image_feature_opens_no_urls_and_no_other_formats():
    for value in (
        {"path": "http://127.0.0.1:1/a.jpg", "bytes": None},
        {"path": None, "bytes": b"%!PS-Adobe-3.0 EPSF-3.0"},
    ):
        with pytest.raises(BadRowError, match="expected"):
            ImageFeature().decode_example(value)
    assert ImageFeature(mode="L").decode_example(Image.new("RGB", (3, 2))).mode == "L"
