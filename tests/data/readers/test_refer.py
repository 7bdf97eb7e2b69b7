"""The REFER reader: rows equal the files' content, and errors are one line."""

import json
import pickle
from pathlib import Path

import datasets
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from pycocotools import mask as coco

from detris_peft.data import FEATURES, decode_mask, decode_row, encode_mask, load_refer, open_image
from detris_peft.data.errors import BadRowError, BadRows, MissingImageError, collect_notices
from detris_peft.data.readers.refer import PUBLISHED_REFERENCES
from detris_peft.data.sources import DataSource
from detris_peft.text_cleaning import clean_text

HEIGHT, WIDTH = 30, 40
POLYGON = [5.0, 5.0, 20.0, 5.0, 20.0, 15.0, 5.0, 15.0]
SECOND = [25.0, 18.0, 35.5, 18.0, 30.0, 28.0]


def _disc():
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    return ((x - 20) ** 2 + (y - 14) ** 2 < 60).astype(np.uint8)


def _compressed():
    rle = coco.encode(np.asfortranarray(_disc()))
    return {"size": rle["size"], "counts": rle["counts"].decode()}


def _plain():
    """Return the disc as plain run lengths, computed without pycocotools."""
    column_major = _disc().flatten(order="F")
    changes = np.flatnonzero(np.diff(column_major)) + 1
    return {"size": [HEIGHT, WIDTH], "counts": np.diff([0, *changes, column_major.size]).tolist()}


SEGMENTATIONS = {
    "polygon": [POLYGON],
    "several parts": [POLYGON, SECOND],
    "a part without area": [POLYGON, [1.0, 1.0, 9.0, 9.0]],
    "compressed RLE": _compressed(),
    "plain RLE": _plain(),
    "list of RLEs": [_compressed(), _compressed()],
}


class ReferSet:
    """A small dataset in memory that tests modify before it is written."""

    def __init__(self, root: Path):
        self.root = root
        self.images, self.annotations, self.references = [], [], []
        for index, (name, segmentation) in enumerate(SEGMENTATIONS.items()):
            self.images.append({"id": 10 + index, "file_name": f"bild {name} é.jpg", "height": HEIGHT, "width": WIDTH})
            self.annotations.append(
                {
                    "id": 100 + index,
                    "image_id": 10 + index,
                    "category_id": 3,
                    "segmentation": segmentation,
                    "iscrowd": int("plain" in name),
                }
            )
            sentences = ["la pomme à gauche", "左边的苹果"][: 1 + index % 2]
            self.references.append(
                {
                    "ref_id": index,
                    "ann_id": 100 + index,
                    "image_id": 10 + index,
                    "category_id": 3,
                    "split": "val" if index == 5 else "train",
                    "file_name": f"bild_{100 + index}.jpg",
                    "sent_ids": [2 * index + number for number in range(len(sentences))],
                    "sentences": [
                        {"tokens": text.split(), "raw": text.upper(), "sent": text, "sent_id": 2 * index + number}
                        for number, text in enumerate(sentences)
                    ],
                }
            )

    @property
    def refs_file(self):
        return self.root / "toys" / "refs(unc).p"

    @property
    def instances_file(self):
        return self.root / "toys" / "instances.json"

    @property
    def image_dir(self):
        return self.root / "images" / "train2014"

    def write(self, protocol=2):
        self.image_dir.mkdir(parents=True)
        self.refs_file.parent.mkdir()
        for image in self.images:
            Image.new("RGB", (WIDTH, HEIGHT), (200, 30, 30)).save(self.image_dir / image["file_name"])
        self.refs_file.write_bytes(pickle.dumps(self.references, protocol))
        self.instances_file.write_text(json.dumps({"images": self.images, "annotations": self.annotations}))
        return self

    def load(self, split="train"):
        return load_refer(self.root, "toys", "unc", split)


