"""The reader for "CVAT for images 1.1".

The fixture follows https://docs.cvat.ai/docs/manual/advanced/xml_format/ and cvat/apps/dataset_manager/formats/cvat.py
of https://github.com/cvat-ai/cvat. Its masks were compared with those of datumaro 1.13.12, which CVAT uses for exports
and which is not installed here: polygon, group, box and mask are equal. Rotations are compared with
`RotatedBoxesToPolygons` and `EllipsesToMasks` of formats/transformations.py.
"""

import math
import re
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from detris_peft.data import BadRows, DataSource, decode_mask, decode_row
from detris_peft.data.errors import BadRowError, MissingImageError, NoSentencesError, collect_notices
from detris_peft.data.fields import read_mask
from detris_peft.data.readers import find_reader

FIXTURE = Path(__file__).parents[3] / "fixtures/labels/cvat"
HEIGHT, WIDTH = 60, 80
SENTENCE = '<attribute name="description">the rose</attribute>'
POLYGON = f'<polygon label="rose" points="10,10;30,10;30,40;10,40">{SENTENCE}</polygon>'
LABELS = "<labels><label><name>rose</name></label></labels>"


def image(*shapes, name="a.png", more=""):
    return f'<image id="0" name="{name}" width="{WIDTH}" height="{HEIGHT}" {more}>{"".join(shapes)}</image>'


def document(*images, meta=LABELS):
    return f"<annotations><version>1.1</version><meta><task>{meta}</task></meta>{''.join(images)}</annotations>"


def write(folder, *images, name="annotations.xml", files=("images/a.png",), **options):
    for file in (name, *files):
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
    for file in files:
        Image.new("RGB", (WIDTH, HEIGHT)).save(folder / file)
    (folder / name).write_text(document(*images, **options), encoding="utf-8")
    return DataSource(str(folder))


def masks(rows):
    return [decode_row(row)[1] for row in rows]


def objects(source, split="train"):
    return find_reader(source).load_objects(source, split, None)


def polygon(points):
    return decode_mask(read_mask(points, HEIGHT, WIDTH, "expected"))


def test_shapes_with_descriptions_are_rows():
    source = DataSource(str(FIXTURE))
    assert find_reader(source).title == "CVAT"
    assert source.splits() == ["train", "val"]
    with collect_notices() as notices:
        train, val = source.load("train"), source.load("val")
    assert train["sentences"] == [
        ["the left rose", "the red flower"],
        ["the broken pot"],
        ["the bud; it is small"],
    ]
    assert val["sentences"] == [["the pot"], ["the tilted pot"], ["the oval rose"]]
    assert (set(train["file_name"]), set(val["file_name"])) == ({"images/0001.jpg"}, {"images/0002.jpg"})
    assert len({*train["ref_id"], *val["ref_id"]}) == 6
    assert notices == [("shape_without_area", f"{FIXTURE}: shapes without an area are not used: 1 points")]
    assert objects(source)["sentences"] == [["rose"], ["pot"], ["rose"]]
    assert DataSource(str(FIXTURE / "annotations.xml")).load("val")["sentences"] == val["sentences"]


def test_masks_are_those_of_cvat():
    rose, pot, bud = masks(DataSource(str(FIXTURE)).load("train"))
    assert np.array_equal(rose, polygon([10, 10, 40, 12.5, 38.25, 40, 12, 37.5]))
    assert np.array_equal(pot, polygon([[50, 5, 60, 5, 55, 20], [62, 8, 75, 9, 70, 25]]))
    assert bud[45:49, 3:7].tolist() == [[0, 0, 1, 1], [1, 0, 0, 0], [0, 1, 1, 1], [1, 1, 0, 0]]
    assert bud.sum() == 8
    box, tilted, oval = masks(DataSource(str(FIXTURE)).load("val"))
    assert np.array_equal(box, polygon([20, 15, 50, 15, 50, 40, 20, 40]))
    cosine, sine = math.cos(math.radians(30)), math.sin(math.radians(30))
    corners = [
        (65 + cosine * x - sine * y, 15 + sine * x + cosine * y) for x, y in ((-10, -5), (10, -5), (10, 5), (-10, 5))
    ]
    assert np.array_equal(tilted, polygon([list(corner) for corner in corners]))
    drawn = cv2.ellipse(np.zeros((HEIGHT, WIDTH), np.uint8), (35, 45), (12, 6), 45, 0, 360, 1, -1)
    # OpenCV draws pixels whose centers are at integers, and half a pixel more around the ellipse.
    assert np.logical_and(oval, drawn).sum() / np.logical_or(oval, drawn).sum() > 0.9
    assert abs(oval.sum() - math.pi * 12 * 6) < 12


