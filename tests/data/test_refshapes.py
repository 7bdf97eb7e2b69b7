"""RefShapes: sentences are unambiguous, testB is unseen, masks match the drawing, and the seed fixes every byte."""

import itertools
import json
import pickle
import re

import numpy as np
import pytest

from detris_peft.data import decode_mask, decode_row, encode_mask, load_refer
from detris_peft.data.refshapes.generate import SPLITS, main, write_refshapes
from detris_peft.data.refshapes.scenes import CLASSES, COLORS, HELD_OUT

SMALL = {"train": 60, "val": 20, "test": 20}


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("shapes")
    write_refshapes(root, seed=3, **SMALL)
    return root


@pytest.fixture(scope="module")
def instances(root):
    return json.loads((root / "refshapes" / "instances.json").read_text())


@pytest.fixture(scope="module")
def references(root):
    return pickle.loads((root / "refshapes" / "refs(unc).p").read_bytes())


@pytest.fixture(scope="module")
def scenes(instances):
    """Map each image id to the attributes of its shapes, keyed by annotation id."""
    scenes = {}
    for annotation in instances["annotations"]:
        scenes.setdefault(annotation["image_id"], {})[annotation["id"]] = annotation["attributes"]
    return scenes


def _fitting(words, scene):
    """Return the ids of the shapes that match all attribute words (colors, sizes and classes)."""
    return {
        ann_id
        for ann_id, shape in scene.items()
        if all(word in (shape["kind"], shape["color"], shape["size"]) for word in words.split())
    }


AXES = {
    "left": ("x", -1),
    "right": ("x", 1),
    "top": ("y", -1),
    "bottom": ("y", 1),
    "above": ("y", -1),
    "below": ("y", 1),
}


def _resolve(sentence, scene, half):
    """Return the ids of the shapes that the sentence refers to, derived from its words only.

    A place means "in that half" or "nearest to that border", a relation means any displacement in that direction.
    """
    sentence = sentence.removeprefix("the ")
    if match := re.fullmatch(r"(.+) (left of|right of|above|below) the (.+)", sentence):
        subject, relation, anchor = match.groups()
        (anchor_id,) = _fitting(anchor, scene)
        axis, sign = AXES[relation.split()[0]]
        return {i for i in _fitting(subject, scene) if sign * (scene[i][axis] - scene[anchor_id][axis]) > 0}
    match = re.fullmatch(r"(.+) (?:on|at) the (\w+)", sentence) or re.fullmatch(
        r"(left|right|top|bottom) (.+)", sentence
    )
    if match:
        subject, word = match.groups() if match[2] in AXES else reversed(match.groups())
        axis, sign = AXES[word]
        candidates = _fitting(subject, scene)
        if half:
            return {i for i in candidates if sign * (scene[i][axis] - 0.5) > 0}
        return {max(candidates, key=lambda i: sign * scene[i][axis])}
    return _fitting(sentence, scene)


def test_every_sentence_refers_to_its_target_only(references, scenes):
    for reference in references:
        for sentence in reference["sentences"]:
            for half in (True, False):
                resolved = _resolve(sentence["sent"], scenes[reference["image_id"]], half)
                assert resolved == {reference["ann_id"]}, sentence["sent"]


def test_every_target_has_a_distractor_of_its_class(references, scenes):
    for reference in references:
        scene = scenes[reference["image_id"]]
        assert len(_fitting(scene[reference["ann_id"]]["kind"], scene)) >= 2


def test_color_size_class_and_place_are_each_needed(references, scenes):
    """Without the words of one attribute, a substantial share of the sentences would be ambiguous."""
    words = {"color": set(COLORS), "size": {"small", "large"}, "kind": set(CLASSES)}
    sentences = [
        (s["sent"], scenes[r["image_id"]]) for r in references for s in r["sentences"] if r["split"] == "train"
    ]
    for name, dropped in words.items():
        needed = 0
        for sentence, scene in sentences:
            subject = re.split(r" (?:left of|right of|above|below) ", sentence)[0]
            kept = [word for word in subject.split() if word not in dropped]
            resolved = _resolve(" ".join(kept), scene, half=True) if kept != ["the"] and kept else scene
            needed += subject.split() != kept and len(resolved) > 1
        assert needed / len(sentences) > 0.08, name
    needed_place = sum(r["needs"] != "attributes" for r in references if r["split"] == "train")
    assert 0.3 < needed_place / (2 * SMALL["train"]) < 0.7