@pytest.fixture
def toys(tmp_path):
    return ReferSet(tmp_path)


def _error_message(toys, error, split="train"):
    with pytest.raises(error) as caught:
        toys.load(split)
    message = str(caught.value)
    assert "\n" not in message
    return message


@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_rows_equal_the_references_in_the_file(toys, protocol):
    rows = toys.write(protocol).load()
    assert rows.features == FEATURES
    assert rows.cache_files == []  # in memory: no cache file that could be incomplete
    assert len(rows) == 5
    for row, reference in zip(rows, toys.references[:5], strict=True):
        assert row["sentences"] == [sentence["sent"] for sentence in reference["sentences"]]
        for name in ("ref_id", "ann_id", "image_id", "category_id", "sent_ids", "split"):
            assert row[name] == reference[name]
        assert row["file_name"] == toys.images[reference["ref_id"]]["file_name"]
        assert row["image"].size == (WIDTH, HEIGHT)


@pytest.mark.parametrize("name", SEGMENTATIONS)
def test_masks_equal_those_of_pycocotools(name):
    segmentation = SEGMENTATIONS[name]
    if "RLE" in name:
        expected = _disc()
    else:
        parts = [coco.decode(coco.frPyObjects([part], HEIGHT, WIDTH)) for part in segmentation if len(part) >= 6]
        expected = np.concatenate(parts, axis=2).max(axis=2)
    mask = encode_mask(segmentation, HEIGHT, WIDTH)
    assert isinstance(mask["counts"], str)
    decoded = decode_mask(mask)
    assert decoded.dtype == np.uint8
    np.testing.assert_array_equal(decoded, expected)


def test_arrays_and_rle_bytes_are_accepted_as_masks():
    assert encode_mask(_disc() * 255, HEIGHT, WIDTH) == _compressed()
    as_bytes = {**_compressed(), "counts": _compressed()["counts"].encode()}
    assert encode_mask(as_bytes, HEIGHT, WIDTH) == _compressed()


def test_python_2_pickles_are_decoded_to_text(toys):
    """Python 2 wrote byte strings: protocol 0's S opcode, here with UTF-8 and with Latin-1."""
    toys.write()
    for encoding in ("utf-8", "latin-1"):
        escaped = "".join(f"\\x{byte:02x}" for byte in "pomme à gauche".encode(encoding))
        toys.refs_file.write_bytes(
            b"(lp0\n(dp1\nS'ref_id'\nI7\nsS'ann_id'\nL100L\nsS'image_id'\nI10\nsS'category_id'\nI3\n"
            b"sS'split'\nS'train'\nsS'sent_ids'\n(lI4\nasS'sentences'\n(l(dS'sent_id'\nI4\nsS'sent'\nS'"
            + escaped.encode()
            + b"'\nsasa."
        )
        rows = toys.load()
        assert rows[0]["sentences"] == ["pomme à gauche"]
        assert (rows[0]["ref_id"], rows[0]["ann_id"], rows[0]["sent_ids"]) == (7, 100, [4])


class Evil:
    """Creates a file when it is unpickled unsafely."""

    def __init__(self, trace):
        self.trace = trace

    def __reduce__(self):
        import os

        return os.system, (f"touch '{self.trace}'",)


@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_a_forbidden_object_is_named_and_not_executed(toys, protocol):
    trace = toys.root / "executed"
    toys.references[2]["bbox"] = Evil(trace)
    message = _error_message(toys.write(protocol), pickle.UnpicklingError)
    assert str(toys.refs_file) in message
    assert "system" in message
    assert not trace.exists()


@pytest.mark.parametrize("content", [b"", b"no pickle", pickle.dumps([{"split": "train"}] * 9)[:-7], b"I1\n."])
def test_a_damaged_pickle_is_named(toys, content):
    toys.write().refs_file.write_bytes(content)
    assert str(toys.refs_file) in _error_message(toys, ValueError)


