"""Folders of COCO JSON files, laid out as the tools that export them lay them out.

The entries follow https://docs.cvat.ai/docs/dataset_management/formats/format-coco/ and Roboflow's and Label Studio's
exports as their documentation shows them.
"""

import json

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco

from detris_peft.data import BadRows, DataSource, check_data, decode_row
from detris_peft.data.errors import NoSentencesError, collect_notices
from detris_peft.data.readers import coco_file

SIZE = (12, 9)  # width, height
OUTLINES = {1: [2.0, 1.0, 8.0, 1.0, 8.0, 6.0, 2.0, 6.0], 2: [4.5, 2.5, 11.0, 3.0, 6.0, 8.0]}


def content(names, *, start=1, attributes=None, sentences=None, **fields):
    """Return COCO JSON with one object per image."""
    images = [
        {"id": start + i, "file_name": name, "width": SIZE[0], "height": SIZE[1]} for i, name in enumerate(names)
    ]
    objects = []
    for number, image in enumerate(images, start=1):
        item = {"id": number, "image_id": image["id"], "category_id": 1, "iscrowd": 0, "area": 30.0}
        item |= {"segmentation": [OUTLINES[1 + (number - 1) % 2]], "bbox": [2, 1, 6, 5]}
        item |= {"attributes": attributes} if attributes else {}
        item |= {"sentences": sentences} if sentences else {}
        objects.append(item)
    categories = [{"id": 0, "name": "things", "supercategory": "none"}, {"id": 1, "name": "dog", "supercategory": ""}]
    return {"info": {}, "licenses": [], "categories": categories, "images": images, "annotations": objects, **fields}


def write(file, value):
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(value), encoding="utf-8")


def image(file):
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", SIZE, (200, 30, 30)).save(file)


def source(folder, **options):
    return DataSource("set", data_root=str(folder), **options)


def test_cvat_with_a_text_attribute(tmp_path):
    names = ["a.png", "street/b.png"]
    write(
        tmp_path / "set" / "annotations" / "instances_default.json",
        content(names, attributes={"occluded": False, "Description": "the dog on the left\nthe brown dog"}),
    )
    for name in names:
        image(tmp_path / "set" / "images" / "default" / name)
    rows = source(tmp_path).load("train")
    assert source(tmp_path).splits() == ["train"]
    assert source(tmp_path).reader().name == "coco_folder"
    assert rows["sentences"] == [["the dog on the left", "the brown dog"]] * 2
    assert rows["file_name"] == names
    for row, outline in zip(rows, OUTLINES.values(), strict=True):
        expected = coco.decode(coco.merge(coco.frPyObjects([outline], SIZE[1], SIZE[0])))
        np.testing.assert_array_equal(decode_row(row)[1], expected)


def test_cvat_with_subsets(tmp_path):
    for subset in ("Train", "Validation"):
        write(tmp_path / "set" / "annotations" / f"instances_{subset}.json", content(["a.png"], sentences=[subset]))
        image(tmp_path / "set" / "images" / subset / "a.png")
    assert source(tmp_path).splits() == ["train", "val"]
    train, val = (source(tmp_path).load(split)[0] for split in ("train", "val"))
    assert (train["sentences"], train["split"], train["file_name"]) == (["Train"], "train", "images/Train/a.png")
    assert (val["sentences"], val["split"], val["dataset"]) == (["Validation"], "val", "set")
    assert train["image_id"] != val["image_id"]


def test_roboflow(tmp_path):
    for split in ("train", "valid", "test"):
        write(tmp_path / "set" / split / "_annotations.coco.json", content(["a_jpg.rf.1.png"], start=0))
        image(tmp_path / "set" / split / "a_jpg.rf.1.png")
    one = source(tmp_path)
    assert one.splits() == ["train", "val", "test"]
    assert one.reader().tool(one) == "Roboflow COCO JSON"
    with pytest.raises(NoSentencesError, match=r"got 1 without; .* `detris data describe --dataset set --output DIR`"):
        one.load("val")
    [found] = one.reader().images(one, "val")
    assert (found.name, found.split, found.objects[0].label) == ("valid/a_jpg.rf.1.png", "val", "dog")


def test_one_file_per_split_next_to_the_images_or_above_them(tmp_path):
    for split, folder in (("train", "."), ("val", "val")):
        write(tmp_path / "set" / f"{split}.json", content([f"{split}.png"], sentences=[split]))
        image(tmp_path / "set" / folder / f"{split}.png")
    one = source(tmp_path)
    assert one.splits() == ["train", "val"]
    assert [one.load(split)["file_name"] for split in one.splits()] == [["train.png"], ["val/val.png"]]
    assert [path.name for path in one.reader().annotation_files(one)] == ["train.json", "val.json"]


