"""The reader for Label Studio's JSON.

The export follows https://labelstud.io/guide/task_format and the result tables of https://labelstud.io/tags.
"""

import base64
import io
import json

import cv2
import numpy as np
import pytest
from PIL import Image

from detris_peft.data import BadRows, DataSource, decode_row
from detris_peft.data.errors import BadRowError, NoSentencesError, collect_notices
from detris_peft.data.readers import find_reader
from tests.data.readers.labels.test_label_studio_brush import recorded, small
from tests.helpers.reference import FIXTURES

HEIGHT, WIDTH = 60, 80
SIZE = {"original_width": WIDTH, "original_height": HEIGHT, "image_rotation": 0}


def region(key, kind, label="rose", **value):
    labels = {f"{kind}labels": [label]} if label else {}
    return {"id": key, "type": f"{kind}labels", "from_name": "label", "to_name": "image", **SIZE} | {
        "value": {**value, **labels}
    }


def text(key, *sentences, name="caption", **more):
    return {"id": key, "type": "textarea", "from_name": name, "value": {"text": list(sentences)}, **more}


def task(*results, number=1, image="/data/upload/1/1a2b3c4d-a.png", **more):
    return {"id": number, "data": {"image": image}, "annotations": [{"id": 5, "result": list(results)}], **more}


POLYGON = region("p1", "polygon", points=[[10, 10], [50, 10], [50, 60], [10, 60]])


def write(folder, *tasks, name="project-1.json", images=("a.png", "b.png")):
    folder.mkdir(parents=True, exist_ok=True)
    for image in images:
        Image.new("RGB", (WIDTH, HEIGHT)).save(folder / image)
    (folder / name).write_text(json.dumps(list(tasks)), encoding="utf-8")
    return DataSource(str(folder))


def masks(source):
    return [decode_row(row)[1] for row in source.load("train")]


def iou(first, second):
    return np.logical_and(first, second).sum() / np.logical_or(first, second).sum()


def test_the_export_of_two_photos_is_read():
    source = DataSource(str(FIXTURES / "labels/label_studio"))
    rows = source.load("train")
    assert rows["sentences"] == [["the rose on the left", "the largest flower"], ["the pot"]]
    assert rows["file_name"] == ["images/garden.png", "images/0a1b2c3d-pots.png"]
    rose = np.zeros((30, 40), np.uint8)
    rose[6:24, 4:24] = 1
    for row, expected in zip(rows, (rose, small()), strict=True):
        np.testing.assert_array_equal(decode_row(row)[1], expected)


def test_regions_with_texts_are_rows(tmp_path):
    source = write(
        tmp_path / "flowers",
        task(
            POLYGON,
            text("p1", "the left rose", "a red flower", points=POLYGON["value"]["points"]),
            region("r1", "rectangle", x=50, y=50, width=25, height=50, rotation=0),
        ),
        task(region("r1", "rectangle", "tulip", x=0, y=0, width=50, height=50), text("r1", "it"), number=2)
        | {"data": {"pdf": "x", "photo": "s3://bucket/deep/b.png"}},
    )
    assert find_reader(source).title == "Label Studio"
    assert source.splits() == ["train"]
    with collect_notices() as notices:
        rows = source.load("train")
    assert rows["sentences"] == [["the left rose", "a red flower"], ["it"]]
    assert rows["file_name"] == ["a.png", "b.png"]
    assert set(rows["dataset"]) == {"flowers"}
    assert len(set(rows["ref_id"])) == 2
    assert [kind for kind, _ in notices] == ["no_sentence"]
    np.testing.assert_array_equal(decode_row(rows[0])[1][6:36, 8:40], 1)
    assert [int(mask.sum()) for mask in masks(source)] == [30 * 32, 30 * 40]
    reader = find_reader(source)
    labels = [item.label for image in reader.images(source, "train") for item in image.objects]
    assert labels == ["rose", "rose", "tulip"]
    assert len(reader.load_objects(source, "train", None)) == 3