def test_errors_about_missing_files_list_what_exists(toys):
    toys.write()
    for arguments, expected in {
        (toys.root / "gone", "toys", "unc"): "gone",
        (toys.root, "refcoco", "unc"): "has toys",
        (toys.root, "toys", "umd"): "refs(unc).p",
    }.items():
        with pytest.raises(FileNotFoundError) as caught:
            load_refer(*arguments, "train")
        assert expected in str(caught.value)
    toys.instances_file.unlink()
    assert str(toys.instances_file) in _error_message(toys, FileNotFoundError)


def test_an_unknown_split_lists_those_that_exist(toys):
    message = _error_message(toys.write(), ValueError, split="testA")
    assert "train, val" in message


def test_missing_images_are_counted(toys):
    toys.write()
    for image in toys.images[1:3]:
        (toys.image_dir / image["file_name"]).unlink()
    message = _error_message(toys, FileNotFoundError)
    assert "2 of 5" in message
    assert any(image["file_name"] in message for image in toys.images[1:3])


def test_image_folder_may_have_another_name_and_subfolders(toys):
    toys.write()
    moved = toys.root / "photos" / "deep"
    toys.image_dir.rename(toys.root / "photos")
    moved.mkdir()
    name = toys.images[0]["file_name"]
    (toys.root / "photos" / name).rename(moved / name)
    toys.images[0]["file_name"] = f"deep/{name}"
    toys.instances_file.write_text(json.dumps({"images": toys.images, "annotations": toys.annotations}))
    rows = load_refer(toys.root, "toys", "unc", "train", image_folder="photos")
    assert rows[0]["image"].size == (WIDTH, HEIGHT)


def test_a_relative_root_is_resolved_when_loading(toys, monkeypatch):
    monkeypatch.chdir(toys.write().root)
    rows = load_refer(".", "toys", "unc", "train")
    monkeypatch.chdir("/")
    assert rows[0]["image"].size == (WIDTH, HEIGHT)


def _blank(toys):
    toys.references[1]["sentences"][1]["sent"] = " \t "


def _no_sentences(toys):
    toys.references[1]["sentences"] = []


def _no_ann_id(toys):
    del toys.references[1]["ann_id"]


def _text_as_id(toys):
    toys.references[1]["image_id"] = "eleven"


def _other_image(toys):
    toys.annotations[1]["image_id"] = 12


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (_blank, "sentence 3: expected sentences of non-blank text"),
        (_no_sentences, "expected at least one sentence in 'sentences'"),
        (_no_ann_id, "expected 'ann_id' of type int, got nothing"),
        (_text_as_id, "expected 'image_id' of type int, got 'eleven'"),
        (_other_image, "expected annotations of image 11, got annotation 101 of image 12"),
    ],
)
def test_a_malformed_reference_is_named(toys, spoil, words):
    spoil(toys)
    message = _error_message(toys.write(), ValueError)
    assert f"{toys.refs_file}: reference 1:" in message
    assert words in message


@pytest.mark.parametrize("kind", ["annotations", "images"])
def test_a_missing_annotation_or_image_names_the_reference(toys, kind):
    del getattr(toys, kind)[1]
    message = _error_message(toys.write(), ValueError)
    assert str(toys.instances_file) in message
    assert "reference 1" in message
    assert ("annotation 101" if kind == "annotations" else "image 11") in message