def test_label_studio_with_the_path_of_its_server(tmp_path):
    name = "../../label-studio/data/media/upload/1/1a2b3c4d-a.png"
    write(tmp_path / "set" / "result.json", content([name], sentences=["the dog"]))
    image(tmp_path / "set" / "images" / "1a2b3c4d-a.png")
    assert decode_row(source(tmp_path).load("train")[0])[1].sum() > 0


def test_a_folder_of_coco_itself_has_instances_and_captions(tmp_path):
    folder = tmp_path / "set"
    write(folder / "annotations" / "instances_val2017.json", content(["a.png"], sentences=["a dog"]))
    write(folder / "annotations" / "captions_val2017.json", content(["a.png"], sentences=["a caption"]))
    image(folder / "val2017" / "a.png")
    assert source(tmp_path).load("val")["sentences"] == [["a dog"]]


def test_a_file_without_a_split_may_have_a_split_field(tmp_path):
    value = content(["a.png", "b.png"], sentences=["a dog"])
    value["images"][1]["split"] = "val"
    write(tmp_path / "set" / "labels.json", value)
    for name in "ab":
        image(tmp_path / "set" / f"{name}.png")
    assert source(tmp_path).splits() == ["train", "val"]
    assert source(tmp_path).load("val")["file_name"] == ["b.png"]


def test_two_files_of_one_split_are_an_error(tmp_path):
    for name in ("train.json", "train_more.json"):
        write(tmp_path / "set" / name, content(["a.png"], sentences=["a dog"]))
    with pytest.raises(ValueError, match=r"got train\.json and train_more\.json of 'train'; move one of them, or"):
        source(tmp_path).splits()


def test_images_in_another_folder(tmp_path):
    write(tmp_path / "set" / "train.json", content(["a.png"], sentences=["a dog"]))
    image(tmp_path / "photos" / "a.png")
    assert len(source(tmp_path, image_folder="photos").load("train")) == 1
    with pytest.raises(FileNotFoundError, match=r"annotation 1: .*a\.png is missing; add the image"):
        source(tmp_path).load("train")


def test_objects_without_a_sentence_are_counted(tmp_path):
    value = content(["a.png", "b.png"], sentences=["a dog"])
    del value["annotations"][1]["sentences"]
    write(tmp_path / "set" / "train.json", value)
    image(tmp_path / "set" / "a.png")
    with collect_notices() as notices:
        assert len(source(tmp_path).load("train")) == 1
    assert ("no_sentence", "1 of 2 objects have no sentence and are not used") in notices


@pytest.mark.parametrize("value", [True, 7, {"a": "b"}, ["a", 7]])
def test_an_attribute_that_is_not_text_is_named(tmp_path, value):
    write(tmp_path / "set" / "train.json", content(["a.png"], attributes={"caption": value}))
    image(tmp_path / "set" / "a.png")
    with pytest.raises(ValueError, match=r"train\.json: annotation 1: 'caption': expected .*(write|add)"):
        source(tmp_path).load("train")


def test_a_refer_folder_is_not_taken_for_coco(tmp_path):
    write(tmp_path / "set" / "instances.json", content(["a.png"]))
    assert source(tmp_path).reader().name == "refer"


def test_a_name_that_is_too_long_is_an_error_of_its_row(tmp_path):
    write(tmp_path / "set" / "a.json", content(["x" * 5000 + ".png", "a.png"], sentences=["the dog"]))
    image(tmp_path / "set" / "a.png")
    bad_rows = BadRows()
    assert source(tmp_path).load("train", bad_rows)["file_name"] == ["a.png"]
    assert len(bad_rows) == 1


def test_json_in_utf_16_is_named(tmp_path):
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "a.json").write_text(json.dumps(content(["a.png"])), encoding="utf-16")
    with pytest.raises(ValueError, match=r"a\.json: expected a JSON file in UTF-8, got another encoding"):
        source(tmp_path).splits()


def test_check_reads_each_file_once(tmp_path, monkeypatch):
    value = content(["a.png", "b.png"])
    value["images"][1]["split"] = "val"
    write(tmp_path / "set" / "labels.json", value)
    for name in "ab":
        image(tmp_path / "set" / f"{name}.png")
    read, files = coco_file.read_json, []
    monkeypatch.setattr(coco_file, "read_json", lambda file: files.append(file.name) or read(file))
    reports = check_data(source(tmp_path), progress=False)
    assert [report.objects for report in reports] == [1, 1]
    assert files == ["labels.json"]
    source(tmp_path).splits()
    assert len(files) == 2  # read again after the check: the file may have changed
