"""The reader for Pascal VOC.

The layout follows http://host.robots.ox.ac.uk/pascal/VOC/voc2012/htmldoc/ (development kit, sections 2.5 and 2.6).
Polygons are written as by supervision, which has the layout of Roboflow.
"""

import numpy as np
import pytest
import supervision
from PIL import Image

from detris_peft.data import BadRows, DataSource, decode_row
from detris_peft.data.errors import BadRowError, NoSentencesError, collect_notices
from detris_peft.data.readers import find_reader
from tests.helpers.reference import FIXTURES

HEIGHT, WIDTH = 6, 8
# The first colors of VOC's palette, as in its `VOCcolormap.m`.
PALETTE = [(0, 0, 0), (128, 0, 0), (0, 128, 0), (128, 128, 0), (0, 0, 128)]
VALUES = np.zeros((HEIGHT, WIDTH), np.uint8)
VALUES[0:2, 0:4], VALUES[3:6, 2:5], VALUES[2, 0:4] = 1, 2, 255


def save_mask(file, values=VALUES, mode="P"):
    file.parent.mkdir(parents=True, exist_ok=True)
    if mode == "P":
        image = Image.fromarray(values, "L").convert("P")
        image.putdata(values.ravel())
        image.putpalette([level for color in PALETTE for level in color] + [224, 224, 192] * 251)
    else:
        colors = np.array(PALETTE + [(224, 224, 192)] * 251, np.uint8)[values]
        image = Image.fromarray(colors if mode == "RGB" else values)
    image.save(file)


def tag(name, *content):
    return f"<{name}>{''.join(content)}</{name}>"


def described(label, *content):
    return tag("object", tag("name", label) if label else "", *content)


ROSE, TULIP = described("rose", tag("description", "the left rose\na red flower")), described("tulip")
SIZE = tag("size", tag("width", str(WIDTH)), tag("height", str(HEIGHT)), tag("depth", "3"))


def write(folder, name="a", *objects, masks=True, filename=None, size=SIZE):
    """Write a photo, its XML and its mask in the layout of VOC."""
    for part in ("JPEGImages", "Annotations"):
        (folder / part).mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (WIDTH, HEIGHT)).save(folder / f"JPEGImages/{name}.jpg")
    content = tag("annotation", tag("filename", filename or f"{name}.jpg"), size, *(objects or (ROSE, TULIP)))
    (folder / f"Annotations/{name}.xml").write_text(content)
    if masks:
        save_mask(folder / f"SegmentationObject/{name}.png")
    return DataSource(str(folder))


def write_sets(folder, **splits):
    (folder / "ImageSets/Segmentation").mkdir(parents=True)
    for split, names in splits.items():
        (folder / f"ImageSets/Segmentation/{split}.txt").write_text("\n".join(names) + "\n")


def objects(source, split="train"):
    return find_reader(source).load_objects(source, split, None)


def test_the_folder_of_two_photos_is_read():
    source = DataSource(str(FIXTURES / "labels/pascal_voc"))
    assert source.splits() == ["train", "val"]
    assert [source.load(split)["sentences"][:] for split in source.splits()] == [
        [["the plant on the left"]],
        [["the bottle"]],
    ]
    rows = objects(source)
    assert rows["sentences"] == [["potted plant"], ["chair"]]
    first, second = (decode_row(row)[1] for row in rows)
    assert (first[7:23, 5:23].all(), first.sum()) == (True, 16 * 18)  # without the void pixels around it
    assert (second[4:17, 29:35].all(), second.sum()) == (True, 13 * 6)


def test_value_n_is_the_mask_of_the_nth_object(tmp_path):
    source = write(tmp_path / "flowers")
    assert find_reader(source).title == "Pascal VOC"
    assert source.splits() == ["train"]
    rows = source.load("train")
    assert rows["sentences"] == [["the left rose", "a red flower"]]
    assert rows["file_name"] == ["JPEGImages/a.jpg"]
    assert rows["dataset"] == ["flowers"]
    rows = objects(source)
    assert rows["sentences"] == [["rose"], ["tulip"]]
    assert len(set(rows["ref_id"])) == 2
    for number, row in enumerate(rows, start=1):
        np.testing.assert_array_equal(decode_row(row)[1], number == VALUES)


@pytest.mark.parametrize("below", ["", "VOC2012", "VOCdevkit/VOC2012"])
def test_the_folder_of_the_year_is_found(tmp_path, below):
    write(tmp_path / below)
    assert len(DataSource(str(tmp_path)).load("train")) == 1