@pytest.mark.parametrize(
    "segmentation",
    [
        [],
        None,
        "polygon",
        [[]],
        [[1, 1, 9, 9]],
        [[1, 1, 9, 1, 9, 9, 1]],
        [[1, 1, 9, 1, float("nan"), 9]],
        [[1, 1, 9, 1, 1e9, 9]],
        [[1, 1, "9", 1, 9, 9]],
        [[100, 100, 120, 100, 120, 120]],
        {"size": [HEIGHT, WIDTH]},
        {"size": None, "counts": [0, WIDTH * HEIGHT]},
        {"size": [HEIGHT, WIDTH], "counts": None},
        {"size": [WIDTH, HEIGHT], "counts": [0, WIDTH * HEIGHT]},
        {"size": [HEIGHT, WIDTH], "counts": [WIDTH * HEIGHT]},
        {"size": [HEIGHT, WIDTH], "counts": [10, 10]},
        {"size": [HEIGHT, WIDTH], "counts": [-5, 5 + WIDTH * HEIGHT]},
        {"size": [HEIGHT, WIDTH], "counts": ""},
        {"size": [HEIGHT, WIDTH], "counts": _compressed()["counts"][:-4]},
        {"size": [HEIGHT, WIDTH], "counts": "é~~"},
    ],
    ids=str,
)
def test_a_malformed_or_empty_mask_names_its_annotation(toys, segmentation):
    """For several of these pycocotools returns noise or allocates all memory."""
    toys.annotations[1]["segmentation"] = segmentation
    assert f"{toys.instances_file}: annotation 101:" in _error_message(toys.write(), ValueError)


@pytest.mark.parametrize("content", ["{", "[]", '{"images": []}', '{"images": [], "annotations": [{"no": 1}]}'])
def test_damaged_instances_are_named(toys, content):
    toys.write().instances_file.write_text(content)
    assert str(toys.instances_file) in _error_message(toys, ValueError)


@pytest.mark.parametrize("damage", ["garbage", "truncated", "missing"])
def test_a_corrupt_image_is_named_when_it_is_decoded(toys, damage):
    file = toys.write().image_dir / toys.images[1]["file_name"]
    rows = toys.load()  # does not decode images
    if damage == "missing":
        file.unlink()
    else:
        file.write_bytes(b"no image" if damage == "garbage" else file.read_bytes()[:-200])
    undecoded = rows.cast_column("image", datasets.Image(decode=False))
    assert undecoded[1]["image"]["bytes"] is None
    for read in (
        lambda: rows[1]["image"],
        lambda: open_image(undecoded[1]["image"]),
        lambda: decode_row(undecoded[1]),
    ):
        with pytest.raises((ValueError, FileNotFoundError)) as caught:
            read()
        assert str(file) in str(caught.value)
        assert "\n" not in str(caught.value)


def test_decode_row_returns_image_and_mask_of_equal_size(toys):
    rows = toys.write().load()
    for row in (rows[3], rows.cast_column("image", datasets.Image(decode=False))[3]):
        image, mask = decode_row(row)
        assert image.size == (WIDTH, HEIGHT)
        np.testing.assert_array_equal(mask, _disc())


def test_an_image_of_another_size_than_its_mask_is_named(toys):
    file = toys.write().image_dir / toys.images[1]["file_name"]
    Image.new("RGB", (WIDTH * 2, HEIGHT)).save(file)
    with pytest.raises(ValueError, match=r"expected a mask of 80x30 pixels, .* got 40x30 for reference 1") as caught:
        decode_row(toys.load()[1])
    assert file.name in str(caught.value)


def test_rows_can_be_saved_reloaded_and_concatenated(toys, tmp_path):
    rows = toys.write().load()
    rows.save_to_disk(tmp_path / "saved")
    reloaded = datasets.load_from_disk(str(tmp_path / "saved"))
    assert type(reloaded.features["image"]) is datasets.Image
    both = datasets.concatenate_datasets([rows, reloaded])
    assert both["ref_id"][:] == [0, 1, 2, 3, 4] * 2
    assert both.shuffle(seed=1)[0]["image"].size == (WIDTH, HEIGHT)


