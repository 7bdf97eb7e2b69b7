"""write_parquet: what comes back is what went in, byte for byte, and nothing half-written is ever there."""

import errno
import json
import os
import pickle
import resource

import datasets
import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import ExifTags, Image

from detris_peft.data import FEATURES, decode_row
from detris_peft.data.errors import BadRowError, BadRows, MissingImageError
from detris_peft.data.sources import DataSource
from detris_peft.data.tools import convert as parquet
from detris_peft.data.tools.convert import shard_bytes, write_parquet

HEIGHT, WIDTH = 30, 40
UPRIGHT = [5.0, 5.0, 20.0, 5.0, 20.0, 15.0, 5.0, 15.0]


@pytest.fixture
def toys(tmp_path):
    """REFER's layout: a JPEG, a PNG with transparency, and a photograph lying on its side; two references each."""
    folder, originals = tmp_path / "toys", tmp_path / "images" / "train2014"
    folder.mkdir()
    originals.mkdir(parents=True)
    noise = np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 4), np.uint8)
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    Image.fromarray(noise[..., :3]).save(originals / "a é.jpg", quality=80)
    Image.fromarray(noise).save(originals / "b.png")
    Image.fromarray(noise[..., :3]).save(originals / "c.jpg", exif=exif)
    images = [
        {"id": 1, "file_name": "a é.jpg", "height": HEIGHT, "width": WIDTH},
        {"id": 2, "file_name": "b.png", "height": HEIGHT, "width": WIDTH},
        {"id": 3, "file_name": "c.jpg", "height": WIDTH, "width": HEIGHT},
    ]
    annotations, references = [], []
    for number in range(6):
        annotations.append({"id": number, "image_id": number // 2 + 1, "category_id": 3, "segmentation": [UPRIGHT]})
        references.append(
            {
                "ref_id": number,
                "ann_id": number,
                "image_id": number // 2 + 1,
                "category_id": 3,
                "split": "val" if number == 3 else "train",
                "sent_ids": [2 * number, 2 * number + 1],
                "sentences": [{"sent": "la pomme à gauche", "sent_id": 2 * number}]
                + [{"sent": "左边的苹果", "sent_id": 2 * number + 1}] * (number % 2),
            }
        )
    (folder / "instances.json").write_text(json.dumps({"images": images, "annotations": annotations}))
    (folder / "refs(unc).p").write_bytes(pickle.dumps(references))
    return DataSource("toys", str(tmp_path))


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def _undecoded(rows):
    return [*rows.cast_column("image", datasets.Image(decode=False))]


def _names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_rows_masks_and_bytes_come_back(toys, tmp_path):
    out = tmp_path / "out" / "toys-parquet"
    assert write_parquet(toys, out, progress=False) == {"train": 5, "val": 1}
    assert _names(out.parent) == ["toys-parquet"]
    assert _names(out) == ["README.md", "data"]
    assert _names(out / "data") == ["train-00000-of-00001.parquet", "val-00000-of-00001.parquet"]
    source = DataSource("toys-parquet", str(out.parent))
    assert source.splits() == ["train", "val"]
    for split in ("train", "val"):
        before, after = toys.load(split), source.load(split)
        assert after.features == FEATURES
        for old, new in zip(_undecoded(before), _undecoded(after), strict=True):
            path = old.pop("image")["path"]
            with open(path, "rb") as file:
                assert new.pop("image") == {"bytes": file.read(), "path": os.path.basename(path)}
            assert new == old
        for old, new in zip(_undecoded(before), _undecoded(after), strict=True):
            for one, other in zip(decode_row(old), decode_row(new), strict=True):
                np.testing.assert_array_equal(one, other)


def test_datasets_alone_reads_it_as_images(toys, tmp_path):
    write_parquet(toys, tmp_path / "out", progress=False)
    loaded = datasets.load_dataset(str(tmp_path / "out"))
    assert list(loaded) == ["train", "val"]
    assert type(loaded["train"].features["image"]) is datasets.Image
    lying = loaded["train"][4]
    assert lying["file_name"] == "c.jpg"
    assert lying["image"].size == (HEIGHT, WIDTH)  # upright
    assert lying["mask"]["size"] == [WIDTH, HEIGHT]


def test_a_split_whose_name_begins_with_anothers(toys, tmp_path):
    file = tmp_path / "toys" / "refs(unc).p"
    references = pickle.loads(file.read_bytes())
    for number, reference in enumerate(references):
        reference["split"] = "testA" if number else "test"
    file.write_bytes(pickle.dumps(references))
    write_parquet(toys, tmp_path / "out", progress=False)
    loaded = datasets.load_dataset(str(tmp_path / "out"))
    assert {split: list(rows["ref_id"]) for split, rows in loaded.items()} == {"test": [0], "testA": [1, 2, 3, 4, 5]}


def test_shards_keep_the_order_and_the_size(toys, tmp_path):
    biggest = max(os.path.getsize(path) for path in (tmp_path / "images/train2014").iterdir())
    out = tmp_path / "out"
    write_parquet(toys, out, ["train"], max_shard_size=biggest, progress=False)
    names = _names(out / "data")
    assert len(names) > 2
    assert names == [f"train-{number:05}-of-{len(names):05}.parquet" for number in range(len(names))]
    ref_ids = [ref_id for name in names for ref_id in pq.read_table(out / "data" / name)["ref_id"].to_pylist()]
    assert ref_ids == [0, 1, 2, 4, 5]
    assert list(DataSource("out", str(tmp_path)).load("train")["ref_id"]) == ref_ids


def test_a_image_of_many_rows_is_stored_once(tmp_path):
    folder = tmp_path / "one"
    folder.mkdir()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (200, 200, 3), np.uint8)).save(folder / "a.png")
    line = {"file_name": "a.png", "sentence": "noise", "mask": UPRIGHT}
    (folder / "metadata.jsonl").write_text("\n".join([json.dumps(line)] * 50))
    write_parquet(DataSource("one", str(tmp_path)), tmp_path / "out", progress=False)
    (shard,) = (tmp_path / "out" / "data").iterdir()
    assert shard.stat().st_size < 1.2 * (folder / "a.png").stat().st_size
    assert {len(row["image"]["bytes"]) for row in pq.read_table(shard).to_pylist()} == {
        (folder / "a.png").stat().st_size
    }