def test_image_sets_are_splits(tmp_path):
    for name in ("a", "b", "c"):
        write(tmp_path, name)
    source = DataSource(str(tmp_path))
    write_sets(tmp_path, train=["a", "b"], val=["c"], trainval=["a", "b", "c"])
    assert source.splits() == ["train", "val"]
    assert source.load("train")["file_name"] == ["JPEGImages/a.jpg", "JPEGImages/b.jpg"]
    assert source.load("val")["file_name"] == ["JPEGImages/c.jpg"]


def test_polygons_next_to_the_images_are_read(tmp_path):
    """The layout of Roboflow: XML and photos in train/ and valid/, here written by supervision."""
    polygon = [(1, 1), (6, 1), (6, 4), (1, 4)]
    mask = supervision.polygon_to_mask(np.array(polygon), (WIDTH, HEIGHT)).astype(bool)
    detections = supervision.Detections(np.array([[1, 1, 6, 4]]), mask=mask[None], class_id=np.array([0]))
    for folder in (tmp_path / "train", tmp_path / "valid"):
        folder.mkdir()
        name = str(folder / "a.jpg")
        Image.new("RGB", (WIDTH, HEIGHT)).save(name)
        made = supervision.DetectionDataset(["rose"], [name], {name: detections})
        made.as_pascal_voc(annotations_directory_path=str(folder))
    source = DataSource(str(tmp_path))
    assert source.splits() == ["train", "val"]
    (row,) = objects(source)
    assert (row["sentences"], row["file_name"]) == (["rose"], "train/a.jpg")
    ours = decode_row(row)[1]
    assert np.logical_and(ours, mask).sum() == ours.sum()  # supervision includes the pixels on the outline
    assert ours.sum() >= mask.sum() - 9


@pytest.mark.parametrize(
    "content",
    [
        tag("caption", "the left one"),
        tag("attributes", tag("attribute", tag("name", "Description"), tag("value", "the left one"))),
        tag("pose", "Frontal") + tag("difficult", "0") + tag("sentence", " the left one "),
        tag("description", "the left one") + tag("description", ""),
    ],
)
def test_sentences_are_a_tag_or_an_attribute(tmp_path, content):
    assert write(tmp_path, "a", described("rose", content)).load("train")["sentences"] == [["the left one"]]


def test_without_sentences_the_error_says_where_to_write_them(tmp_path):
    with pytest.raises(NoSentencesError, match="write sentences in the <description> of each <object>"):
        write(tmp_path, "a", TULIP, TULIP).load("train")


def test_images_may_be_elsewhere(tmp_path):
    source = write(tmp_path / "set", filename="C:\\photos\\other.jpg")
    (tmp_path / "photos/deep").mkdir(parents=True)
    (tmp_path / "set/JPEGImages/a.jpg").rename(tmp_path / "photos/deep/other.jpg")
    with pytest.raises(BadRowError, match=r"other\.jpg is missing"):
        source.load("train")
    source.image_folder = str(tmp_path / "photos")
    assert source.load("train")["file_name"] == ["deep/other.jpg"]


def test_images_without_a_mask_are_noticed_or_errors(tmp_path):
    write(tmp_path)
    source = write(tmp_path, "b", masks=False)
    with collect_notices() as notices:
        assert len(source.load("train")) == 1
    assert ("no_mask", f"{tmp_path}: 1 images have no mask in SegmentationObject, and are not read") in notices
    write_sets(tmp_path, train=["a", "b"])
    bad_rows = BadRows()
    assert len(source.load("train", bad_rows)) == 1
    assert "b.xml: expected the mask" in str(bad_rows[0])
    assert "got boxes only, which are not masks" in str(bad_rows[0])


def polygon(**points):
    return tag("polygon", *(tag(name, text) for name, text in points.items()))


POINTS = {"x1": "1", "y1": "1", "x2": "6", "y2": "1", "x3": "6", "y3": "4"}
BAD = {
    "boxes only": ((described("rose", tag("bndbox")),), False, "expected the mask .*a.png, or a <polygon> in each"),
    "one box": (
        (described("a", polygon(**POINTS)), described("b")),
        False,
        "object 2: expected a <polygon>, got a box",
    ),
    "point": ((described("a", polygon(x1="1", y1="2", x2="3", y3="4")),), False, "expected <x1>, <y1>, <x2>"),
    "number": ((described("a", polygon(**POINTS | {"x2": "?"})),), False, "object 1: <polygon>: expected <x1>"),
    "two points": ((described("a", polygon(x1="1", y1="1", x2="6", y2="1")),), False, "<polygon>: .*three points"),
    "outside": (
        (described("a", polygon(**{name: f"{int(text) + 20}" for name, text in POINTS.items()})),),
        False,
        "entirely outside",
    ),
    "no pixels": ((ROSE, TULIP, TULIP), True, r"object 3: expected pixels of the value 3 in .*a\.png, got .* 1, 2"),
    "no class": (
        (described("", tag("text", "it")), TULIP),
        True,
        "object 1: expected the class as <name>, got nothing",
    ),
}