def _damage_all(toys):
    """Damage references 0 to 4 of the split, each in a different way."""
    toys.references[0]["sentences"][0]["sent"] = "lone surrogate: \ud800"
    toys.annotations[1]["segmentation"] = [[100, 5, 120, 5, 120, 25], [-9, 5, -1, 5, -1, 25]]
    toys.annotations[2]["segmentation"] = [[1, 1, 9, 1, 9, 9, 1]]
    toys.annotations[3]["segmentation"] = {"size": [HEIGHT, WIDTH], "counts": [HEIGHT * WIDTH]}
    toys.references[4]["ref_id"] = 3


def test_bad_rows_are_collected_by_kind_and_good_rows_are_kept(toys):
    _damage_all(toys)
    good, without_image = json.loads(json.dumps(toys.references[5])), json.loads(json.dumps(toys.references[5]))
    for reference, number in ((good, 8), (without_image, 9)):
        reference.update(ref_id=number, ann_id=105, split="train")
        for sentence in reference["sentences"]:
            sentence["sent_id"] += 100 * number
    without_image.update(image_id=30, ann_id=130)
    toys.references += [good, without_image]
    toys.images.append({"id": 30, "file_name": "lost.jpg", "height": HEIGHT, "width": WIDTH})
    toys.annotations.append({"id": 130, "image_id": 30, "segmentation": [POLYGON]})
    (toys.write().image_dir / "lost.jpg").unlink()
    bad_rows = BadRows()
    rows = load_refer(toys.root, "toys", "unc", "train", bad_rows=bad_rows)
    assert rows["ref_id"][:] == [8]
    found = {error.kind: str(error) for error in bad_rows}
    expected = {
        "row_malformed": "reference 0: a sentence",
        "mask_out_of_frame": "annotation 101: the mask is entirely outside the image of 40x30",
        "mask_malformed": "annotation 102: expected a polygon",
        "mask_empty": "annotation 103: the mask is empty",
        "duplicate_id": "reference 3: expected a unique 'ref_id', got 3",
        "image_missing": f"reference 9: {toys.image_dir / 'lost.jpg'} is missing",
    }
    assert list(found) == list(expected)
    for kind, words in expected.items():
        assert words in found[kind].replace("sentence 0", "a sentence"), kind
        assert "\n" not in found[kind]
    assert isinstance(bad_rows[-1], MissingImageError)
    assert bad_rows.counts() == dict.fromkeys(expected, 1)


def test_without_bad_rows_the_first_bad_row_is_raised(toys):
    toys.annotations[1]["segmentation"] = [[100, 5, 120, 5, 120, 25]]
    with pytest.raises(BadRowError, match="entirely outside") as caught:
        toys.write().load()
    assert caught.value.kind == "mask_out_of_frame"


def test_repeated_ids_are_named(toys):
    toys.references[5]["ref_id"] = 2  # in val
    toys.references[3]["sentences"][1]["sent_id"] = 0
    toys.write()
    assert "reference 3: expected a unique 'sent_id', got 0" in _error_message(toys, BadRowError)
    assert "reference 2: expected a unique 'ref_id', got 2" in _error_message(toys, BadRowError, split="val")


@pytest.mark.parametrize("bad_rows", [None, BadRows()])
def test_a_missing_image_folder_is_raised_even_with_bad_rows(toys, bad_rows):
    toys.write()
    with pytest.raises(FileNotFoundError, match="the image folder is missing"):
        load_refer(toys.root, "toys", "unc", "train", image_folder="photos", bad_rows=bad_rows)
    assert not bad_rows


def test_refclef_has_another_default_image_folder(toys):
    toys.write()
    toys.refs_file.parent.rename(toys.root / "refclef")
    toys.image_dir.rename(toys.root / "images" / "saiapr_tc-12")
    rows = load_refer(toys.root, "refclef", "unc", "train")
    assert rows[0]["image"].size == (WIDTH, HEIGHT)
    assert rows[0]["dataset"] == "refclef"


def test_the_image_folder_of_the_refer_api_is_found(toys):
    toys.write()
    (toys.root / "images/mscoco/images").mkdir(parents=True)
    toys.image_dir.rename(toys.root / "images/mscoco/images/train2014")
    assert toys.load()[0]["image"].size == (WIDTH, HEIGHT)