def test_batches_bound_the_memory():
    sizes = [5, 4, 4, 20, 1, 1]
    rows = ({"image": {"bytes": bytes(size)}} for size in sizes)
    batches = [[len(row["image"]["bytes"]) for row in batch] for batch in parquet._batches(rows, 10)]
    assert batches == [[5, 4], [4], [20], [1, 1]]


def test_a_bad_row_stops_or_is_left_out(toys, tmp_path):
    images = tmp_path / "images" / "train2014"
    (images / "b.png").write_bytes(b"no image")
    Image.new("RGB", (8, 9)).save(images / "a é.jpg")
    with pytest.raises(BadRowError, match=r"reference 0: .*a é.jpg is 8x9 pixels, its mask 40x30"):
        write_parquet(toys, tmp_path / "out", ["train"], progress=False)
    assert not (tmp_path / "out").exists()
    bad_rows = BadRows()
    assert write_parquet(toys, tmp_path / "out", ["train"], bad_rows=bad_rows, progress=False) == {"train": 2}
    assert bad_rows.counts() == {"image_damaged": 1, "mask_malformed": 2}
    with pytest.raises(ValueError, match="toys val: no good row is left"):
        write_parquet(toys, tmp_path / "other", ["val"], bad_rows=bad_rows, progress=False)
    assert not (tmp_path / "other").exists()


def test_a_image_that_goes_while_it_is_read_is_named(toys, tmp_path):
    rows = toys.load("train")
    (tmp_path / "images" / "train2014" / "c.jpg").unlink()
    with pytest.raises(MissingImageError, match=r"reference 4: .*c.jpg is missing"):
        list(parquet._stored(rows, None))


def test_a_full_disk_leaves_nothing_behind(toys, tmp_path):
    former = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, former[1]))  # no file may grow beyond
    try:
        with pytest.raises(
            OSError, match=r"out: cannot be written .*: make room .* nothing was left behind"
        ) as caught:
            write_parquet(toys, tmp_path / "out", progress=False)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, former)
    assert "\n" not in str(caught.value)
    assert _names(tmp_path) == ["images", "toys"]


def test_what_breaks_off_leaves_the_old_one(toys, tmp_path, monkeypatch):
    out = tmp_path / "out"
    write_parquet(toys, out, ["val"], progress=False)
    before = {file: file.read_bytes() for file in out.rglob("*.*")}

    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(parquet, "dataset_card", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_parquet(toys, out, overwrite=True, progress=False)
    assert {file: file.read_bytes() for file in out.rglob("*.*")} == before
    monkeypatch.undo()
    write_parquet(toys, out, ["train"], overwrite=True, progress=False)
    assert _names(out / "data") == ["train-00000-of-00001.parquet"]
    assert _names(tmp_path) == ["images", "out", "toys"]


def test_only_what_a_conversion_wrote_is_ever_replaced(toys, tmp_path):
    with pytest.raises(FileExistsError, match=r"toys: holds instances.json, which no conversion wrote"):
        write_parquet(toys, tmp_path / "toys", overwrite=True, progress=False)
    out = tmp_path / "out"
    out.mkdir()
    write_parquet(toys, out, ["val"], progress=False)  # an empty folder is nobody's
    with pytest.raises(FileExistsError, match=r"out: is there already .*--overwrite"):
        write_parquet(toys, out, ["val"], progress=False)
    with pytest.raises(FileExistsError, match="is a file"):
        write_parquet(toys, out / "README.md", progress=False)


def test_a_place_that_cannot_be_written(toys, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match=r"file/out: cannot be written \(.*File exists: .*file\): name another folder"):
        write_parquet(toys, tmp_path / "file" / "out", progress=False)


def test_an_error_of_the_source_is_not_taken_for_the_disks(toys, tmp_path, monkeypatch):
    def refused(*_):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), "elsewhere/refs.p")

    monkeypatch.setattr(DataSource, "load", refused)
    with pytest.raises(PermissionError, match=r"elsewhere/refs\.p"):
        write_parquet(toys, tmp_path / "out", ["val"], progress=False)


@pytest.mark.parametrize(("text", "size"), [("500MB", 500_000_000), ("1.5 gb", 1_500_000_000), ("7KB", 7000), (9, 9)])
def test_shard_sizes(text, size):
    assert shard_bytes(text) == size


@pytest.mark.parametrize("text", ["", "500", "MB", "-1MB", "0MB", "5TB"])
def test_a_shard_size_that_is_none(text):
    with pytest.raises(ValueError, match="give a number with KB, MB or GB"):
        shard_bytes(text)


def test_a_split_that_datasets_could_not_read(toys, tmp_path):
    with pytest.raises(ValueError, match="split 'a-b': `datasets` allows"):
        write_parquet(toys, tmp_path / "out", ["a-b"], progress=False)