def test_images_are_found_where_cvat_puts_them(tmp_path):
    names = [("Train", "deep/a.png"), ("Validation", "b.png"), ("testA", "c.png"), ("default", "d.png")]
    images = [image(POLYGON, name=name, more=f'subset="{subset}"') for subset, name in names]
    files = ("images/Train/deep/a.png", "images/b.png", "c.png", "elsewhere/d.png")
    source = write(tmp_path, *images, files=files)
    assert source.splits() == ["train", "val", "testA"]
    found = [row["file_name"] for split in source.splits() for row in source.load(split)]
    assert found == ["images/Train/deep/a.png", "elsewhere/d.png", "images/b.png", "c.png"]
    shutil.move(tmp_path / "images", tmp_path / "photos")
    source = DataSource(str(tmp_path / "annotations.xml"), image_folder=str(tmp_path / "photos"))
    assert source.load("val")["file_name"] == ["b.png"]


def test_the_subset_of_the_task_and_folders_are_splits(tmp_path):
    source = write(tmp_path / "task", image(POLYGON), meta=f"{LABELS}<subset>Test</subset>")
    assert source.splits() == ["test"]
    for split in ("train", "valid"):
        write(tmp_path / "folders" / split, image(POLYGON, name=f"{split}.png"), files=(f"images/{split}.png",))
    source = DataSource(str(tmp_path / "folders"))
    assert source.splits() == ["train", "val"]
    assert source.load("val")["file_name"] == ["valid/images/valid.png"]


def test_several_files_are_one_dataset_unless_they_label_the_same_image(tmp_path):
    files = ("images/a.png", "images/b.png")
    for number, name in enumerate("ab"):
        source = write(tmp_path, image(POLYGON, name=f"{name}.png"), name=f"task{number}.xml", files=files)
    assert len(source.load("train")) == 2
    shutil.copy(tmp_path / "task0.xml", tmp_path / "task2.xml")
    with pytest.raises(BadRowError, match=r"task2\.xml: expected the labels of a\.png in one place, .*task0\.xml"):
        source.load("train")


def test_an_image_that_is_listed_twice_keeps_unique_ids(tmp_path):
    rows = write(tmp_path, image(POLYGON), image(POLYGON)).load("train")
    assert len(set(rows["ref_id"])) == 2


@pytest.mark.parametrize("encoding", ["utf-16", "windows-1252"])
def test_other_encodings_are_read(tmp_path, encoding):
    source = write(tmp_path, image(POLYGON.replace("the rose", "das Röschen")))
    text = (tmp_path / "annotations.xml").read_text(encoding="utf-8")
    declaration = f"<?xml version='1.0' encoding='{encoding}'?>"
    (tmp_path / "annotations.xml").write_bytes((declaration + text).encode(encoding))
    assert source.load("train")["sentences"] == [["das Röschen"]]


def test_skeletons_cuboids_and_tags_are_left_out(tmp_path):
    shapes = [
        '<skeleton label="rose"><points label="tip" points="1,2"/></skeleton>',
        '<cuboid label="rose" xtl1="1"/>',
        '<polyline label="rose" points="1,2;3,4"/>',
        '<tag label="rose"/>',
        POLYGON,
    ]
    with collect_notices() as notices:
        assert len(write(tmp_path, image(*shapes)).load("train")) == 1
    assert notices == [
        ("shape_without_area", f"{tmp_path}: shapes without an area are not used: 1 cuboid, 1 polyline, 1 skeleton")
    ]


