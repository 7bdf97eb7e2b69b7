"""Expressions made from instance masks: each is true of one object, and the output is a normal dataset."""

from __future__ import annotations

import json

import datasets
import numpy as np
import pytest
from PIL import Image, ImageDraw
from pycocotools import mask as coco

from detris_peft.data.errors import BadRows
from detris_peft.data.masks import decode_mask
from detris_peft.data.schema import decode_row
from detris_peft.data.sources import DataSource
from detris_peft.data.tools.check import check_data
from detris_peft.data.tools.describe import describe_dataset
from tests.data.tools.coco_files import (
    COLORS,
    HEIGHT,
    LEFT,
    NAMES,
    RIGHT,
    WIDTH,
    annotation,
    describe,
    lines,
    painted,
    square,
    write,
)
from tests.data.tools.expression_checker import read_items, violation


def random_scene(rng, image_id):
    """Return an image of painted objects, with crowds, tiny objects, RLEs and several polygons per object."""
    pixels = rng.integers(110, 145, (HEIGHT, WIDTH, 1)).repeat(3, axis=2).astype(np.uint8)
    canvas = Image.fromarray(pixels)
    draw = ImageDraw.Draw(canvas)
    classes = rng.choice(NAMES, size=2)
    annotations = []
    in_a_row = rng.random() < 0.4
    for number in range(rng.integers(1, 6)):
        width, height = rng.integers(2 if rng.random() < 0.15 else 12, 45, size=2).tolist()
        if in_a_row:
            left, top, width, height = 2 + 30 * number + int(rng.integers(6)), int(rng.integers(40, 46)), 22, 30
        else:
            left, top = int(rng.integers(0, WIDTH - width)), int(rng.integers(0, HEIGHT - height))
        box = (left, top, left + width, top + height)
        draw.rectangle((left, top, left + width - 1, top + height - 1), COLORS[str(rng.choice([*COLORS]))])
        item = annotation(10 * image_id + number, str(rng.choice(classes)), box, image_id)
        form = rng.random()
        if form < 0.1:
            mask = np.zeros((HEIGHT, WIDTH), np.uint8, order="F")
            mask[top : top + height, left : left + width] = 1
            rle = coco.encode(mask)
            item["segmentation"] = {**rle, "counts": rle["counts"].decode()}
            item["iscrowd"] = int(form < 0.05)
        elif form < 0.2:  # two polygons of one object
            middle = left + width / 2
            item["segmentation"] = [square(left, top, middle, top + height), square(middle, top, box[2], box[3])]
        annotations.append(item)
    return np.asarray(canvas), annotations


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    """The output for many random scenes; the annotations and pixels of each image."""
    rng = np.random.default_rng(0)
    drawn = {image_id: random_scene(rng, image_id) for image_id in range(1, 81)}
    file = write(
        tmp_path_factory.mktemp("scenes"),
        [item for _, annotations in drawn.values() for item in annotations],
        {image_id: pixels for image_id, (pixels, _) in drawn.items()},
    )
    return file, describe(file, min_area=0.006), drawn


def checked(file, drawn):
    """Yield (sentence, annotation id, the image's items, its pixels) of the output."""
    names = dict(enumerate(NAMES, start=1))
    items = {key: read_items(annotations, names, HEIGHT, WIDTH) for key, (_, annotations) in drawn.items()}
    for line in lines(file.parent / "out"):
        image_id = line["ann_id"] // 10
        for text in line["sentences"]:
            yield text, line["ann_id"], items[image_id], drawn[image_id][0]


def test_every_sentence_is_true_of_exactly_one_object(scenes):
    file, counts, drawn = scenes
    problems = [violation(*example) for example in checked(file, drawn)]
    assert [problem for problem in problems if problem] == []
    assert len(problems) == counts["train"].sentences
    kinds = counts["train"].kinds
    assert min(kinds[kind] for kind in ("class", "color", "size", "position", "order", "relation")) >= 10


def test_the_checker_finds_sentences_of_other_objects(scenes):
    file, _, drawn = scenes
    found = []
    for text, target, items, pixels in checked(file, drawn):
        found += [violation(text, item.ann_id, items, pixels) for item in items if item.ann_id != target]
    assert len(found) > 150
    assert all(found)