def test_a_rectangle_is_rotated_around_its_corner(tmp_path):
    """The expected corners are those of `convert_annotation_to_yolo_obb` of label_studio_sdk 2.1.2."""
    value = {"x": 50, "y": 20, "width": 30, "height": 25, "rotation": 30}
    source = write(tmp_path, task(region("r", "rectangle", **value), text("r", "it")))
    corners = np.array(
        [(40, 12), (60.784609690826535, 24), (53.284609690826535, 36.99038105676658), (32.5, 24.990381056766577)]
    )
    y, x = np.mgrid[:HEIGHT, :WIDTH] + 0.5
    edges = zip(corners, np.roll(corners, -1, axis=0), strict=True)
    expected = np.all([(bx - ax) * (y - ay) >= (by - ay) * (x - ax) for (ax, ay), (bx, by) in edges], axis=0)
    assert iou(masks(source)[0], expected) > 0.9


def test_an_ellipse_is_rotated_around_its_center(tmp_path):
    value = {"x": 50, "y": 50, "radiusX": 25, "radiusY": 10, "rotation": 90}
    source = write(tmp_path, task(region("e", "ellipse", **value), text("e", "it")))
    expected = cv2.ellipse(np.zeros((HEIGHT, WIDTH), np.uint8), (40, 30), (20, 6), 90, 0, 360, 1, -1)
    (mask,) = masks(source)
    assert iou(mask, expected) > 0.85
    assert abs(int(mask.sum()) - np.pi * 20 * 6) < 12


def test_brush_and_bitmask_are_read(tmp_path):
    Image.new("RGB", (8, 6)).save(tmp_path / "s.png")
    rgba = np.zeros((6, 8, 4), np.uint8)
    rgba[..., 3] = 255 * small()  # the editor paints black on transparent
    png = io.BytesIO()
    Image.fromarray(rgba).save(png, "PNG")
    url = "data:image/png;base64," + base64.b64encode(png.getvalue()).decode()
    results = [
        region("b", "brush", format="rle", rle=recorded("small")),
        region("m", "bitmask", imageDataURL=url),
        text("b", "one"),
        text("m", "two"),
    ]
    for result in results:
        result |= {"original_width": 8, "original_height": 6}
    for mask in masks(write(tmp_path, task(*results, image="s.png"))):
        np.testing.assert_array_equal(mask, small())


def test_shape_and_labels_may_be_two_results(tmp_path):
    """<Rectangle> with <Labels> instead of <RectangleLabels>."""
    value = {"x": 0, "y": 0, "width": 50, "height": 50, "rotation": 0}
    shape = {"id": "r", "type": "rectangle", "value": value, **SIZE}
    labels = {"id": "r", "type": "labels", "value": {**value, "labels": ["rose"]}, **SIZE}
    source = write(tmp_path, task(shape, labels, text("r", "it")))
    (image,) = find_reader(source).images(source, "train")
    assert [item.label for item in image.objects] == ["rose"]
    assert len(source.load("train")) == 1


@pytest.mark.parametrize(
    ("results", "sentences"),
    [
        ([text("t", "it", parentID="p1")], ["it"]),
        ([text("p1", "no", name="notes"), text("p1", "it", name="Caption")], ["it"]),
        ([text("p1", "it", name="anything")], ["it"]),
        ([text("p1", " "), text("p1", "it", name="other")], ["it"]),
        ([{**POLYGON, "meta": {"text": ["it"]}}], ["it"]),
        ([{**POLYGON, "meta": {"text": ["meta"]}}, text("p1", "it")], ["it"]),
    ],
    ids=["parent", "named", "any name", "blank", "meta", "meta and text"],
)
def test_texts_of_a_region(tmp_path, results, sentences):
    assert write(tmp_path, task(POLYGON, *results)).load("train")["sentences"] == [sentences]


