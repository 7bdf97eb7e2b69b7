"""The reader for LabelMe's JSON.

The fixture follows https://github.com/wkentaro/labelme/blob/main/labelme/_label_file.py. Masks of polygons are
compared with those of pycocotools, to which labelme2coco.py of the same repository converts them. `shape_to_mask` of
labelme/utils/shape.py draws with Pillow, which adds half a pixel around each shape.
"""

import base64
import io
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw
from pycocotools import mask as coco

from detris_peft.data import BadRows, DataSource, decode_mask, decode_row
from detris_peft.data.errors import BadRowError, MissingImageError, NoSentencesError, collect_notices
from detris_peft.data.readers import find_reader

FIXTURE = Path(__file__).parents[3] / "fixtures/labels/labelme"
HEIGHT, WIDTH = 60, 80
SQUARE = [[10, 10], [30, 10], [30, 40], [10, 40]]


def shape(**changes):
    return {"label": "rose", "shape_type": "polygon", "points": SQUARE, "description": "the rose"} | changes


def document(*shapes, **changes):
    return {"version": "5.5.0", "flags": {}, "shapes": list(shapes), "imagePath": "a.png", "imageData": None} | changes


def write(file, content, image="a.png"):
    file.parent.mkdir(parents=True, exist_ok=True)
    if image:
        Image.new("RGB", (WIDTH, HEIGHT)).save(file.parent / image)
    file.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return DataSource(str(file.parent))


def png(pixels):
    buffer = io.BytesIO()
    Image.fromarray(np.asarray(pixels, np.uint8)).save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode()


def masks(source):
    return [decode_row(row)[1] for row in source.load("train")]


def objects(source, split="train", bad_rows=None):
    return find_reader(source).load_objects(source, split, bad_rows)


def polygons(*outlines):
    flat = [np.array(outline, float).flatten().tolist() for outline in outlines]
    return decode_mask(
        {"size": [HEIGHT, WIDTH], "counts": coco.merge(coco.frPyObjects(flat, HEIGHT, WIDTH))["counts"]}
    )


def iou(first, second):
    return np.logical_and(first, second).sum() / np.logical_or(first, second).sum()


def test_shapes_with_descriptions_are_rows():
    source = DataSource(str(FIXTURE))
    assert find_reader(source).title == "LabelMe"
    assert source.splits() == ["train"]
    with collect_notices() as notices:
        rows = source.load("train")
    assert rows["sentences"] == [
        ["the left rose", "the red flower"],
        ["the two leaves"],
        ["the round thing"],
        ["the bud; it is small"],
        ["the pot"],
    ]
    assert rows["file_name"] == ["0001.jpg"] * 4 + ["0002.jpg"]
    assert len(set(rows["ref_id"])) == 5
    assert dict(notices) == {
        "shape_without_area": f"{FIXTURE}: shapes without an area are not used: 1 linestrip, 1 point",
        "label_ignored": f"{FIXTURE}: 1 shapes with the label __ignore__ are not used",
        "no_sentence": "1 of 6 objects have no sentence and are not used",
    }
    assert objects(source)["sentences"] == [["rose"], ["leaf"], ["sun"], ["rose"], ["pot"], ["pot"]]


def test_masks_are_those_of_labelme():
    rose, leaves, sun, bud, pot, tilted = (decode_row(row)[1] for row in objects(DataSource(str(FIXTURE))))
    content = json.loads((FIXTURE / "0001.json").read_text())["shapes"]
    assert np.array_equal(rose, polygons(content[0]["points"]))
    assert np.array_equal(leaves, polygons(content[1]["points"], content[2]["points"]))
    drawn = Image.new("1", (WIDTH, HEIGHT))
    ImageDraw.Draw(drawn).ellipse((50, 32, 70, 52), fill=1)
    assert iou(sun, np.array(drawn)) > 0.88  # see the module
    assert abs(sun.sum() - np.pi * 10**2) < 3
    crop = np.array(Image.open(io.BytesIO(base64.b64decode(content[4]["mask"]))))
    assert np.array_equal(bud[45:51, 3:11], crop)
    assert bud.sum() == crop.sum() == 21
    assert np.array_equal(np.argwhere(pot)[[0, -1]], [[15, 20], [39, 49]])
    assert pot.sum() == 30 * 25
    assert np.array_equal(tilted, polygons([[60, 10], [70, 20], [65, 25], [55, 15]]))