def test_variants_found_in_published_files_are_accepted(toys):
    """Ids such as 100.0, no category, no iscrowd, no sent_ids, sentences with `raw` only, additional fields."""
    for annotation in toys.annotations:
        del annotation["iscrowd"]
    del toys.annotations[1]["category_id"]
    for reference in toys.references:
        reference["ann_id"] = float(reference["ann_id"])
        reference["image_id"] = float(reference["image_id"])
        reference["tag"] = {"of": ["another", "tool"]}
        del reference["category_id"], reference["sent_ids"], reference["file_name"]
        for sentence in reference["sentences"]:
            del sentence["sent"], sentence["tokens"]
    rows = toys.write().load()
    assert rows["ann_id"][:] == [100, 101, 102, 103, 104]
    assert rows["category_id"][:] == [3, -1, 3, 3, 3]
    assert rows["sentences"][0] == ["LA POMME À GAUCHE"]
    assert rows["sent_ids"][1] == [2, 3]
    for wrong in (100.5, True, "100", 2**70):
        toys.references[0]["ann_id"] = wrong
        toys.refs_file.write_bytes(pickle.dumps(toys.references))
        assert f"expected 'ann_id' of type int, got {wrong!r}" in _error_message(toys, BadRowError)


def test_published_counts_add_up_to_the_papers_totals():
    totals = {name: sum(splits.values()) for name, splits in PUBLISHED_REFERENCES.items()}
    assert totals == {
        ("refcoco", "unc"): 50000,
        ("refcoco+", "unc"): 49856,
        ("refcocog", "umd"): 49822,
        ("refcocog", "google"): 49822,
        ("rrsisd", "unc"): 17402,
    }


# -- round trip of arbitrary datasets ---------------------------------------------------------------------------------


def _coordinate(side):
    """Draw a coordinate within the frame, on its edge or slightly outside."""
    return st.floats(-0.3 * side, 1.3 * side)


def _polygon(height, width):
    points = st.lists(st.tuples(_coordinate(width), _coordinate(height)), min_size=3, max_size=8)
    return points.map(lambda corners: [number for corner in corners for number in corner])


@st.composite
def _segmentations(draw, height, width):
    """Draw one or more polygons, or an RLE: plain (crowd), compressed, or compressed in a list (RefCLEF)."""
    kind = draw(st.sampled_from(["polygons", "plain", "text", "list"]))
    if kind == "polygons":
        return draw(st.lists(_polygon(height, width), min_size=1, max_size=3))
    cuts = sorted(draw(st.lists(st.integers(0, height * width), min_size=1, max_size=9)))
    runs = np.diff([0, *cuts, height * width]).tolist()
    plain = {"size": [height, width], "counts": runs}
    if kind == "plain":
        return plain
    rle = coco.frPyObjects(plain, height, width)
    text = {"size": [height, width], "counts": rle["counts"].decode()}
    return text if kind == "text" else [text]


def _expected(segmentation, height, width):
    """Decode with pycocotools; parts may overlap, so their union is computed here."""
    if isinstance(segmentation, dict):
        rles = [segmentation]
        if isinstance(segmentation["counts"], list):
            rles = [coco.frPyObjects(segmentation, height, width)]
    elif isinstance(segmentation[0], dict):
        rles = segmentation
    else:
        rles = coco.frPyObjects(segmentation, height, width)
    return np.any([coco.decode(rle) for rle in rles], axis=0).astype(np.uint8)


_NAMES = st.text(st.characters(exclude_categories=("Cs", "Cc"), exclude_characters="/"), min_size=1, max_size=20)
_SENTENCES = st.text(st.characters(exclude_categories=("Cs",)), min_size=1, max_size=30).filter(clean_text)


