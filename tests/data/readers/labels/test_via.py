"""The reader for VGG Image Annotator (VIA).

The fixture follows `pack_via_metadata` and `via_region_shape_to_coco_annotation` of VIA 2 (https://gitlab.com/vgg/via),
whose points on an ellipse are computed here for comparison.
"""

import csv
import json
import math
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from detris_peft.data import BadRows, DataSource, decode_mask, decode_row
from detris_peft.data.errors import BadRowError, MissingImageError, NoSentencesError, collect_notices
from detris_peft.data.fields import read_mask
from detris_peft.data.readers import find_reader

FIXTURE = Path(__file__).parents[3] / "fixtures/labels/via"
PROJECT = FIXTURE / "via_project_garden.json"
HEIGHT, WIDTH = 60, 80
POLYGON = {"name": "polygon", "all_points_x": [10, 30, 30, 10], "all_points_y": [10, 10, 40, 40]}


def region(shape=POLYGON, **attributes):
    return {"shape_attributes": shape, "region_attributes": {"description": "the rose"} | attributes}


def images(*regions, name="a.png", **more):
    return {f"{name}99": {"filename": name, "size": 99, "regions": list(regions), "file_attributes": {}} | more}


def project(content, default_filepath="", **attributes):
    return {
        "_via_settings": {"core": {"default_filepath": default_filepath}},
        "_via_img_metadata": content,
        "_via_attributes": {"region": attributes, "file": {}},
    }


def dropdown(**options):
    return {"type": "dropdown", "description": "", "options": options, "default_options": {}}


def write(folder, content, name="via_export_json.json", files=("a.png",)):
    for file in (name, *files):
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
    for file in files:
        Image.new("RGB", (WIDTH, HEIGHT)).save(folder / file)
    (folder / name).write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return DataSource(str(folder))


def write_csv(folder, content, header="filename", encoding="utf-8"):
    """Write annotations as VIA's `pack_via_metadata` does."""
    folder.mkdir(parents=True, exist_ok=True)
    columns = "file_size,file_attributes,region_count,region_id,region_shape_attributes,region_attributes"
    lines = [f"{header},{columns}"]
    for one in content.values():
        prefix = f'{one["filename"]},{one["size"]},"{{}}"'
        for number, item in enumerate(one["regions"]):
            texts = [json.dumps(item[key]).replace('"', '""') for key in ("shape_attributes", "region_attributes")]
            lines.append(f'{prefix},{len(one["regions"])},{number},"{texts[0]}","{texts[1]}"')
        if not one["regions"]:
            lines.append(f'{prefix},0,0,"{{}}","{{}}"')
    (folder / "via_export_csv.csv").write_bytes("\n".join(lines).encode(encoding))
    return DataSource(str(folder))


def masks(rows):
    return [decode_row(row)[1] for row in rows]


def objects(source, split="train"):
    return find_reader(source).load_objects(source, split, None)


def labels(source):
    return [sentences[0] for sentences in objects(source)["sentences"]]


def polygon(points):
    return decode_mask(read_mask(points, HEIGHT, WIDTH, "expected"))


def test_regions_with_descriptions_are_rows():
    source = DataSource(str(FIXTURE))
    assert find_reader(source).title == "VGG Image Annotator"
    assert source.splits() == ["train"]
    with collect_notices() as notices:
        rows = source.load("train")
    assert rows["sentences"] == [["the left rose", "the red flower"], ["the oval rose"], ["the pot"]]
    assert rows["file_name"] == ["0001.jpg", "0001.jpg", "0002.jpg"]
    assert len(set(rows["ref_id"])) == 3
    assert notices == [
        ("shape_without_area", f"{FIXTURE}: shapes without an area are not used: 1 point, 1 polyline"),
        ("no_sentence", "1 of 4 objects have no sentence and are not used"),
    ]
    # The names of the options in the project, or their ids.
    assert labels(source) == ["Rose", "sun", "Rose", "flower pot"]


def test_masks_are_those_of_via():
    rose, sun, oval, pot = masks(objects(DataSource(str(FIXTURE))))
    assert np.array_equal(rose, polygon([10, 10, 40, 12, 38, 40, 12, 37]))
    assert np.array_equal(pot, polygon([20, 15, 50, 15, 50, 40, 20, 40]))
    for mask, (x, y, a, b, rotation) in ((sun, (60, 42, 10.5, 10.5, 0)), (oval, (40, 48, 12, 6, math.pi / 4))):
        points = []
        for degrees in range(0, 360, 5):
            along, across = a * math.cos(math.radians(degrees)), b * math.sin(math.radians(degrees))
            points.append(x + along * math.cos(rotation) - across * math.sin(rotation))
            points.append(y + along * math.sin(rotation) + across * math.cos(rotation))
        expected = polygon(points)
        assert np.logical_and(mask, expected).sum() / np.logical_or(mask, expected).sum() > 0.97