def test_the_first_annotation_that_was_not_cancelled_is_read(tmp_path):
    entry = task()
    entry["annotations"] = [
        {"was_cancelled": True, "result": [POLYGON, text("p1", "cancelled")]},
        {"was_cancelled": False, "result": [POLYGON, text("p1", "first")]},
        {"was_cancelled": False, "result": [POLYGON, text("p1", "second")]},
    ]
    entry["predictions"] = [{"result": [POLYGON, text("p1", "predicted")]}]
    source = write(tmp_path, entry)
    with collect_notices() as notices:
        assert source.load("train")["sentences"] == [["first"]]
    assert [kind for kind, _ in notices] == ["several_annotations"]


def test_regions_without_an_area_and_texts_of_the_image_are_noticed(tmp_path):
    results = [
        region("k", "keypoint", x=1, y=2),
        text("free", "a bunch of flowers"),
        {"id": "c", "type": "choices", "value": {"choices": ["sunny"]}},
        POLYGON | {"image_rotation": 90},
        text("p1", "it"),
    ]
    source = write(tmp_path, task(*results))
    with collect_notices() as notices:
        assert len(source.load("train")) == 1
    assert [kind for kind, _ in notices] == ["text_of_image", "image_rotation", "shape_without_area"]
    assert 'perRegion="true"' in notices[0][1]


IMAGES = {
    "upload": ("/data/upload/12/1a2b3c4d-a.png", "a.png"),
    "upload with its prefix": ("/data/upload/12/99999999-kept.png", "99999999-kept.png"),
    "local file": ("/data/local-files/?d=photos/garden/a%20b.png", "photos/garden/a b.png"),
    "local file of Windows": ("/data/local-files/?d=photos%5Cgarden%5Ca b.png", "photos/garden/a b.png"),
    "bucket": ("s3://bucket/photos/garden/a%20b.png", "photos/garden/a b.png"),
    "URL": ("https://host.org/x/a.png?token=1", "a.png"),
    "path": ("photos/garden/a b.png", "photos/garden/a b.png"),
}


@pytest.mark.parametrize(("name", "expected"), IMAGES.values(), ids=IMAGES)
def test_images_are_found_by_path_or_name(tmp_path, name, expected):
    source = write(tmp_path / "set", task(POLYGON, text("p1", "it"), image=name), images=())
    (tmp_path / "elsewhere/photos/garden").mkdir(parents=True)
    for _, image in IMAGES.values():
        Image.new("RGB", (WIDTH, HEIGHT)).save(tmp_path / "elsewhere" / image)
    source.image_folder = str(tmp_path / "elsewhere")
    assert source.load("train")["file_name"] == [expected]


def test_a_file_per_split(tmp_path):
    for split in ("train", "valid"):
        write(tmp_path, task(POLYGON, text("p1", split)), name=f"{split}.json")
    source = DataSource(str(tmp_path))
    assert source.splits() == ["train", "val"]
    assert source.load("val")["sentences"] == [["valid"]]
    assert DataSource(str(tmp_path / "valid.json")).load("train")["dataset"] == ["valid"]
    write(tmp_path, task(POLYGON), name="project-2.json")
    with pytest.raises(ValueError, match=r"expected one Label Studio export, got project-2\.json, train\.json, "):
        source.splits()


def test_without_texts_the_error_says_where_to_write_them(tmp_path):
    with pytest.raises(NoSentencesError, match=r'write sentences in a <TextArea perRegion="true"> .*data describe'):
        write(tmp_path, task(POLYGON)).load("train")


FILES = {
    "JSON-MIN": (
        [{"image": "a.png", "id": 1, "label": [], "annotator": 1, "annotation_id": 1, "lead_time": 2}],
        "got those of JSON-MIN, .*export the project as JSON",
    ),
    "predictions only": ([{"id": 1, "data": {"image": "a.png"}, "predictions": [{}]}], "predictions are not read"),
    "a number among the tasks": ([task(POLYGON), 3], "expected a list of Label Studio tasks"),
}