def test_subfolders_are_splits_and_json_may_be_elsewhere(tmp_path):
    for split, folder in (("train", "train"), ("valid", "valid/json"), ("test", "json/Test")):
        write(tmp_path / folder / f"{split}.json", document(shape(), imagePath=f"..\\images\\{split}.png"), None)
    (tmp_path / "images/deep").mkdir(parents=True)
    for split in ("train", "valid", "test"):
        Image.new("RGB", (WIDTH, HEIGHT)).save(tmp_path / "images/deep" / f"{split}.png")
    source = DataSource(str(tmp_path))
    assert source.splits() == ["train", "val", "test"]
    rows = [source.load(split)[0] for split in source.splits()]
    assert [row["file_name"] for row in rows] == [f"images/deep/{name}.png" for name in ("train", "valid", "test")]
    with pytest.raises(ValueError, match="no split 'dev', expected one of test, train, val"):
        source.load("dev")
    source = DataSource(str(tmp_path / "train"), image_folder=str(tmp_path / "images"))
    assert source.load("train")["file_name"] == ["deep/train.png"]


def test_without_splits_the_message_names_the_command_that_makes_them(tmp_path):
    source = write(tmp_path / "a.json", document(shape()))
    with pytest.raises(ValueError, match=r"no split 'val', expected one of train; `detris data split` makes splits"):
        source.load("val")


def test_a_single_file_is_a_dataset():
    assert len(DataSource(str(FIXTURE / "0001.json")).load("train")) == 4


def test_the_image_in_the_file_is_used_if_there_is_no_other(tmp_path):
    image = np.full((HEIGHT, WIDTH, 3), 7)
    source = write(tmp_path / "a.json", document(shape(), imageData=png(image)), None)
    assert np.array_equal(decode_row(source.load("train")[0])[0], image)
    Image.new("RGB", (WIDTH, HEIGHT)).save(tmp_path / "a.png")
    assert not np.any(decode_row(source.load("train")[0])[0])


def test_files_of_old_versions_and_of_other_tools_are_read(tmp_path):
    old = {"flags": {}, "shapes": [{"label": "rose", "points": SQUARE, "line_color": None}], "imagePath": "a.png"}
    assert objects(write(tmp_path / "old" / "a.json", old)).num_rows == 1
    rectangle = shape(shape_type="rectangle", attributes={"caption": "it"}, description=None, difficult=False)
    source = write(tmp_path / "new" / "a.json", document(rectangle, shape(shape_type="rotation"), version="2.5.4"))
    assert source.load("train")["sentences"] == [["it"], ["the rose"]]
    assert np.array_equal(*masks(source))


def test_group_ids_unite_shapes_of_one_label(tmp_path):
    parts = [
        shape(group_id=0),
        shape(group_id=0, label="pot"),
        shape(group_id=0, points=[[50, 10], [60, 10], [60, 20], [50, 20]], description="another"),
    ]
    source = write(tmp_path / "a.json", document(*parts))
    assert source.load("train")["sentences"] == [["the rose", "another"], ["the rose"]]
    assert [int(mask.sum()) for mask in masks(source)] == [700, 600]