def test_all_exports_have_the_same_rows(tmp_path):
    content = json.loads(PROJECT.read_text())["_via_img_metadata"]
    expected = DataSource(str(FIXTURE)).load("train").remove_columns(["image", "dataset"]).to_dict()
    files = ("0001.jpg", "0002.jpg")
    first = {
        key: {"fileref": "", "base64_img_data": "", **one, "regions": dict(enumerate(one["regions"]))}
        for key, one in content.items()
    }
    for name, one in (("two", content), ("one", first)):
        source = write(tmp_path / name, one, files=files)
        assert source.load("train").remove_columns(["image", "dataset"]).to_dict() == expected
    for header in ("filename", "#filename", "\ufefffilename"):
        write(tmp_path / header, {}, name="other.txt", files=files)
        source = write_csv(tmp_path / header, content | images(name="c.png"), header)
        assert source.load("train").remove_columns(["image", "dataset"]).to_dict() == expected
    # Without the project, the class is the id of the option.
    assert labels(DataSource(str(tmp_path / "two"))) == ["rose", "sun", "rose", "pot"]


def test_images_are_found_where_via_reads_them(tmp_path):
    source = write(tmp_path / "a", project(images(region()), "./photos/"), files=("photos/a.png", "other/a.png"))
    assert source.load("train")["file_name"] == ["photos/a.png"]
    source = write(tmp_path / "b", images(region(), name="https://x.org/deep/a.png"), files=("photos/a.png",))
    assert source.load("train")["file_name"] == ["photos/a.png"]
    source = DataSource(str(tmp_path / "b/via_export_json.json"), image_folder=str(tmp_path / "b/photos"))
    assert source.load("train")["file_name"] == ["a.png"]


def test_folders_are_splits(tmp_path):
    for split in ("train", "val"):
        write(tmp_path / split, images(region(), name=f"{split}.png"), "via_region_data.json", (f"{split}.png",))
    source = DataSource(str(tmp_path))
    assert source.splits() == ["train", "val"]
    assert source.load("val")["file_name"] == ["val/val.png"]


def test_two_exports_of_the_same_images_are_an_error(tmp_path):
    write(tmp_path, images(region()), "first.json")
    source = write(tmp_path, images(region()), "second.json")
    with pytest.raises(BadRowError, match=r"second\.json: .* a\.png in one place, got some in .*first\.json"):
        source.load("train")


@pytest.mark.parametrize(
    ("attributes", "values", "expected"),
    [
        ({}, {"Class": "a", "name": "b"}, "a"),
        ({"name": {"type": "text"}, "species": dropdown(a="", b="")}, {"name": "x", "species": "b"}, "b"),
        ({"kind": {"type": "radio", "options": {"a": "A b"}}}, {"kind": "a", "more": "x"}, "A b"),
        ({}, {"name": "a", "color": "b"}, "a"),
        ({}, {"type": "a", "name": "b"}, "a"),
        ({}, {"color": "a"}, "a"),
        ({"kind": dropdown(a=None)}, {"kind": "a"}, "a"),
        ({"kind": {"type": "checkbox", "options": {"a": "", "b": ""}}}, {"kind": {"a": False, "b": True}}, "b"),
        ({"kind": {"type": "checkbox", "options": {"a": "", "b": ""}}}, {"kind": {}}, "object"),
        ({}, {"class": ""}, "object"),
        ({}, {}, "object"),
    ],
)
def test_the_class_is_the_attribute_that_the_docs_name(tmp_path, attributes, values, expected):
    source = write(tmp_path, project(images(region(**values)), **attributes))
    assert labels(source) == [expected]