def test_test_a_needs_attributes_only(references):
    assert {r["needs"] for r in references if r["split"] == "testA"} == {"attributes"}


def test_test_b_combinations_do_not_occur_in_training(references, scenes):
    for reference in references:
        scene = scenes[reference["image_id"]]
        pairs = {(shape["color"], shape["kind"]) for shape in scene.values()}
        target = scene[reference["ann_id"]]
        if reference["split"] == "testB":
            assert (target["color"], target["kind"]) in HELD_OUT
            assert all(f"{target['color']} {target['kind']}" in s["sent"] for s in reference["sentences"])
        else:
            assert not pairs & HELD_OUT
            named = {pair for s in reference["sentences"] for pair in itertools.pairwise(s["tokens"])}
            assert not named & HELD_OUT
    trained = {
        (shape["color"], shape["kind"])
        for reference in references
        if reference["split"] == "train"
        for shape in scenes[reference["image_id"]].values()
    }
    assert {color for color, _ in trained} == set(COLORS)
    assert {kind for _, kind in trained} == set(CLASSES)


def test_each_image_is_in_one_split(references):
    splits = {}
    for reference in references:
        splits.setdefault(reference["image_id"], set()).add(reference["split"])
    assert all(len(found) == 1 for found in splits.values())


@pytest.mark.parametrize("split", SPLITS)
def test_refshapes_loads_as_a_refer_dataset(root, split):
    rows = load_refer(root, "refshapes", "unc", split)
    assert len(rows) == 2 * SMALL.get(split, SMALL["test"])
    assert len(set(rows["ref_id"])) == len(rows)
    assert all(rows["sentences"])


def _dilated(mask, steps):
    for _ in range(steps):
        mask = mask | np.roll(mask, 1, 0) | np.roll(mask, -1, 0) | np.roll(mask, 1, 1) | np.roll(mask, -1, 1)
    return mask


def test_masks_match_the_drawn_shapes(root, scenes):
    """The image has the target's color inside the mask, and not just outside it (JPEG blurs one pixel)."""
    rows = load_refer(root, "refshapes", "unc", "train")
    for row in rows.select(range(30)):
        image, mask = decode_row(row)
        paint = np.array(COLORS[scenes[row["image_id"]][row["ann_id"]]["color"]])
        distance = np.abs(np.asarray(image, dtype=float) - paint).max(axis=2)
        inside = mask == 1
        assert np.quantile(distance[inside], 0.95) < 45
        assert np.quantile(distance[_dilated(inside, 3) & ~_dilated(inside, 1)], 0.05) > 45


def test_annotations_hold_every_form_of_segmentation(instances):
    forms = {
        "polygon" if isinstance(segmentation, list) else type(segmentation["counts"]).__name__
        for segmentation in (annotation["segmentation"] for annotation in instances["annotations"])
    }
    assert forms == {"polygon", "list", "str"}
    assert all(annotation["area"] > 0 for annotation in instances["annotations"])


def test_shapes_do_not_overlap(instances):
    side = instances["images"][0]["height"]
    covered = {}
    for annotation in instances["annotations"]:
        mask = decode_mask(encode_mask(annotation["segmentation"], side, side))
        covered[annotation["image_id"]] = covered.get(annotation["image_id"], 0) + mask
    assert max(total.max() for total in covered.values()) == 1


def _files(root):
    return {str(file.relative_to(root)): file.read_bytes() for file in root.rglob("*") if file.is_file()}


def test_the_seed_fixes_every_byte(root, tmp_path):
    write_refshapes(tmp_path / "again", seed=3, **SMALL)
    assert _files(tmp_path / "again") == _files(root)
    write_refshapes(tmp_path / "other", seed=4, train=1, val=0, test=0)
    name = "images/train2014/refshapes_train_000000.jpg"
    assert _files(tmp_path / "other")[name] != _files(root)[name]