def test_a_mask_may_exceed_the_image(tmp_path):
    brush = f'<mask label="rose" rle="0, 16" left="-2" top="58" width="4" height="4">{SENTENCE}</mask>'
    (mask,) = masks(write(tmp_path, image(brush)).load("train"))
    assert np.argwhere(mask).tolist() == [[58, 0], [58, 1], [59, 0], [59, 1]]


def test_other_formats_are_not_detected(tmp_path):
    cvat = find_reader(DataSource(str(FIXTURE)))
    for name, content in (
        ("voc", "<annotation><filename>a.jpg</filename></annotation>"),
        ("svg", "<svg><image/></svg>"),
        ("other", "<annotations><item/></annotations>"),
        ("text", "annotations"),
    ):
        (tmp_path / name).mkdir()
        (tmp_path / name / "a.xml").write_text(content)
        assert not cvat.detect(DataSource(str(tmp_path / name)))
        assert not cvat.detect(DataSource(str(tmp_path / name / "a.xml")))
    for other in ("labelme", "via", "reasonseg", "phrasecut"):
        assert not cvat.detect(DataSource(str(FIXTURE.parent / other)))


def test_without_sentences_the_message_names_what_to_do(tmp_path):
    source = write(tmp_path, image(POLYGON.replace("the rose", " ")))
    with pytest.raises(NoSentencesError, match=r"got 1 objects .* a text attribute .* data describe"):
        source.load("train")


def test_unknown_labels_are_errors_where_classes_are_used(tmp_path):
    source = write(tmp_path, image(POLYGON.replace('"rose"', '"tulip"')))
    assert len(source.load("train")) == 1
    with pytest.raises(BadRowError, match="expected one of the labels in <meta>, rose, got 'tulip'; add it there"):
        objects(source)
    assert objects(write(tmp_path, image(POLYGON), meta=""))["sentences"] == [["rose"]]


@pytest.mark.parametrize(
    ("kind", "value", "got"), [("number", "5", "5.0"), ("checkbox", "true", "True"), ("select", "false", "False")]
)
def test_attributes_that_are_not_text_are_errors(tmp_path, kind, value, got):
    attribute = f"<attribute><name>Text</name><input_type>{kind}</input_type></attribute>"
    labels = f"<labels><label><name>rose</name><attributes>{attribute}</attributes></label></labels>"
    shape = POLYGON.replace(SENTENCE, f'<attribute name="Text">{value}</attribute>')
    source = write(tmp_path, image(shape), meta=labels)
    with pytest.raises(BadRowError, match=rf"image 'a\.png': polygon 0: 'Text': expected a sentence .*, got {got}"):
        source.load("train")
    assert objects(source)["sentences"] == [["rose"]]