@st.composite
def _datasets(draw):
    images, annotations, references, masks = [], [], [], {}
    names = draw(st.lists(_NAMES, min_size=1, max_size=3, unique_by=str.casefold))
    sent_ids = iter(draw(st.permutations(range(40))))
    for image_id, name in enumerate(names):
        height, width = draw(st.integers(1, 40)), draw(st.integers(1, 40))
        images.append({"id": image_id, "file_name": f"{name}.jpg", "height": height, "width": width})
        for _ in range(draw(st.integers(1, 3))):
            ann_id, ref_id = 7 * len(annotations), len(references)
            segmentation = draw(_segmentations(height, width))
            crowd = isinstance(segmentation, dict)
            annotations.append(
                {"id": ann_id, "image_id": image_id, "segmentation": segmentation, "iscrowd": int(crowd)}
            )
            sentences = [
                {"sent_id": next(sent_ids), "sent": text, "raw": text, "tokens": text.split()}
                for text in draw(st.lists(_SENTENCES, min_size=1, max_size=3))
            ]
            masks[ref_id] = _expected(segmentation, height, width)
            references.append(
                {
                    "ref_id": ref_id,
                    "ann_id": ann_id,
                    "image_id": image_id,
                    "category_id": 1,
                    "split": draw(st.sampled_from(["train", "val", "testA"])),
                    "file_name": "ignored.jpg",
                    "sent_ids": [sentence["sent_id"] for sentence in sentences],
                    "sentences": sentences,
                }
            )
    return images, annotations, draw(st.permutations(references)), masks, draw(st.sampled_from([0, 1, 2, 4]))


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(made=_datasets())
def test_any_dataset_is_read_as_it_was_written(tmp_path_factory, made):
    """Masks equal those of pycocotools; no reference, sentence or image is lost, repeated or out of order."""
    images, annotations, references, masks, protocol = made
    root = tmp_path_factory.mktemp("set")
    toys = ReferSet(root)
    toys.image_dir.mkdir(parents=True)
    toys.refs_file.parent.mkdir()
    for image in images:
        (toys.image_dir / image["file_name"]).touch()
    toys.refs_file.write_bytes(pickle.dumps(references, protocol))
    toys.instances_file.write_text(json.dumps({"images": images, "annotations": annotations}))
    for split in {reference["split"] for reference in references}:
        bad_rows = BadRows()
        rows = load_refer(root, "toys", "unc", split, bad_rows=bad_rows).remove_columns("image")
        written = [reference for reference in references if reference["split"] == split]
        seen = [reference for reference in written if masks[reference["ref_id"]].any()]
        assert len(bad_rows) == len(written) - len(seen)  # only masks that are empty for pycocotools too
        assert {error.kind for error in bad_rows} <= {"mask_empty", "mask_out_of_frame"}
        assert rows["ref_id"][:] == [reference["ref_id"] for reference in seen]
        for row, reference in zip(rows, seen, strict=True):
            np.testing.assert_array_equal(decode_mask(row["mask"]), masks[row["ref_id"]])
            assert row["sentences"] == [sentence["sent"] for sentence in reference["sentences"]]
            assert row["sent_ids"] == reference["sent_ids"]
            assert (row["ann_id"], row["ann_ids"]) == (reference["ann_id"], [reference["ann_id"]])
            assert row["file_name"] == images[reference["image_id"]]["file_name"]
            assert (row["split"], row["dataset"], row["no_target"]) == (split, "toys", False)


def test_two_images_of_one_id_are_named(toys):
    toys.images.append({**toys.images[0], "file_name": toys.images[1]["file_name"]})
    toys.write()
    name, other = (toys.images[index]["file_name"] for index in (0, 1))
    with pytest.raises(BadRowError, match=f"one image with the id 10, got two .*'{name}' and '{other}'") as caught:
        load_refer(toys.root, "toys", "unc", "train")
    assert caught.value.kind == "duplicate_id"


