"""The reader for YOLO segmentation labels.

The layout follows https://docs.ultralytics.com/datasets/segment/, and Roboflow's export. Outlines are compared
with supervision's reader.
"""

import numpy as np
import pytest
import supervision
import yaml
from PIL import Image
from pycocotools import mask as coco

from detris_peft.data import BadRows, DataSource, decode_mask
from detris_peft.data.errors import BadRowError, NoSentencesError
from detris_peft.data.readers import find_reader
from tests.helpers.reference import FIXTURES

HEIGHT, WIDTH = 60, 80
ROSE, TULIP = "0 0.125 0.1 0.625 0.1 0.625 0.6 0.125 0.6", "1 0.5 0.5 0.95 0.55 0.7 0.9"
CONFIG = {"path": ".", "train": "images/train", "val": "images/val", "names": {0: "rose", 1: "tulip"}}


def write(folder, config=CONFIG, name="data.yaml", **files):
    """Write a data.yaml, and a photo and its labels for each of the files, named train_images_a for example."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(config if isinstance(config, str) else yaml.safe_dump(config))
    for path, lines in (files or {"images/train/a": [ROSE, "", TULIP], "images/val/b": [TULIP]}).items():
        image, labels = folder / f"{path}.png", folder / f"{path.replace('images', 'labels')}.txt"
        for file in (image, labels):
            file.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (WIDTH, HEIGHT)).save(image)
        labels.write_text("\n".join(lines) + "\n")
    return DataSource(str(folder))


def objects(source, split="train"):
    return find_reader(source).load_objects(source, split, None)


def names(source, split="train"):
    return objects(source, split)["file_name"][:]


def test_the_labels_of_two_photos_are_read():
    """Masks are compared with pycocotools, and with supervision, which rounds and includes the outline."""
    folder = FIXTURES / "labels/yolo"
    source = DataSource(str(folder))
    assert source.splits() == ["train", "val"]
    assert objects(source)["sentences"] == [["rose"], ["pot"]]
    outlines = {"train": [[4, 6, 24, 6, 24, 24, 4, 24], [28, 15, 38, 15, 38, 27, 28, 27]], "val": [[1, 3, 7, 3, 4, 6]]}
    for split, polygons in outlines.items():
        reference = supervision.DetectionDataset.from_yolo(
            str(folder / "images" / split), str(folder / "labels" / split), str(folder / "data.yaml"), force_masks=True
        )
        _, _, detections = reference[0]
        for row, polygon, other in zip(objects(source, split), polygons, detections.mask, strict=True):
            ours = decode_mask(row["mask"])
            assert row["mask"]["counts"].encode() == coco.frPyObjects([polygon], *ours.shape)[0]["counts"]
            assert (ours <= other).all()
            assert other.sum() - ours.sum() <= sum(map(abs, np.diff(polygon + polygon[:2])))


def test_each_line_is_an_object(tmp_path):
    source = write(tmp_path / "flowers")
    assert find_reader(source).title == "YOLO"
    assert source.splits() == ["train", "val"]
    rows = objects(source)
    assert rows["sentences"] == [["rose"], ["tulip"]]
    assert (rows["category_id"], rows["file_name"]) == ([0, 1], ["images/train/a.png"] * 2)
    np.testing.assert_array_equal(decode_mask(rows[0]["mask"])[6:36, 10:50], 1)
    assert decode_mask(rows[0]["mask"]).sum() == 30 * 40
    assert len(set(rows["ref_id"])) == 2
    assert objects(DataSource(str(tmp_path / "flowers/data.yaml"))).to_dict() == {
        **rows.to_dict(),
        "dataset": ["data"] * 2,
    }


def test_outlines_are_those_of_supervision(tmp_path):
    """Supervision rounds the vertices, and includes the pixels on the outline."""
    source = write(tmp_path)
    reference = supervision.DetectionDataset.from_yolo(
        str(tmp_path / "images/train"), str(tmp_path / "labels/train"), str(tmp_path / "data.yaml"), force_masks=True
    )
    _, _, detections = reference[0]
    rows = objects(source)
    assert reference.classes == ["rose", "tulip"]
    assert list(detections.class_id) == rows["category_id"]
    for mask, row in zip(detections.mask, rows, strict=True):
        ours = decode_mask(row["mask"])
        assert np.logical_and(ours, mask).sum() / np.logical_or(ours, mask).sum() > 0.9
        perimeter = 2 * (np.ptp(np.nonzero(mask), axis=1).sum() + 2)
        assert np.logical_xor(ours, mask).sum() <= perimeter


def test_parts_of_an_object_may_be_joined_by_a_seam(tmp_path):
    """As `merge_multi_segment` of Ultralytics writes the segments of COCO."""
    joined = "0 0.1 0.1 0.3 0.1 0.3 0.3 0.7 0.7 0.9 0.7 0.9 0.9 0.7 0.9 0.7 0.7 0.3 0.3 0.1 0.3"
    mask = decode_mask(objects(write(tmp_path, **{"images/train/a": [joined]}))[0]["mask"])
    expected = np.zeros((HEIGHT, WIDTH), np.uint8)
    expected[6:18, 8:24] = expected[42:54, 56:72] = 1
    assert np.logical_xor(mask, expected).sum() <= 2


LAYOUTS = {
    "Roboflow": ({"train": "../train/images", "val": "../valid/images", "test": "../test/images"}, "train/images/a"),
    "path of another machine": ({"path": "/home/user/flowers", "train": "images/train"}, "images/train/a"),
    "path from the folder above": ({"path": "flowers", "train": "images/train"}, "images/train/a"),
    "list": ({"train": ["images/one", "images/train"]}, "images/train/a"),
    "text file": ({"train": "train.txt"}, "images/train/a"),
    "text file of CVAT": ({"train": "cvat.txt"}, "images/train/a"),
    "subfolder": ({"train": "images"}, "images/deep/er/a"),
}


@pytest.mark.parametrize(("config", "image"), LAYOUTS.values(), ids=LAYOUTS)
def test_paths_are_those_of_ultralytics(tmp_path, config, image):
    source = write(tmp_path / "flowers", {**config, "names": ["rose"], "nc": 1}, **{image: [ROSE]})
    (tmp_path / "flowers/images/one").mkdir(parents=True, exist_ok=True)
    (tmp_path / "flowers/train.txt").write_text("./images/train/a.png\nnotes\n")
    (tmp_path / "flowers/cvat.txt").write_text("data/images/train/a.png\n")
    assert names(source) == [f"{image}.png"]
    assert "test" not in source.splits()


def test_classes_txt_of_label_studio_replaces_the_yaml(tmp_path):
    source = write(tmp_path, "rose\ntulip\n", "classes.txt", **{"images/a": [TULIP]})
    assert source.splits() == ["train"]
    assert objects(source)["sentences"] == [["tulip"]]


def test_images_without_labels_have_no_objects(tmp_path):
    source = write(tmp_path)
    Image.new("RGB", (WIDTH, HEIGHT)).save(tmp_path / "images/train/z.png")
    (tmp_path / "labels/train/a.txt").write_text("")
    assert names(source) == []


def test_there_is_no_field_for_sentences(tmp_path):
    with pytest.raises(NoSentencesError, match=r"got 2 objects .* no field for text; make .*detris data describe"):
        write(tmp_path).load("train")


LINES = {
    "box": ("0 0.5 0.5 0.2 0.2", "expected an outline of at least three points, got a box, which is not a mask"),
    "box with a confidence": ("0 0.5 0.5 0.2 0.2 0.9", "got a box"),
    "class only": ("0", "at least three points, got 1 numbers"),
    "odd": (f"{ROSE} 0.5", "the pairs x y of at least three points, got 10 numbers"),
    "text": ("rose 0.1 0.1 0.5 0.1 0.5 0.5", "expected numbers, got 'rose 0.1"),
    "NaN": ("0 nan 0.1 0.5 0.1 0.5 0.5", "expected coordinates from 0 to 1"),
    "pixels": ("0 10 6 50 6 50 36", "expected coordinates from 0 to 1, got 50.0; divide x by the width"),
    "negative": ("0 -0.5 0.1 0.5 0.1 0.5 0.5", "expected coordinates from 0 to 1, got -0.5"),
    "class is a fraction": ("0.5 0.1 0.1 0.5 0.1 0.5 0.5", "expected the number of a class, got '0.5'"),
    "class is negative": ("-1 0.1 0.1 0.5 0.1 0.5 0.5", "expected the number of a class, got '-1'"),
    "class is unknown": ("7 0.1 0.1 0.5 0.1 0.5 0.5", "expected a class from 0 to 1 as in data.yaml, got 7"),
    "no area": ("0 0.5 0.5 0.5 0.5 0.5 0.5", "the mask is empty"),
}


@pytest.mark.parametrize(("line", "message"), LINES.values(), ids=LINES)
def test_an_invalid_line_is_named_or_skipped(tmp_path, line, message):
    source = write(tmp_path, **{"images/train/a": [TULIP, line]})
    reader = find_reader(source)
    with pytest.raises(BadRowError, match=rf"labels/train/a\.txt: line 2: .*{message}"):
        reader.load_objects(source, "train", None)
    bad_rows = BadRows()
    assert reader.load_objects(source, "train", bad_rows)["sentences"] == [["tulip"]]
    assert len(bad_rows) == 1


def test_labels_in_another_encoding_are_an_error_of_the_image(tmp_path):
    source = write(tmp_path)
    (tmp_path / "labels/train/a.txt").write_bytes(ROSE.encode("utf-16"))
    bad_rows = BadRows()
    assert len(find_reader(source).load_objects(source, "train", bad_rows)) == 0
    assert "labels/train/a.txt: expected text in UTF-8" in str(bad_rows[0])


CONFIGS = {
    "missing folder": ({**CONFIG, "train": "photos"}, FileNotFoundError, "'train': .* found no photos; fix the path"),
    "number": ({**CONFIG, "train": 5}, ValueError, "'train': expected a path or a list of paths, got 5"),
    "no split": ("names: [a]\ntrain:\n", ValueError, "expected 'train' or 'val' with the path of images"),
    "names": ({**CONFIG, "names": "rose"}, ValueError, "'names': expected a list of names"),
    "name of a bool": ("names: [no]\ntrain: images", ValueError, "'names': .* put words like no in quotes"),
    "path": ({**CONFIG, "path": [1]}, ValueError, "'path': expected the path of a folder"),
    "invalid YAML": ("names: [\ntrain: images", ValueError, "expected YAML"),
}


@pytest.mark.parametrize(("config", "error", "message"), CONFIGS.values(), ids=CONFIGS)
def test_an_invalid_data_yaml_is_named(tmp_path, config, error, message):
    source = write(tmp_path, config)
    with pytest.raises(error, match=rf"data\.yaml: .*{message}"):
        source.load("train")


def test_classes_need_names(tmp_path):
    source = write(tmp_path, "names:\ntrain: images/train\n")
    with pytest.raises(BadRowError, match=r"line 1: expected a class with a name as in data\.yaml, got 0; .*'names'"):
        objects(source)


def test_several_yaml_files_are_named(tmp_path):
    write(tmp_path, name="other.yaml")
    source = write(tmp_path)
    with pytest.raises(ValueError, match=r"expected one file like data\.yaml, got data\.yaml, other\.yaml"):
        source.splits()
    assert DataSource(str(tmp_path / "other.yaml")).splits() == ["train", "val"]


def test_a_listed_image_that_does_not_exist_is_named(tmp_path):
    source = write(tmp_path, {"train": "train.txt", "names": ["rose"]}, **{"images/a": [ROSE]})
    (tmp_path / "train.txt").write_text("images/a.png\nimages/gone.png\n")
    bad_rows = BadRows()
    assert len(find_reader(source).load_objects(source, "train", bad_rows)) == 1
    assert [str(error) for error in bad_rows] == [
        f"{tmp_path / 'data.yaml'}: 'train': {tmp_path / 'images/gone.png'} is missing; add the image"
    ]