@pytest.mark.parametrize(("content", "message"), FILES.values(), ids=FILES)
def test_a_file_that_cannot_be_read_is_named(tmp_path, content, message):
    with pytest.raises(ValueError, match=rf"project-1\.json: .*{message}"):
        write(tmp_path, *content).load("train", BadRows())


def changed(**changes):
    return [POLYGON | changes, text("p1", "it")]


def points(*values):
    return changed(value={"points": list(values)})


ENTRIES = {
    "annotations": (task() | {"annotations": [5]}, "expected 'annotations' as a list of objects, got"),
    "result": (task() | {"annotations": [{"result": "x"}]}, "expected 'result' as a list of objects"),
    "no image": (task(*changed(), image="x"), "expected 'data' with the name or URL of an image"),
    "no data": (task(*changed()) | {"data": 3}, "expected 'data' with the name or URL of an image"),
    "missing image": (task(*changed(), image="https://[/c.png"), r"c\.png is missing"),
    "value": (task(*changed(value=None)), "region 'p1': expected an object as 'value', got nothing"),
    "points": (task(*changed(value={"points": 5})), r"'points': expected points \[\[x, y\], ...\], got 5"),
    "point": (task(*points([1, 2], [3])), r"'points': expected points"),
    "two points": (task(*points([1, 2], [3, 4])), "three points or more"),
    "NaN": (task(*points([1, 2], [float("nan"), 4], [4, 4])), "expected finite numbers"),
    "text as number": (task(*points([1, "2"], [3, 4], [4, 4])), "expected finite numbers"),
    "huge": (task(*points([1, 2], [1e9, 4], [4, 4])), "within 800 pixels"),
    "outside": (task(*points([110, 2], [120, 4], [120, 40])), "entirely outside the image"),
    "size": (task(*changed(original_width=60, original_height=80)), "60x80 pixels as in .*EXIF"),
    "size as text": (task(*changed(original_width="x")), "expected 'original_width' and 'original_height'"),
    "two shapes": (
        task(*changed(), *points([1, 2], [9, 9], [1, 9])[:1]),
        "expected one shape, got 2 with the same id",
    ),
    "sentence": (task(POLYGON, text("p1", 5)), "'caption': expected sentences of text, got 5"),
    "flag": (task(POLYGON, text("p1") | {"value": {"text": True}}), "'caption': expected a sentence"),
    "rectangle": (
        task(region("r", "rectangle", x=1, y=2, width=None, height=4), text("r", "it")),
        "region 'r': 'rectangle': expected finite numbers",
    ),
    "brush": (task(region("r", "brush", rle=[1, 2]), text("r", "it")), "region 'r': 'rle': expected run lengths"),
    "bitmask": (
        task(region("r", "bitmask", imageDataURL="data:image/png;base64,???"), text("r", "it")),
        "'imageDataURL': expected a PNG in base64",
    ),
    "bitmask URL": (
        task(region("r", "bitmask", imageDataURL="http://host/a.png"), text("r", "it")),
        "'imageDataURL': expected text that starts with 'data:image/png",
    ),
}


@pytest.mark.parametrize(("entry", "message"), ENTRIES.values(), ids=ENTRIES)
def test_an_invalid_entry_is_named_or_skipped(tmp_path, entry, message):
    good = task(POLYGON, text("p1", "good"), number=2, image="b.png")
    source = write(tmp_path, entry, good)
    with pytest.raises(BadRowError, match=rf"project-1\.json: task 1:? .*{message}") as caught:
        source.load("train")
    assert "\n" not in str(caught.value)
    bad_rows = BadRows()
    assert source.load("train", bad_rows)["sentences"] == [["good"]]
    assert len(bad_rows) == 1


def test_an_unknown_kind_of_label_is_an_error_of_the_object(tmp_path):
    source = write(tmp_path, task(region("p", "polygon", None, points=[[0, 0], [9, 0], [9, 9]], polygonlabels=[3])))
    (image,) = find_reader(source).images(source, "train")
    assert "'polygonlabels': expected a list of names" in str(image.objects[0].label)