def test_two_annotations_of_one_id_are_named(toys):
    toys.annotations.append({**toys.annotations[0], "segmentation": [SECOND]})
    toys.write()
    bad_rows = BadRows()
    rows = load_refer(toys.root, "toys", "unc", "train", bad_rows=bad_rows)
    assert bad_rows.counts() == {"duplicate_id": 1}
    assert "one annotation with the id 100, got two that differ" in str(bad_rows[0])
    assert 0 not in rows["ref_id"][:]


def test_ids_that_are_text_are_named(toys):
    toys.images[0]["id"] = "10"
    toys.write()
    with pytest.raises(BadRowError, match="expected integers as ids, got image '10' as text; remove the quotes"):
        load_refer(toys.root, "toys", "unc", "train")


def test_entries_that_are_repeated_unchanged_are_no_errors(toys):
    toys.annotations.append(dict(toys.annotations[0]))
    toys.images.append(dict(toys.images[0]))
    toys.write()
    assert len(load_refer(toys.root, "toys", "unc", "train")) == 5


@pytest.mark.parametrize("split", [None, 3])
def test_a_reference_without_a_split_is_a_bad_row_of_every_split(toys, split):
    toys.references[0]["split"] = split
    toys.write()
    source = DataSource("toys", str(toys.root))
    assert source.splits() == ["train", "val"]
    for name, count in (("train", 4), ("val", 1)):
        bad_rows = BadRows()
        assert len(source.load(name, bad_rows)) == count
        assert "reference 0: expected 'split' of type str" in str(bad_rows[0])


def test_backslashes_separate_folders(toys):
    toys.write()
    file_name = toys.images[0]["file_name"]
    (toys.image_dir / "deep").mkdir()
    (toys.image_dir / file_name).rename(toys.image_dir / "deep" / file_name)
    toys.images[0]["file_name"] = f"deep\\{file_name}"
    toys.instances_file.write_text(json.dumps({"images": toys.images, "annotations": toys.annotations}))
    assert load_refer(toys.root, "toys", "unc", "train")[0]["image"].size == (WIDTH, HEIGHT)


def test_images_outside_of_the_image_folder_are_noticed(toys):
    toys.write()
    names = [image["file_name"] for image in toys.images]
    (toys.image_dir / names[0]).rename(toys.root / "x.jpg")
    (toys.image_dir / names[0]).symlink_to(toys.root / "x.jpg")
    (toys.image_dir / names[1]).rename(toys.root / "y.jpg")
    toys.images[1]["file_name"] = "../../y.jpg"
    (toys.root / "elsewhere").mkdir()
    (toys.image_dir / names[2]).rename(toys.root / "elsewhere" / names[2])
    (toys.image_dir / "linked").symlink_to(toys.root / "elsewhere")
    toys.images[2]["file_name"] = f"linked/{names[2]}"
    toys.instances_file.write_text(json.dumps({"images": toys.images, "annotations": toys.annotations}))
    with collect_notices() as notices:
        load_refer(toys.root, "toys", "unc", "train")
    assert sorted(message.split(":")[0] for kind, message in notices if kind == "file_outside") == [
        "../../y.jpg",
        names[0],
        f"linked/{names[2]}",
    ]


def test_the_image_folder_may_be_a_link(toys):
    toys.write()
    toys.image_dir.rename(toys.root / "elsewhere")
    toys.image_dir.symlink_to(toys.root / "elsewhere")
    with collect_notices() as notices:
        load_refer(toys.root, "toys", "unc", "train")
    assert not notices


def test_a_dataset_is_named_by_its_folder(toys, monkeypatch):
    toys.write()
    monkeypatch.chdir(toys.root)
    for name, root in (("toys/", "."), ("./toys/", "."), (str(toys.root / "toys") + "/", "x"), (".", "toys")):
        assert DataSource(name, root).load("val")[0]["dataset"] == "toys"
