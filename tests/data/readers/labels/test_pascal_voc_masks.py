"""The PNG files of Pascal VOC: palettes, the order of the objects, and classes of images without XML."""

import numpy as np
import pytest
from PIL import Image

from detris_peft.data import BadRows, DataSource, decode_row
from detris_peft.data.readers import find_reader
from tests.data.readers.labels.test_pascal_voc import (
    HEIGHT,
    VALUES,
    WIDTH,
    described,
    objects,
    save_mask,
    tag,
    write,
    write_sets,
)


@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_masks_may_be_saved_without_a_palette(tmp_path, mode):
    """CVAT and Datumaro save VOC's colors."""
    source = write(tmp_path)
    save_mask(tmp_path / "SegmentationObject/a.png", mode=mode)
    for number, row in enumerate(objects(source), start=1):
        np.testing.assert_array_equal(decode_row(row)[1], number == VALUES)


def box(xmin, ymin, xmax, ymax):
    return tag(
        "bndbox", tag("xmin", f"{xmin}"), tag("ymin", f"{ymin}"), tag("xmax", f"{xmax}"), tag("ymax", f"{ymax}")
    )


FIRST, SECOND = box(0, 0, 4, 2), box(2, 3, 5, 6)


@pytest.mark.parametrize(
    ("boxes", "values"),
    [
        ((FIRST, SECOND), (1, 2)),
        ((SECOND, FIRST), (2, 1)),  # as Datumaro writes it
        ((box(0, 0, 7, 6), box(1, 2, 8, 6)), (1, 2)),  # too large to decide
        (("", FIRST), (1, 2)),
        ((tag("bndbox", tag("xmin", "?")), SECOND), (1, 2)),
    ],
    ids=["in order", "swapped", "large", "no box", "invalid box"],
)
def test_masks_in_another_order_are_found_by_their_boxes(tmp_path, boxes, values):
    source = write(tmp_path, "a", *(described("rose", one) for one in boxes))
    bad_rows = BadRows()
    rows = find_reader(source).load_objects(source, "train", bad_rows)
    if FIRST in boxes[1:] and not boxes[0]:
        assert "object 2: expected the value 2" in str(bad_rows[0])
        assert "within its <bndbox>, got it elsewhere" in str(bad_rows[0])
    else:
        assert not bad_rows
    for value, row in zip(values, rows, strict=False):
        np.testing.assert_array_equal(decode_row(row)[1], np.equal(VALUES, value))


def test_images_without_xml_have_the_classes_of_their_pixels(tmp_path):
    """CVAT's "Segmentation mask 1.1" has no XML, and its classes are those of labelmap.txt.

    Datumaro writes no colors if they are those of VOC's palette, here of its third class.
    """
    Image.new("RGB", (WIDTH, HEIGHT)).save(tmp_path / "a.jpg")
    save_mask(tmp_path / "SegmentationObject/a.png", mode="RGB")
    save_mask(tmp_path / "SegmentationClass/a.png", np.where(VALUES == 1, 3, VALUES).astype(np.uint8), mode="RGB")
    write_sets(tmp_path, default=["a"])
    (tmp_path / "labelmap.txt").write_text(
        "# label:color_rgb:parts:actions\nbackground:0,0,0::\nrose:128,128,0::\ntulip:::\n"
    )
    source = DataSource(str(tmp_path))
    assert source.splits() == ["train"]
    rows = objects(source)
    assert rows["sentences"] == [["rose"], ["tulip"]]
    np.testing.assert_array_equal(decode_row(rows[1])[1], VALUES == 2)
    (tmp_path / "labelmap.txt").unlink()
    assert objects(source)["sentences"] == [["bird"], ["bicycle"]]  # the third and the second class of VOC2012
    (tmp_path / "labelmap.txt").write_text("rose:128,128,0::\n")
    bad_rows = BadRows()
    assert len(find_reader(source).load_objects(source, "train", bad_rows)) == 1
    assert "object 2: expected the color of a class, got 0,128,0; add it to labelmap.txt" in str(bad_rows[0])


def test_invalid_labelmap_is_named(tmp_path):
    source = write(tmp_path)
    (tmp_path / "labelmap.txt").write_text("rose:red::\n")
    with pytest.raises(ValueError, match=r"labelmap\.txt: expected name:red,green,blue:: .*, got 'rose:red::'"):
        source.load("train", BadRows())
