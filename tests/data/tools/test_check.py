"""`check_data` finds every kind of error, counts it per row and names the file; valid datasets pass."""

import json
import os
import pickle
from collections import Counter

import datasets
import numpy as np
import pytest
from PIL import Image

from detris_peft.data.masks import mask_area
from detris_peft.data.schema import FEATURES
from detris_peft.data.sources import DataSource
from detris_peft.data.tools import check
from detris_peft.data.tools.check import check_data
from detris_peft.data.tools.report import as_json

HEIGHT, WIDTH = 30, 40
POLYGON = [5.0, 5.0, 20.0, 5.0, 20.0, 15.0, 5.0, 15.0]
SPLITS = ("train", "train", "train", "val", "testA", "testB")


class Toys:
    """A dataset in REFER's layout with two references for each of six images; change its fields before `write`."""

    def __init__(self, root, dataset="toys", split_by="unc"):
        self.root, self.dataset, self.split_by = root, dataset, split_by
        self.images = [
            {"id": number, "file_name": f"image {number} é.jpg", "height": HEIGHT, "width": WIDTH}
            for number in range(len(SPLITS))
        ]
        self.annotations, self.references = [], []
        for number in range(2 * len(SPLITS)):
            self.annotations.append(
                {"id": 100 + number, "image_id": number // 2, "category_id": 3, "segmentation": [POLYGON]}
            )
            self.references.append(
                {
                    "ref_id": number,
                    "ann_id": 100 + number,
                    "image_id": number // 2,
                    "category_id": 3,
                    "split": SPLITS[number // 2],
                    "sent_ids": [number],
                    "sentences": [{"sent": f"the apple {number}", "raw": "", "tokens": [], "sent_id": number}],
                }
            )

    def image(self, number):
        return self.root / "images" / "train2014" / self.images[number]["file_name"]

    def write(self):
        folder = self.root / self.dataset
        self.image(0).parent.mkdir(parents=True, exist_ok=True)
        folder.mkdir()
        for number in range(len(self.images)):
            Image.new("RGB", (WIDTH, HEIGHT), (10 * number, 30, 30)).save(self.image(number))
        (folder / f"refs({self.split_by}).p").write_bytes(pickle.dumps(self.references, 2))
        (folder / "instances.json").write_text(json.dumps({"images": self.images, "annotations": self.annotations}))
        return self

    @property
    def source(self):
        return DataSource(self.dataset, str(self.root), self.split_by)

    def check(self, splits=None, **options):
        return {report.split: report for report in check_data(self.source, splits, progress=False, **options)}


@pytest.fixture
def toys(tmp_path):
    return Toys(tmp_path)


def test_a_valid_dataset_passes_and_is_counted(toys):
    reports = toys.write().check()
    assert list(reports) == ["train", "val", "testA", "testB"]
    train = reports["train"]
    assert (train.images, train.references, train.sentences, train.no_target) == (3, 6, 6, 0)
    assert not any(report.errors or report.notices for report in reports.values())
    assert as_json(toys.source, [*reports.values()])["ok"]


def test_each_image_is_opened_once_and_errors_are_counted_per_row(toys, monkeypatch):
    toys.write()
    opened = Counter()
    original = check.open_image
    monkeypatch.setattr(check, "open_image", lambda image: opened.update([image["path"]]) or original(image))
    toys.image(0).unlink()
    toys.image(1).write_bytes(toys.image(1).read_bytes()[:-40])  # intact header, missing pixels
    Image.new("RGB", (HEIGHT, WIDTH)).save(toys.image(2))
    reports = toys.check()
    assert reports["train"].error_counts == {"image_missing": 2, "image_damaged": 2, "mask_malformed": 2}
    assert set(opened) == {str(toys.image(number)) for number in range(1, 6)}
    assert set(opened.values()) == {1}
    messages = {finding.kind: finding.message for finding in reports["train"].errors}
    assert toys.image(0).name in messages["image_missing"]
    assert str(toys.image(1)) in messages["image_damaged"]
    assert "reference 2 and 1 more" in messages["image_damaged"]
    assert messages["mask_malformed"].startswith(
        f"{toys.image(2).name}: expected a mask of the image's size 30x40, got 40x30 for reference"
    )
    assert not any("\n" in message for message in messages.values())
    # Without opening images, only the errors that the reader detects are found.
    assert toys.check(images=False)["train"].error_counts == {"image_missing": 2}


def test_every_kind_of_invalid_row_is_listed(toys):
    toys.annotations[0]["segmentation"] = [[1.0, 1.0, 1.0, 1.0, 1.0, 1.0]]
    toys.annotations[1]["segmentation"] = [[x + 100 for x in POLYGON]]
    toys.annotations[2]["segmentation"] = {"size": [HEIGHT, WIDTH], "counts": [5, 5]}
    toys.references[3]["sentences"][0]["sent"] = " "
    toys.references[5]["ref_id"] = toys.references[4]["ref_id"]
    report = toys.write().check()["train"]
    assert report.error_counts == {
        "mask_empty": 1,
        "mask_out_of_frame": 1,
        "mask_malformed": 1,
        "row_malformed": 1,
        "duplicate_id": 1,
    }
    assert report.references == 1
    for finding in report.errors:
        assert str(toys.root / "toys") in finding.message


def test_masks_that_vanish_at_the_model_size_are_errors(toys):
    toys.annotations[1]["segmentation"] = [[5.0, 5.0, 8.0, 5.0, 8.0, 7.0, 5.0, 7.0]]
    report = toys.write().check(["train"], is_visible=lambda mask: mask_area(mask) > 6)["train"]
    assert report.error_counts == {"mask_empty": 1}
    assert report.errors[0].message.startswith(f"{toys.image(0).name}: expected a mask that is visible")
    assert "got reference 1 with 6 pixels of which none remain" in report.errors[0].message


def test_a_split_that_cannot_be_read_does_not_hide_the_others(toys):
    toys.write()
    reports = toys.check(["val", "none", "train"])
    assert [finding.kind for finding in reports["none"].errors] == ["split_unreadable"]
    assert "no split 'none'" in reports["none"].errors[0].message
    assert reports["train"].references == 6
    content = as_json(toys.source, [*reports.values()])
    assert json.loads(json.dumps(content)) == content
    assert not content["ok"]
    assert content["splits"]["none"]["bad"] == {"split_unreadable": 1}


def test_an_error_common_to_all_splits_is_reported_once(tmp_path):
    line = {"file_name": "a.png", "sentence": "the apple", "mask": POLYGON}
    Image.new("RGB", (WIDTH, HEIGHT)).save(tmp_path / "a.png")
    Image.new("L", (WIDTH, HEIGHT)).save(tmp_path / "b.png")
    lines = [json.dumps(line), "{broken", json.dumps({**line, "file_name": "b.png", "split": "val"})]
    (tmp_path / "metadata.jsonl").write_text("\n".join(lines))
    train, val = check_data(DataSource(str(tmp_path)), progress=False)
    assert train.error_counts == {"row_malformed": 1}
    assert not val.errors


def test_counts_are_compared_with_the_published_ones(tmp_path):
    toys = Toys(tmp_path, "refcoco").write()
    notice = toys.check(["val"])["val"].notices[0]
    assert notice.kind == "count_differs"
    assert "expected 3,811 references as published, got 2" in notice.message
    toys.references[0]["sentences"][0]["sent"] = ""  # invalid rows count as present
    (tmp_path / "refcoco" / "refs(unc).p").write_bytes(pickle.dumps(toys.references, 2))
    report = toys.check(["train"])["train"]
    assert report.references == 5
    assert "expected 42,404 references as published, got 6" in report.notices[0].message


def test_images_that_splits_share_are_errors(toys):
    toys.references[6]["image_id"] = toys.annotations[6]["image_id"] = 0  # val uses an image of train
    toys.write()
    toys.image(5).write_bytes(toys.image(1).read_bytes())  # testB has a renamed copy
    reports = toys.check()
    (val,), (test,) = reports["val"].errors, reports["testB"].errors
    assert val.kind == test.kind == "shared_image"
    assert val.message.startswith(f"{toys.image(0).name}: the image is also in train (reference 0); this leaks data")
    assert f"{toys.image(5).name}: the image is also in train as {toys.image(1).name} (reference 2)" in test.message
    # Names alone do not reveal the copy.
    reports = toys.check(images=False)
    assert reports["val"].errors
    assert not reports["testB"].errors


def test_sharing_by_design_is_a_notice(tmp_path):
    toys = Toys(tmp_path, "refcocog", "google")
    toys.references[6]["image_id"] = toys.annotations[6]["image_id"] = 0
    reports = toys.write().check()
    assert not any(report.errors for report in reports.values())
    notice = next(one for one in reports["val"].notices if one.kind == "shared_image")
    assert "1 images are also in train, by design: it was split by objects" in notice.message


def test_two_test_splits_may_share_images(toys):
    toys.references[10]["image_id"] = toys.annotations[10]["image_id"] = 4
    report = toys.write().check()["testB"]
    assert not report.errors
    assert [notice.kind for notice in report.notices] == ["shared_image"]


def test_one_image_under_two_names_in_a_split_is_a_notice(toys):
    toys.write()
    toys.image(2).write_bytes(toys.image(0).read_bytes())
    report = toys.check()["train"]
    assert not report.errors
    (notice,) = report.notices
    assert notice.kind == "same_image"
    assert toys.image(0).name in notice.message
    assert toys.image(2).name in notice.message


def test_long_sentences_are_counted_in_words_or_in_tokens(toys):
    toys.references[0]["sentences"][0]["sent"] = "the apple " * 8  # 16 words, and start and end token
    toys.references[2]["sentences"][0]["sent"] = "x" * 15  # exactly the limit, with start and end token
    toys.references[4]["sentences"][0]["sent"] = "y" * 16
    toys.write()
    (words,) = toys.check(["train"])["train"].notices
    assert words.kind == "sentence_too_long"
    assert words.message.startswith("reference 0: expected at most 17 tokens, got at least 18; the rest is cut off")
    letters = toys.check(["train"], count_tokens=lambda texts: [len(text) + 2 for text in texts])["train"].notices
    long = [notice.message for notice in letters if "yyy" in notice.message or "xxx" in notice.message]
    assert long == [f"reference 4: expected at most 17 tokens, got 18; the rest is cut off: '{'y' * 16}'"]
    assert not toys.check(["train"], max_text_length=18)["train"].notices


def test_embedded_images_are_identified_by_content(tmp_path):
    """Their names may be the same in every split."""
    folder = tmp_path / "embedded"
    images = [Image.fromarray(np.full((HEIGHT, WIDTH, 3), value, np.uint8)) for value in (10, 20, 30)]
    for split, chosen in (("train", [0, 0, 1]), ("val", [2, 1])):
        rows = {
            "image": [images[number] for number in chosen],
            "sentences": ["a thing"] * len(chosen),
            "mask": [[POLYGON]] * len(chosen),
        }
        features = {"image": datasets.Image(), "sentences": datasets.Value("string")}
        features["mask"] = [[datasets.Value("float64")]]
        dataset = datasets.Dataset.from_dict(rows, features=datasets.Features(features))
        dataset.to_parquet(os.fspath(folder / f"{split}.parquet"))
    source = DataSource(str(folder), columns="image=image,sentences=sentences,mask=mask")
    train, val = check_data(source, progress=False)
    assert (train.images, train.references, val.images) == (2, 3, 2)
    assert not train.errors
    assert [finding.kind for finding in val.errors] == ["shared_image"]


def test_a_stream_raises(toys):
    source = toys.source
    source.streaming = True
    with pytest.raises(ValueError, match="--streaming: expected a dataset with random access"):
        check_data(source)


def test_splits_that_training_needs_are_named(toys):
    for reference in toys.references:
        reference["split"] = {"val": "dev"}.get(reference["split"], reference["split"])
    reports = toys.write().check()
    assert list(reports) == ["train", "testA", "testB", "dev", "val"]
    assert not any(report.errors for report in reports.values())
    (notice,) = reports["val"].notices
    assert notice.kind == "split_missing"
    assert "no split 'val', which `detris train` needs: add it, make splits with `detris data split`" in notice.message
    assert list(toys.check(["train"])) == ["train"]


def test_an_empty_dataset_is_an_error(tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "metadata.jsonl").touch()
    with pytest.raises(ValueError, match="empty: expected at least one row, got an empty dataset"):
        check_data(DataSource(str(tmp_path / "empty")), progress=False)


def test_an_empty_split_is_an_error(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    empty = datasets.Dataset.from_dict({name: [] for name in FEATURES}, features=FEATURES)
    empty.to_parquet(tmp_path / "parquet" / "train-00000-of-00001.parquet")
    datasets.DatasetDict({"train": empty}).save_to_disk(tmp_path / "saved")
    lists = {"image": ["a.png"], "refs": [[]]}
    features = {"image": datasets.Value("string"), "refs": [{"t": datasets.Value("string")}]}
    nested = datasets.Dataset.from_dict(lists, features=datasets.Features(features))
    nested.to_parquet(tmp_path / "nested" / "train-00000-of-00001.parquet")
    columns = "rows=refs,sentences=refs.t,box=refs.t"
    for name, kind, options in (
        ("parquet", "split_unreadable", {}),
        ("saved", "split_unreadable", {}),
        ("nested", "split_empty", {"columns": columns}),
    ):
        source = DataSource(str(tmp_path / name), **options)
        (report,) = check_data(source, ["train"], progress=False)
        assert [finding.kind for finding in report.errors] == [kind]
        assert "rows" in report.errors[0].message
        assert not as_json(source, [report])["ok"]


def test_unusual_files_are_noticed(tmp_path):
    """Several values in one mask, and a file outside the dataset."""
    folder = tmp_path / "set"
    folder.mkdir()
    Image.new("RGB", (WIDTH, HEIGHT)).save(tmp_path / "a.png")
    mask = np.zeros((HEIGHT, WIDTH), np.uint8)
    mask[3:9, 3:9], mask[12:19, 3:9] = 1, 2
    Image.fromarray(mask).save(folder / "m.png")
    line = {"file_name": "../a.png", "sentence": "the apple", "mask": "m.png"}
    (folder / "metadata.jsonl").write_text(json.dumps(line))
    report = check_data(DataSource(str(folder)), progress=False)[0]
    assert not report.errors
    assert sorted(notice.kind for notice in report.notices) == ["file_outside", "mask_of_several"]


def test_a_trailing_slash_of_a_dataset_that_shares_images_by_design(tmp_path, monkeypatch):
    toys = Toys(tmp_path, "refcocog", "google")
    toys.references[6]["image_id"] = toys.annotations[6]["image_id"] = 0
    toys.write()
    monkeypatch.chdir(tmp_path)
    for name, root in (
        ("refcocog/", "."),
        ("./refcocog", "."),
        (f"{tmp_path}/refcocog", "elsewhere"),
        (".", "refcocog"),
    ):
        reports = check_data(DataSource(name, root, "google"), progress=False)
        assert not any(report.errors for report in reports), name