@pytest.mark.parametrize(("content", "masks", "message"), BAD.values(), ids=BAD)
def test_an_invalid_object_is_named_or_skipped(tmp_path, content, masks, message):
    source = write(tmp_path, "a", *content, masks=masks)
    bad_rows = BadRows()
    reader = find_reader(source)
    with pytest.raises(BadRowError, match=rf"a\.xml: .*{message}"):
        reader.load_objects(source, "train", None)
    rows = reader.load_objects(source, "train", bad_rows)
    assert (len(bad_rows), len(rows)) == (1, len(content) - 1)


def test_an_attribute_that_is_no_text_is_named(tmp_path):
    source = write(tmp_path, "a", described("rose", tag("caption", "true")))
    with pytest.raises(BadRowError, match=r"a\.xml: object 1: 'caption': expected a sentence"):
        source.load("train")


def write_file(name, content):
    return lambda folder: (folder / name).write_bytes(content)


FILES = {
    "another root": (write_file("Annotations/a.xml", b"<annotations/>"), "expected <annotation>, got <annotations>"),
    "cut": (write_file("Annotations/a.xml", b"<annotation><object>"), "expected XML"),
    "DTD": (write_file("Annotations/a.xml", b"<!DOCTYPE x><annotation/>"), "expected XML without a DTD"),
    "damaged mask": (write_file("SegmentationObject/a.png", b"PNG"), "expected an image"),
    "mask of another size": (
        lambda folder: save_mask(folder / "SegmentationObject/a.png", VALUES[:, :6]),
        r"expected a mask of the image's size \[height, width\] = \[6, 8\], got \[6, 6\]",
    ),
    "mask of other colors": (
        lambda folder: Image.new("RGB", (WIDTH, HEIGHT), (1, 2, 3)).save(folder / "SegmentationObject/a.png"),
        "colors of VOC's palette, got the color #010203",
    ),
    "photo of another size": (
        lambda folder: Image.new("RGB", (HEIGHT, WIDTH)).save(folder / "JPEGImages/a.jpg"),
        "expected an image of 8x6 pixels as in a.xml",
    ),
    "missing photo": (lambda folder: (folder / "JPEGImages/a.jpg").unlink(), r"JPEGImages/a\.jpg is missing"),
}


@pytest.mark.parametrize(("change", "message"), FILES.values(), ids=FILES)
def test_a_file_that_cannot_be_read_is_an_error_of_its_image(tmp_path, change, message):
    source = write(tmp_path)
    write(tmp_path, "b")
    change(tmp_path)
    with pytest.raises(BadRowError, match=message):
        source.load("train")
    bad_rows = BadRows()
    assert source.load("train", bad_rows)["file_name"] == ["JPEGImages/b.jpg"]
    assert len(bad_rows) == 1


def test_sizes_are_numbers_or_0(tmp_path):
    write(tmp_path, size=tag("size", tag("width", "0"), tag("height", "0")))
    source = write(tmp_path, "b", size=tag("size", tag("width", "wide"), tag("height", "6")))
    bad_rows = BadRows()
    assert len(source.load("train", bad_rows)) == 1
    assert "b.xml: <size>: expected numbers, got ['6', 'wide']" in str(bad_rows[0])


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_xml_may_have_other_encodings(tmp_path, encoding):
    source = write(tmp_path, "a", described("rose", tag("text", "die große Rose")))
    file = tmp_path / "Annotations/a.xml"
    file.write_bytes(f"<?xml version='1.0'?>{file.read_text()}".encode(encoding))
    assert source.load("train")["sentences"] == [["die große Rose"]]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("../../a", "expected names of images in JPEGImages, got '../../a'"),
        ("a  1\nb -1", "expected one name per line, got the list of a class, 'a  1'; keep the names only"),
        (b"\xff\xfe", "UTF-8"),
    ],
)
def test_invalid_image_sets_are_named(tmp_path, line, message):
    source = write(tmp_path)
    write_sets(tmp_path, train=[])
    file = tmp_path / "ImageSets/Segmentation/train.txt"
    file.write_bytes(line if isinstance(line, bytes) else line.encode())
    with pytest.raises(ValueError, match=rf"train\.txt: .*{message}"):
        source.load("train", BadRows())