def test_small_objects_and_crowds_get_no_sentences(scenes):
    file, counts, drawn = scenes
    areas = {item["id"]: item for _, annotations in drawn.values() for item in annotations}
    described = {line["ann_id"] for line in lines(file.parent / "out")}
    assert not any(areas[ann_id].get("iscrowd") for ann_id in described)
    rows = DataSource(str(file.parent / "out")).load("train")
    assert min(decode_mask(mask).sum() for mask in rows["mask"]) >= 0.006 * HEIGHT * WIDTH
    split = counts["train"]
    assert split.small > 0
    assert split.crowds > 0
    assert split.ambiguous > 0
    assert split.objects + split.small + split.crowds + split.ambiguous == len(areas)


def test_the_output_is_a_normal_dataset(scenes):
    file, counts, drawn = scenes
    source = DataSource(str(file.parent / "out"))
    rows = source.load("train")
    assert len(rows) == counts["train"].objects
    annotations = {item["id"]: item for _, annotations in drawn.values() for item in annotations}
    names = dict(enumerate(NAMES, start=1))
    for row in rows.select(range(20)):
        image, mask = decode_row(row)
        (item,) = read_items([annotations[row["ann_id"]]], names, HEIGHT, WIDTH)
        assert np.array_equal(mask, item.mask)
        assert np.array_equal(np.asarray(image), drawn[row["ann_id"] // 10][0])
        assert row["category_id"] == annotations[row["ann_id"]]["category_id"]
    (report,) = check_data(source, ["train"], num_workers=1, progress=False)
    assert (report.errors, report.notices) == ([], [])
    again = datasets.load_dataset(str(file.parent / "out"), split="train")
    assert sorted(again["ref_id"]) == sorted(rows["ref_id"])


def test_the_same_seed_gives_the_same_bytes_in_any_order_of_annotations(tmp_path, scenes):
    drawn = scenes[2]
    some = {key: drawn[key] for key in range(1, 9)}
    annotations = [item for _, items in some.values() for item in items]
    pixels = {key: pixels for key, (pixels, _) in some.items()}
    results = []
    for name, items, seed in (("a", annotations, 0), ("b", annotations, 0), ("c", annotations[::-1], 0)):
        one = write(tmp_path / name, items, pixels)
        describe(one, seed=seed)
        results.append({path.name: path.read_bytes() for path in sorted(one.parent.glob("out/train/**/*.*"))})
    assert results[0] == results[1]
    metadata = [sorted(result.pop("metadata.jsonl").splitlines()) for result in results]
    assert metadata[0] == metadata[2]
    assert results[0] == results[2]
    describe(one, seed=1)
    assert sorted((one.parent / "out/train/metadata.jsonl").read_bytes().splitlines()) != metadata[0]


def test_splits_images_and_licenses(tmp_path):
    licenses = [{"id": 4, "name": "Attribution | [License]", "url": "http://license"}]
    pixels = {number: painted((LEFT, (200, 30 * number, 30))) for number in range(1, 5)}
    items = [annotation(1, "dog", LEFT), annotation(2, "dog", LEFT, 2), annotation(3, "dog", (0, 0, 2, 2), 3)]
    file = write(tmp_path, items, pixels, licenses=licenses)
    content = json.loads(file.read_text())
    content["images"][0] |= {"license": 4, "flickr_url": "http://photo"}
    content["images"][1]["split"] = content["images"][3]["split"] = "val"
    file.write_text(json.dumps(content))
    counts = describe(file)
    assert {split: count.images for split, count in counts.items()} == {"train": 1, "val": 1}
    assert (counts["train"].empty_images, counts["train"].undescribed_images) == (0, 1)
    assert (counts["val"].empty_images, counts["val"].undescribed_images) == (1, 0)
    (line,) = lines(tmp_path / "out")
    assert (line["license"], line["url"]) == ("Attribution | [License] (http://license)", "http://photo")
    assert (tmp_path / "out/train/images/1.png").read_bytes() == (tmp_path / "1.png").read_bytes()
    assert lines(tmp_path / "out", "val")[0]["license"] is None
    card = (tmp_path / "out/README.md").read_text()
    assert "rule-made" in card
    assert "`instances.json`" in card
    assert str(tmp_path) not in card  # folders of the user are private
    assert "seed 0" in card
    assert "| Attribution / (License) (http://license) | 1 |" in card
    assert "| not named | 1 |" in card
    assert f"| train | 1 | 1 | {counts['train'].sentences} |" in card


def test_images_of_equal_names_in_different_folders(tmp_path):
    file = write(tmp_path, [annotation(1, "dog", LEFT), annotation(2, "dog", LEFT, 2)], {1: painted(), 2: painted()})
    content = json.loads(file.read_text())
    for image, folder in zip(content["images"], ("a", "b"), strict=True):
        (tmp_path / folder).mkdir()
        (tmp_path / image["file_name"]).rename(tmp_path / folder / "x.png")
        image["file_name"] = f"{folder}/x.png"
    file.write_text(json.dumps(content))
    describe(file)
    assert [line["file_name"] for line in lines(tmp_path / "out")] == ["images/a/x.png", "images/b/x.png"]


def test_an_image_of_two_names_is_one_image(tmp_path):
    file = write(tmp_path, [annotation(1, "dog", LEFT), annotation(2, "dog", LEFT, 2)], {1: painted(), 2: painted()})
    (tmp_path / "a").mkdir()
    file.write_text(file.read_text().replace("2.png", "a/../1.png"))
    with pytest.raises(ValueError, match=r"got none \(0 too small, 2 ambiguous, 0 crowds"):
        describe(file)


def test_an_image_outside_the_folder_is_copied_only_on_request(tmp_path):
    file = write(tmp_path / "set", [annotation(1, "dog", LEFT)])
    (tmp_path / "set/1.png").rename(tmp_path / "secret.png")
    file.write_text(file.read_text().replace("1.png", "../secret.png"))
    with pytest.raises(ValueError, match=r"secret\.png; copy it there, or pass --allow_outside"):
        describe(file)
    assert not (tmp_path / "set/out").exists()
    describe(file, allow_outside=True)
    assert lines(tmp_path / "set/out")[0]["file_name"] == "images/secret.png"


def test_an_invalid_annotation_skips_its_image(tmp_path):
    """The other objects of the image would be described without knowing all of its objects."""
    items = [
        annotation(1, "dog", LEFT),
        annotation(2, "dog", RIGHT, segmentation=[[1, 2, 3]]),
        annotation(3, "bus", LEFT, 2),
    ]
    file = write(tmp_path, items, {1: painted(), 2: painted()})
    with pytest.raises(ValueError, match="annotation 2: 'segmentation'"):
        describe(file)
    bad_rows = BadRows()
    counts = describe(file, bad_rows=bad_rows)
    assert counts["train"].objects == 1
    assert bad_rows.counts() == {"mask_malformed": 1}


def test_only_its_own_files_are_replaced(tmp_path):
    file = write(tmp_path, [annotation(1, "dog", LEFT)])
    describe(file)
    with pytest.raises(ValueError, match="add --overwrite"):
        describe_dataset(DataSource(str(file)), tmp_path / "out", progress=False)
    describe(file)
    (tmp_path / "out/train/images/mine.png").write_bytes(b"mine")
    with pytest.raises(ValueError, match=r"got train/images/mine\.png; move it"):
        describe(file)
    assert (tmp_path / "out/train/images/mine.png").read_bytes() == b"mine"


def test_nothing_is_left_of_a_failed_run(tmp_path):
    file = write(tmp_path, [annotation(1, "dog", (0, 0, 3, 3))])
    with pytest.raises(ValueError, match="expected at least one object that a sentence can refer to"):
        describe(file)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["1.png", "instances.json"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"min_area": "1%"}, "min_area: expected a number, got str"),
        ({"max_expressions": 1.5}, "max_expressions: expected an integer, got float"),
        ({"seed": None}, "seed: expected an integer, got NoneType"),
    ],
)
def test_options_of_wrong_types(tmp_path, options, message):
    with pytest.raises(TypeError, match=message):
        describe(write(tmp_path, []), **options)