@pytest.mark.parametrize("attributes", [{}, {"size": dropdown(a=""), "color": dropdown(b="")}])
def test_an_unclear_attribute_for_the_class_is_an_error_where_classes_are_used(tmp_path, attributes):
    source = write(tmp_path, project(images(region(size="a", color="b")), **attributes))
    assert len(source.load("train")) == 1
    message = r"region 0: expected the class in one region attribute, got size, color; name one of them 'class'"
    with pytest.raises(BadRowError, match=message):
        objects(source)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("tulip", "'class': expected one of the options rose, sun, got 'tulip'; add it to them"),
        (5, "'class': expected text as the class, got 5"),
        ({"rose": True, "sun": True}, "'class': expected one class, got rose, sun; uncheck the others"),
    ],
)
def test_a_bad_class_is_an_error_where_classes_are_used(tmp_path, value, message):
    source = write(tmp_path, project(images(region(**{"class": value})), **{"class": dropdown(rose="", sun="")}))
    assert len(source.load("train")) == 1
    with pytest.raises(BadRowError, match=message):
        objects(source)


def test_other_formats_are_not_detected(tmp_path):
    via = find_reader(DataSource(str(FIXTURE)))
    for number, content in enumerate(
        (
            {"images": [{"filename": "a"}], "annotations": []},
            {"a": {"filename": "a"}},
            {"a": {"filename": "a", "boxes": []}},
            {"version": "1", "regions": [], "filename": "a"},
            {},
            [images(region())],
            "{",
        )
    ):
        source = write(tmp_path / str(number), content)
        assert not via.detect(source)
        assert not via.detect(DataSource(str(tmp_path / str(number) / "via_export_json.json")))
    (tmp_path / "a.csv").write_text("filename,caption\na.png,it\n")
    assert not via.detect(DataSource(str(tmp_path / "a.csv")))
    for other in ("labelme", "cvat", "reasonseg/train", "phrasecut"):
        assert not via.detect(DataSource(str(FIXTURE.parent / other)))


def test_without_sentences_the_message_names_what_to_do(tmp_path):
    source = write(tmp_path, images(region(description="")))
    with pytest.raises(NoSentencesError, match=r"got 1 objects .* a text attribute .* data describe"):
        source.load("train")


def circle(**changes):
    return {"name": "circle", "cx": 20, "cy": 20, "r": 5} | changes


BAD_REGIONS = {
    "no object": ("rose", "row_malformed", "expected objects as 'shape_attributes' and 'region_attributes'"),
    "attributes": (region() | {"region_attributes": "x"}, "row_malformed", "'region_attributes', got"),
    "shape": (
        region({"name": "star"}),
        "row_malformed",
        "expected one of polygon, .* as 'name' of the shape, got 'star'",
    ),
    "shape list": (region({"name": ["polygon"]}), "row_malformed", "as 'name' of the shape, got"),
    "no points": (region({"name": "polygon"}), "mask_malformed", "as 'all_points_x' and 'all_points_y', got nothing"),
    "lengths": (region(POLYGON | {"all_points_x": [1, 2]}), "mask_malformed", "lists of the same length"),
    "text": (region(POLYGON | {"all_points_x": ["1"] * 4}), "mask_malformed", "lists of the same length"),
    "NaN": (region(POLYGON | {"all_points_x": [math.nan] * 4}), "mask_malformed", "lists of the same length"),
    "far": (region(POLYGON | {"all_points_x": [1e9, 1, 2, 3]}), "mask_malformed", "within 800 pixels"),
    "two": (region({"name": "polygon", "all_points_x": [1, 2], "all_points_y": [1, 2]}), "mask_empty", "three points"),
    "circle": (region(circle(r=None)), "mask_malformed", "expected a number as 'r', got nothing"),
    "flag": (region(circle(r=True)), "mask_malformed", "expected a number as 'r', got True"),
    "huge": (region(circle(r=1e300)), "mask_malformed", "within 800 pixels"),
    "no radius": (region(circle(r=0)), "mask_empty", "the mask is empty"),
    "theta": (region(circle(name="ellipse", rx=3, ry=4, theta="x")), "mask_malformed", "a number as 'theta', got 'x'"),
    "rect": (region({"name": "rect", "x": 1, "y": 1, "width": 5}), "mask_malformed", "a number as 'height'"),
    "outside": (region(circle(cx=200)), "mask_out_of_frame", "entirely outside the image"),
    "number": (region(description=5), "row_malformed", "'description': expected a sentence .*, got 5"),
    "checkbox": (region(description={"a": True}), "row_malformed", "'description': expected sentences of text"),
    "select": (region(description="true"), "row_malformed", "'description': expected a sentence .*, got True"),
}


@pytest.mark.parametrize(("content", "kind", "message"), BAD_REGIONS.values(), ids=BAD_REGIONS)
def test_a_bad_region_is_named_with_image_and_number_or_skipped(tmp_path, content, kind, message):
    source = write(tmp_path, images(region(), content))
    with pytest.raises(BadRowError, match=message) as caught:
        source.load("train")
    assert caught.value.kind == kind
    assert str(caught.value).startswith(f"{tmp_path}/via_export_json.json: image 'a.png99': region 1: ")
    bad_rows = BadRows()
    assert len(source.load("train", bad_rows)) == 1
    assert bad_rows.counts() == {kind: 1}


