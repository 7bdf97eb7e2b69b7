"""load_refer: what stands in REFER's files comes out unchanged, and what is wrong with them is said in one line."""

import json
import pickle
from pathlib import Path

import datasets
import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco

from detris_peft.data import FEATURES, decode_mask, decode_row, encode_mask, load_refer, open_image

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
    """The disc as run lengths, counted here by hand."""
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
    """A small data set in memory that tests bend before it is written."""

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
    def pictures(self):
        return self.root / "images" / "train2014"

    def write(self, protocol=2):
        self.pictures.mkdir(parents=True)
        self.refs_file.parent.mkdir()
        for image in self.images:
            Image.new("RGB", (WIDTH, HEIGHT), (200, 30, 30)).save(self.pictures / image["file_name"])
        self.refs_file.write_bytes(pickle.dumps(self.references, protocol))
        self.instances_file.write_text(json.dumps({"images": self.images, "annotations": self.annotations}))
        return self

    def load(self, split="train"):
        return load_refer(self.root, "toys", "unc", split)


@pytest.fixture
def toys(tmp_path):
    return ReferSet(tmp_path)


def _complaint(toys, error, split="train"):
    with pytest.raises(error) as caught:
        toys.load(split)
    message = str(caught.value)
    assert "\n" not in message
    return message


@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_nothing_is_lost_or_changed(toys, protocol):
    rows = toys.write(protocol).load()
    assert rows.features == FEATURES
    assert rows.cache_files == []  # in memory: nothing half-written can stay behind
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


def test_an_array_and_bytes_are_masks_too():
    assert encode_mask(_disc() * 255, HEIGHT, WIDTH) == _compressed()
    as_bytes = {**_compressed(), "counts": _compressed()["counts"].encode()}
    assert encode_mask(as_bytes, HEIGHT, WIDTH) == _compressed()


def test_a_python_2_pickle_gives_text(toys):
    """Python 2 wrote byte strings, here as protocol 0's S opcode with UTF-8 and then with Latin-1 inside."""
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
    """Makes a file when it is unpickled carelessly."""

    def __init__(self, trace):
        self.trace = trace

    def __reduce__(self):
        import os

        return os.system, (f"touch '{self.trace}'",)


@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_a_forbidden_object_is_named_and_never_run(toys, protocol):
    trace = toys.root / "it ran"
    toys.references[2]["bbox"] = Evil(trace)
    message = _complaint(toys.write(protocol), pickle.UnpicklingError)
    assert str(toys.refs_file) in message
    assert "system" in message
    assert not trace.exists()


@pytest.mark.parametrize("content", [b"", b"no pickle", pickle.dumps([{"split": "train"}] * 9)[:-7], b"I1\n."])
def test_a_damaged_pickle_is_named(toys, content):
    toys.write().refs_file.write_bytes(content)
    assert str(toys.refs_file) in _complaint(toys, ValueError)


def test_missing_folders_and_files_say_what_is_there(toys):
    toys.write()
    for arguments, expected in {
        (toys.root / "gone", "toys", "unc"): "gone",
        (toys.root, "refcoco", "unc"): "there are toys",
        (toys.root, "toys", "umd"): "refs(unc).p",
    }.items():
        with pytest.raises(FileNotFoundError) as caught:
            load_refer(*arguments, "train")
        assert expected in str(caught.value)
    toys.instances_file.unlink()
    assert str(toys.instances_file) in _complaint(toys, FileNotFoundError)


def test_an_unknown_split_lists_those_that_exist(toys):
    message = _complaint(toys.write(), ValueError, split="testA")
    assert "train, val" in message


def test_missing_pictures_are_counted(toys):
    toys.write()
    for image in toys.images[1:3]:
        (toys.pictures / image["file_name"]).unlink()
    message = _complaint(toys, FileNotFoundError)
    assert "2 of 5" in message
    assert any(image["file_name"] in message for image in toys.images[1:3])