def test_an_image_does_not_depend_on_the_number_of_images(root, tmp_path):
    write_refshapes(tmp_path, seed=3, train=2, val=3, test=1)
    fewer, more = _files(tmp_path / "images"), _files(root / "images")
    assert len(fewer) == 7
    assert all(more[name] == content for name, content in fewer.items())


def test_only_overwrite_replaces_refshapes_and_other_images_are_kept(tmp_path):
    write_refshapes(tmp_path, train=3, val=0, test=0)
    other = tmp_path / "images" / "train2014" / "COCO_train2014_000000000009.jpg"
    other.write_bytes(b"not ours")
    before = _files(tmp_path)
    with pytest.raises(FileExistsError, match="--overwrite"):
        write_refshapes(tmp_path, train=1, val=0, test=0)
    assert _files(tmp_path) == before
    write_refshapes(tmp_path, train=1, val=0, test=0, overwrite=True)
    assert sorted(file.name for file in other.parent.iterdir()) == [other.name, "refshapes_train_000000.jpg"]
    assert other.read_bytes() == b"not ours"


def test_a_failure_leaves_nothing_behind(tmp_path, monkeypatch):
    def disk_full(*_arguments):
        raise OSError("No space left on device")

    monkeypatch.setattr("detris_peft.data.refshapes.generate._write_annotations", disk_full)
    with pytest.raises(OSError, match="No space"):
        write_refshapes(tmp_path, train=1, val=0, test=0)
    assert list(tmp_path.iterdir()) == []


def test_a_failed_replacement_keeps_the_old_dataset(tmp_path, monkeypatch):
    write_refshapes(tmp_path, train=1, val=0, test=0)
    before = _files(tmp_path)

    def disk_full(*_arguments):
        raise OSError("No space left on device")

    monkeypatch.setattr("detris_peft.data.refshapes.generate._write_annotations", disk_full)
    with pytest.raises(OSError, match="No space"):
        write_refshapes(tmp_path, seed=1, train=2, val=0, test=0, overwrite=True)
    assert _files(tmp_path) == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["images", "refshapes"]


@pytest.mark.parametrize(
    "wrong",
    [
        {"train": -1},
        {"image_size": 8},
        {"min_objects": 5, "max_objects": 4},
        {"references": 4},
        {"place": 0.8, "relation": 0.3},
    ],
    ids=str,
)
def test_arguments_out_of_range_raise(tmp_path, wrong):
    with pytest.raises(ValueError, match=r"^expected .*, got .*(train|image_size|max_objects|references|place)="):
        write_refshapes(tmp_path, **{"train": 1, "val": 0, "test": 0, **wrong})
    assert not (tmp_path / "refshapes").exists()


def test_references_that_no_scene_allows_raise(tmp_path, monkeypatch):
    monkeypatch.setattr("detris_peft.data.refshapes.generate.MAX_TRIES", 1)
    with pytest.raises(ValueError, match="request fewer references"):
        write_refshapes(tmp_path, train=20, val=0, test=0, references=3, place=0, relation=1)
    assert _files(tmp_path) == {}


def test_the_command_line_writes_and_reports_errors_in_one_line(tmp_path, capsys):
    arguments = [str(tmp_path), "--train", "2", "--val", "1", "--test", "1", "--image_size", "64"]
    main(arguments)
    assert "refshapes" in capsys.readouterr().out
    assert load_refer(tmp_path, "refshapes", "unc", "testB")[0]["image"].size == (64, 64)
    with pytest.raises(SystemExit, match=r"^error: .*got an existing RefShapes"):
        main(arguments)


def test_a_folder_with_other_files_is_not_replaced(tmp_path):
    write_refshapes(tmp_path, train=1, val=1, test=1)
    (tmp_path / "refshapes" / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match=r"expected a new folder, or RefShapes, got one with notes\.txt"):
        write_refshapes(tmp_path, train=1, val=1, test=1, overwrite=True)
    (tmp_path / "refshapes" / "notes.txt").unlink()
    (tmp_path / "refshapes" / ".detris_peft").unlink()  # as written by an earlier version
    write_refshapes(tmp_path, train=2, val=1, test=1, overwrite=True)
    assert len(load_refer(tmp_path, "refshapes", "unc", "train")) == 4