BAD_IMAGES = {
    "no object": ({"b": 5}, "'filename': expected a file name, got nothing"),
    "name": ({"b": {"filename": 5, "regions": []}}, "'filename': expected a file name, got 5"),
    "two lines": ({"b": {"filename": "b\nc", "regions": []}}, "'filename': expected a file name, got"),
    "regions": ({"b": {"filename": "b.png", "regions": 5}}, "expected an object with 'filename' and 'regions'"),
    "null byte": ({"b": {"filename": "b\0.png", "regions": [region()]}}, "cannot be read"),
    "long": ({"b": {"filename": "b" * 5000, "regions": [region()]}}, "cannot be read"),
    "missing": ({"b": {"filename": "b.png", "regions": [region()]}}, r"region 0: .*b\.png is missing; add the image"),
    "same name": ({"b": {"filename": "a.png", "regions": [region()]}}, r"the labels of a\.png in one place, got"),
}


@pytest.mark.parametrize(("content", "message"), BAD_IMAGES.values(), ids=BAD_IMAGES)
def test_a_bad_image_is_named_or_skipped(tmp_path, content, message):
    source = write(tmp_path, project(images(region()) | content))
    with pytest.raises(BadRowError, match=message) as caught:
        source.load("train")
    assert str(caught.value).startswith(f"{tmp_path}/via_export_json.json: image 'b'")
    bad_rows = BadRows()
    assert len(source.load("train", bad_rows)) == 1
    assert len(bad_rows) == 1


def test_a_project_whose_parts_have_other_types_is_read(tmp_path):
    content = {"_via_img_metadata": images(region(kind="a")), "_via_attributes": [], "_via_settings": {"core": 5}}
    assert labels(write(tmp_path, content)) == ["a"]
    content["_via_attributes"] = {"region": {"class": 5, "kind": {"type": "dropdown", "options": []}}}
    assert labels(write(tmp_path, content)) == ["object"]
    content["_via_img_metadata"] = [5]
    with pytest.raises(ValueError, match=r"expected the images of VIA as an object, got \[5\]; export them again"):
        write(tmp_path, content).load("train")


def test_bad_csv_is_named_with_its_line(tmp_path):
    Image.new("RGB", (WIDTH, HEIGHT)).save(tmp_path / "a.png")
    source = write_csv(tmp_path, images(region(), region()))
    file = tmp_path / "via_export_csv.csv"
    text = file.read_text()
    for bad, message in (
        (text.replace('""description""', '""description', 1), "line 2: 'region_attributes': expected JSON, got"),
        (text.replace("a.png,99", "a.png,b,99", 1), "line 2: expected as many fields as the header has"),
    ):
        file.write_text(bad)
        bad_rows = BadRows()
        assert len(source.load("train", bad_rows)) == 1
        assert message in str(bad_rows[0])
        assert str(bad_rows[0]).startswith(str(file))
    file.write_text(text + "\nb.png")
    with pytest.raises(BadRowError, match="line 4: expected as many fields as the header has"):
        source.load("train")
    file.write_text(text + '\nb.png,1,{},1,0,"' + "x" * (csv.field_size_limit() + 1) + '",{}')
    with pytest.raises(
        ValueError, match=r"expected CSV, got an error: field larger .*; export the annotations as JSON"
    ):
        source.load("train")
    write_csv(tmp_path, images(region(description="Röschen"), name="ä.png"), encoding="cp1252")
    with pytest.raises(ValueError, match="expected CSV in UTF-8, got another encoding; save it as UTF-8"):
        source.load("train")
    file.write_text("a,b\n1,2")
    with pytest.raises(ValueError, match=r"expected the columns filename, region_shape_attributes, .*, got a, b"):
        DataSource(str(file), format="via").load("train")


def test_a_missing_image_of_csv_is_named(tmp_path):
    with pytest.raises(MissingImageError, match=r"image 'a\.png99': region 0: .*a\.png is missing"):
        write_csv(tmp_path, images(region())).load("train")


def test_a_folder_without_files_of_via_is_named(tmp_path):
    with pytest.raises(
        FileNotFoundError, match="expected a project or annotations of VGG Image Annotator, found none"
    ):
        DataSource(str(tmp_path), format="via").load("train")