def test_other_formats_are_not_detected(tmp_path):
    labelme = find_reader(DataSource(str(FIXTURE)))
    reasonseg = {"text": ["it"], "is_sentence": False, "shapes": [{"label": "target", "points": SQUARE}]}
    for name, content in (
        ("reasonseg", reasonseg),
        ("reasonseg2", {**reasonseg, "imagePath": "a.png"}),
        ("coco", {"images": [], "annotations": []}),
        ("list", [document()]),
        ("damaged", "{"),
    ):
        source = write(tmp_path / name / "a.json", content)
        assert not labelme.detect(source)
        assert not labelme.detect(DataSource(str(tmp_path / name / "a.json")))
    for other in ("cvat", "via", "reasonseg/train", "phrasecut"):
        assert not labelme.detect(DataSource(str(FIXTURE.parent / other)))


def test_without_descriptions_the_message_names_what_to_do(tmp_path):
    source = write(tmp_path / "a.json", document(shape(description=""), shape(description=" ")))
    with pytest.raises(NoSentencesError, match=r"got 2 objects .* the description of each shape .* data describe"):
        source.load("train")


BAD_SHAPES = {
    "no object": ("rose", "row_malformed", "expected an object with 'label' and 'points', got 'rose'"),
    "label": (shape(label=["rose"]), "row_malformed", "expected text as 'label', got"),
    "group": (shape(group_id=1.5), "row_malformed", "expected an integer or null as 'group_id', got 1.5"),
    "group flag": (shape(group_id=True), "row_malformed", "expected an integer or null as 'group_id', got True"),
    "type": (shape(shape_type="star"), "row_malformed", "expected one of rectangle, .* as 'shape_type', got 'star'"),
    "type list": (shape(shape_type=["polygon"]), "row_malformed", "as 'shape_type', got"),
    "no points": (shape(points=None), "mask_malformed", "'points': expected a list of points"),
    "empty": (shape(points=[]), "mask_empty", "'points'"),
    "triples": (shape(points=[[1, 2, 3]] * 3), "mask_malformed", r"'points': expected a list of points \[x, y\]"),
    "text": (shape(points=[["1", "2"]] * 3), "mask_malformed", "'points': expected points of finite numbers"),
    "NaN": (shape(points=[[float("nan"), 1]] * 3), "mask_malformed", "'points': expected points of finite numbers"),
    "huge": (shape(points=[[10**400, 1]] * 3), "mask_malformed", "'points': expected points of finite numbers"),
    "far": (shape(points=[[1e9, 1], [1, 1], [5, 5]]), "mask_malformed", "within 800 pixels"),
    "two": (shape(points=SQUARE[:2]), "mask_empty", "expected a polygon of three points or more"),
    "outside": (shape(points=[[90, 1], [95, 1], [95, 9]]), "mask_out_of_frame", "entirely outside the image"),
    "circle": (shape(shape_type="circle"), "mask_malformed", "expected 2 points of a circle, got 4"),
    "rectangle": (shape(shape_type="rectangle", points=SQUARE[:3]), "mask_malformed", "2 or 4 points of a rectangle"),
    "no mask": (
        shape(shape_type="mask", points=[[1, 1], [2, 2]]),
        "mask_malformed",
        "expected base64 text, got nothing",
    ),
    "base64": (shape(shape_type="mask", points=[[1, 1], [2, 2]], mask="?"), "mask_malformed", "expected base64 text"),
    "no image": (
        shape(shape_type="mask", points=[[1, 1], [2, 2]], mask="QUJD"),
        "mask_malformed",
        "cannot be decoded",
    ),
    "mask size": (
        shape(shape_type="mask", points=[[1, 1], [3, 2]], mask=png([[1, 1], [1, 1]])),
        "mask_malformed",
        "expected a gray image of the box's 3x2 pixels, got one of 2x2 in mode L",
    ),
    "mask empty": (
        shape(shape_type="mask", points=[[1, 1], [2, 2]], mask=png([[0, 0], [0, 0]])),
        "mask_empty",
        "'mask': expected foreground",
    ),
    "number": (shape(description=5), "row_malformed", "'description': expected a sentence or a list .*, got 5"),
    "flag": (shape(description="true"), "row_malformed", "'description': expected a sentence or a list .*, got True"),
}