def test_pictures_may_lie_elsewhere_and_deeper(toys):
    toys.write()
    moved = toys.root / "photos" / "deep"
    toys.pictures.rename(toys.root / "photos")
    moved.mkdir()
    name = toys.images[0]["file_name"]
    (toys.root / "photos" / name).rename(moved / name)
    toys.images[0]["file_name"] = f"deep/{name}"
    toys.instances_file.write_text(json.dumps({"images": toys.images, "annotations": toys.annotations}))
    rows = load_refer(toys.root, "toys", "unc", "train", image_folder="photos")
    assert rows[0]["image"].size == (WIDTH, HEIGHT)


def test_a_relative_root_survives_a_change_of_directory(toys, monkeypatch):
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


def _text_for_id(toys):
    toys.references[1]["image_id"] = "eleven"


def _other_picture(toys):
    toys.annotations[1]["image_id"] = 12


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (_blank, "sentence 3 is blank"),
        (_no_sentences, "'sentences' is empty"),
        (_no_ann_id, "'ann_id' is missing"),
        (_text_for_id, "'image_id' is 'eleven'"),
        (_other_picture, "annotation 101 is of image 12"),
    ],
)
def test_a_faulty_reference_is_named(toys, spoil, words):
    spoil(toys)
    message = _complaint(toys.write(), ValueError)
    assert f"{toys.refs_file}: reference 1:" in message
    assert words in message


@pytest.mark.parametrize("kind", ["annotations", "images"])
def test_a_missing_record_names_who_needs_it(toys, kind):
    del getattr(toys, kind)[1]
    message = _complaint(toys.write(), ValueError)
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
def test_a_faulty_or_empty_mask_names_its_annotation(toys, segmentation):
    """pycocotools itself answers several of these with noise, or by eating all memory."""
    toys.annotations[1]["segmentation"] = segmentation
    assert f"{toys.instances_file}: annotation 101:" in _complaint(toys.write(), ValueError)


@pytest.mark.parametrize("content", ["{", "[]", '{"images": []}', '{"images": [], "annotations": [{"no": 1}]}'])
def test_damaged_instances_are_named(toys, content):
    toys.write().instances_file.write_text(content)
    assert str(toys.instances_file) in _complaint(toys, ValueError)


@pytest.mark.parametrize("damage", ["garbage", "cut", "gone"])
def test_a_corrupt_picture_is_found_when_read_and_named(toys, damage):
    file = toys.write().pictures / toys.images[1]["file_name"]
    rows = toys.load()  # nothing is decoded yet
    if damage == "gone":
        file.unlink()
    else:
        file.write_bytes(b"no picture" if damage == "garbage" else file.read_bytes()[:-200])
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


def test_decode_row_gives_picture_and_mask_of_one_size(toys):
    rows = toys.write().load()
    for row in (rows[3], rows.cast_column("image", datasets.Image(decode=False))[3]):
        image, mask = decode_row(row)
        assert image.size == (WIDTH, HEIGHT)
        np.testing.assert_array_equal(mask, _disc())


def test_a_picture_of_another_size_than_its_mask_is_named(toys):
    file = toys.write().pictures / toys.images[1]["file_name"]
    Image.new("RGB", (WIDTH * 2, HEIGHT)).save(file)
    with pytest.raises(ValueError, match=r"80x30 pixels but the mask of reference 1 is 40x30") as caught:
        decode_row(toys.load()[1])
    assert file.name in str(caught.value)


def test_rows_are_ordinary_datasets_rows(toys, tmp_path):
    """Saved, reloaded and joined with plain image columns as any other data set."""
    rows = toys.write().load()
    rows.save_to_disk(tmp_path / "saved")
    reloaded = datasets.load_from_disk(str(tmp_path / "saved"))
    assert type(reloaded.features["image"]) is datasets.Image
    both = datasets.concatenate_datasets([rows, reloaded])
    assert both["ref_id"][:] == [0, 1, 2, 3, 4] * 2
    assert both.shuffle(seed=1)[0]["image"].size == (WIDTH, HEIGHT)