BAD_SHAPES = {
    "element": ("<star/>", "row_malformed", "expected one of the elements polygon, .*, got <star>"),
    "group": (POLYGON.replace("label", 'group_id="x" label'), "row_malformed", "an integer as 'group_id', got 'x'"),
    "no points": (
        POLYGON.replace(' points="10,10;30,10;30,40;10,40"', ""),
        "mask_malformed",
        "expected 'x,y;x,y;...'",
    ),
    "triples": (POLYGON.replace("10,10;", "1,2,3;"), "mask_malformed", "'points': expected 'x,y;x,y;...', got"),
    "text": (POLYGON.replace("10,10;", "a,b;"), "mask_malformed", "'points': expected 'x,y;x,y;...', got"),
    "NaN": (POLYGON.replace("10,10;", "nan,1;"), "mask_malformed", "'points': expected numbers"),
    "far": (POLYGON.replace("10,10;", "1e9,1;"), "mask_malformed", "within 800 pixels"),
    "two": (POLYGON.replace("10,10;30,10;", ""), "mask_empty", "three points or more"),
    "outside": (
        POLYGON.replace("10,10;30,10;30,40;10,40", "90,1;95,1;95,9"),
        "mask_out_of_frame",
        "outside the image",
    ),
    "box": (
        f'<box xtl="1" ytl="2" xbr="x" ybr="4">{SENTENCE}</box>',
        "mask_malformed",
        "expected a number as 'xbr', got 'x'",
    ),
    "rotation": (
        f'<box xtl="1" ytl="2" xbr="3" ybr="4" rotation="inf">{SENTENCE}</box>',
        "mask_malformed",
        "expected a number as 'rotation', got 'inf'",
    ),
    "ellipse": (
        f'<ellipse cx="1" cy="2" rx="3">{SENTENCE}</ellipse>',
        "mask_malformed",
        "expected a number as 'ry', got nothing",
    ),
    "no ellipse": (f'<ellipse cx="1" cy="2" rx="0" ry="0">{SENTENCE}</ellipse>', "mask_empty", "the mask is empty"),
    "mask box": (
        f'<mask rle="1, 3" left="1" top="1" width="2">{SENTENCE}</mask>',
        "mask_malformed",
        "expected a number as 'height'",
    ),
    "counts": (
        f'<mask rle="1, 2" left="1" top="1" width="2" height="2">{SENTENCE}</mask>',
        "mask_malformed",
        "'rle': expected counts that add up to the 2x2 pixels of its box, got '1, 2'",
    ),
    "negative": (
        f'<mask rle="-1, 5" left="1" top="1" width="2" height="2">{SENTENCE}</mask>',
        "mask_malformed",
        "expected counts that add up",
    ),
    "huge box": (
        f'<mask rle="0, 99999999999999" left="1" top="1" width="9999999" height="9999999">{SENTENCE}</mask>',
        "mask_malformed",
        "expected counts that add up",
    ),
    "huge count": (
        f'<mask rle="{10**40}" left="1" top="1" width="2" height="2">{SENTENCE}</mask>',
        "mask_malformed",
        "expected counts that add up",
    ),
    "no mask": (
        f'<mask rle="4" left="1" top="1" width="2" height="2">{SENTENCE}</mask>',
        "mask_empty",
        "expected foreground",
    ),
}


@pytest.mark.parametrize(("content", "kind", "message"), BAD_SHAPES.values(), ids=BAD_SHAPES)
def test_a_bad_shape_is_named_with_image_and_number_or_skipped(tmp_path, content, kind, message):
    source = write(tmp_path, image(POLYGON, content))
    with pytest.raises(BadRowError, match=message) as caught:
        source.load("train")
    assert caught.value.kind == kind
    assert re.match(rf"{tmp_path}/annotations\.xml: image 'a\.png': \w+ 1: ", str(caught.value))
    bad_rows = BadRows()
    assert len(source.load("train", bad_rows)) == 1
    assert bad_rows.counts() == {kind: 1}


@pytest.mark.parametrize(
    ("content", "error", "message"),
    [
        (image(POLYGON).replace("a.png", ""), BadRowError, "'name': expected a file name, got ''"),
        (image(POLYGON).replace('"80"', '"x"'), BadRowError, "expected integers as 'height' and 'width', got"),
        (image(POLYGON).replace('"80"', '"60"'), BadRowError, "expected an image of 60x60 pixels as in"),
        (image(POLYGON, name="b.png"), MissingImageError, r"polygon 0: .*b\.png is missing; add the image"),
        (image(POLYGON, name="a" * 5000), BadRowError, "cannot be read"),
        ('<track id="0"/>', ValueError, "got 'CVAT for video 1.1', which has <track>; export the task as 'CVAT for"),
        ("<image>", ValueError, "mismatched tag"),
        ("", NoSentencesError, "got 0 objects"),
    ],
)
def test_a_bad_image_or_file_is_named(tmp_path, content, error, message):
    source = write(tmp_path, content)
    with pytest.raises(error, match=message) as caught:
        source.load("train")
    assert str(tmp_path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_file_of_another_format_is_named(tmp_path):
    (tmp_path / "a.xml").write_text("<annotation/>")
    with pytest.raises(FileNotFoundError, match=r"expected CVAT's annotations\.xml, found none; export the task as"):
        DataSource(str(tmp_path), format="cvat").load("train")
    with pytest.raises(ValueError, match="with the root <annotations>, got <annotation>"):
        DataSource(str(tmp_path / "a.xml"), format="cvat").load("train")