@pytest.mark.parametrize(("content", "kind", "message"), BAD_SHAPES.values(), ids=BAD_SHAPES)
def test_a_bad_shape_is_named_with_file_and_number_or_skipped(tmp_path, content, kind, message):
    source = write(tmp_path / "a.json", document(shape(), content))
    with pytest.raises(BadRowError, match=message) as caught:
        source.load("train")
    assert caught.value.kind == kind
    assert str(caught.value).startswith(f"{tmp_path / 'a.json'}: shapes[1]: ")
    bad_rows = BadRows()
    assert len(source.load("train", bad_rows)) == 1
    assert bad_rows.counts() == {kind: 1}


BAD_FILES = {
    "no JSON": ('{"version": "1", "shapes": [', "expected JSON, got"),
    "encoding": (json.dumps(document(shape()), ensure_ascii=False).replace("rose", "Röschen"), "in UTF-8"),
    "no shapes": ({"version": "1", "flags": {}, "shapes": {}}, "a list of 'shapes', got the fields version, flags"),
    "other file": ([1], "expected LabelMe JSON with a list of 'shapes', got"),
    "path": (document(shape(), imagePath=5), "'imagePath': expected a file name, got 5"),
    "null byte": (document(shape(), imagePath="a\0.png"), "cannot be read"),
    "surrogate": (document(shape(), imagePath="\ud800.png"), "cannot be read"),
    "long": (document(shape(), imagePath="a" * 5000), "cannot be read"),
    "url": (document(shape(), imagePath="https://x.org/d.png"), "is missing"),
    "size": (
        document(shape(), imageHeight=WIDTH, imageWidth=HEIGHT),
        "expected an image of 60x80 pixels .*, got .*EXIF",
    ),
    "size text": (document(shape(), imageHeight="x", imageWidth=3), "expected integers as 'imageHeight' and"),
    "half a size": (document(shape(), imageHeight=60), "expected integers as 'imageHeight' and"),
    "data": (document(shape(), imagePath="c.png", imageData="?"), "'imageData': expected base64 text"),
    "data image": (document(shape(), imagePath="c.png", imageData="QUJD"), "cannot be decoded"),
}


@pytest.mark.parametrize(("content", "message"), BAD_FILES.values(), ids=BAD_FILES)
def test_a_bad_file_is_named_or_skipped(tmp_path, content, message):
    source = write(tmp_path / "b.json", document(shape(), imagePath="b.png"), "b.png")
    write(tmp_path / "a.json", content)
    if isinstance(content, str):
        (tmp_path / "a.json").write_bytes(content.encode("cp1252"))
    with pytest.raises(BadRowError, match=message) as caught:
        source.load("train")
    assert str(tmp_path / "a.json") in str(caught.value)
    assert "\n" not in str(caught.value)
    bad_rows = BadRows()
    assert len(source.load("train", bad_rows)) == 1
    assert len(bad_rows) == 1


def test_a_missing_image_is_an_error(tmp_path):
    source = write(tmp_path / "a.json", document(shape()), None)
    with pytest.raises(MissingImageError, match=r"shapes\[0\]: .*a\.png is missing; add the image"):
        source.load("train")


def test_two_files_of_one_image_are_an_error(tmp_path):
    write(tmp_path / "a.json", document(shape()))
    shutil.copy(tmp_path / "a.json", tmp_path / "copy.json")
    with pytest.raises(
        BadRowError, match=r"copy\.json: expected the labels of a\.png in one place, got some in .*a\.json as well"
    ):
        DataSource(str(tmp_path)).load("train")


def test_a_folder_without_labelme_files_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"expected LabelMe's \.json files, .*found none"):
        DataSource(str(tmp_path), format="labelme").load("train")
