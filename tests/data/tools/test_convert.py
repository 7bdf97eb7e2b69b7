"""`write_parquet` keeps rows, masks and image bytes, and never leaves partial output."""

import errno
import json
import os
import pathlib
import pickle
import resource

import datasets
import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import ExifTags, Image

from detris_peft.atomic import recover
from detris_peft.data import FEATURES, decode_row
from detris_peft.data.errors import BadRowError, BadRows, MissingImageError
from detris_peft.data.sources import DataSource
from detris_peft.data.tools import convert
from detris_peft.data.tools.convert import shard_bytes, write_parquet
from tests.helpers.kills import run_killed

HEIGHT, WIDTH = 30, 40
UPRIGHT = [5.0, 5.0, 20.0, 5.0, 20.0, 15.0, 5.0, 15.0]


@pytest.fixture
def toys(tmp_path):
    """A dataset in REFER's layout: a JPEG, a transparent PNG and a JPEG with EXIF rotation; two references each."""
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


def test_rows_masks_and_image_bytes_are_kept(toys, tmp_path):
    out = tmp_path / "out" / "toys-parquet"
    assert write_parquet(toys, out, progress=False) == {"train": 5, "val": 1}
    assert _names(out.parent) == ["toys-parquet"]
    assert _names(out) == [".detris_peft", "README.md", "data"]
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


def test_datasets_loads_the_output_as_images(toys, tmp_path):
    write_parquet(toys, tmp_path / "out", progress=False)
    loaded = datasets.load_dataset(str(tmp_path / "out"))
    assert list(loaded) == ["train", "val"]
    assert type(loaded["train"].features["image"]) is datasets.Image
    rotated = loaded["train"][4]
    assert rotated["file_name"] == "c.jpg"
    assert rotated["image"].size == (HEIGHT, WIDTH)  # after EXIF rotation
    assert rotated["mask"]["size"] == [WIDTH, HEIGHT]


def test_a_split_whose_name_is_the_prefix_of_another(toys, tmp_path):
    file = tmp_path / "toys" / "refs(unc).p"
    references = pickle.loads(file.read_bytes())
    for number, reference in enumerate(references):
        reference["split"] = "testA" if number else "test"
    file.write_bytes(pickle.dumps(references))
    write_parquet(toys, tmp_path / "out", progress=False)
    loaded = datasets.load_dataset(str(tmp_path / "out"))
    assert {split: list(rows["ref_id"]) for split, rows in loaded.items()} == {"test": [0], "testA": [1, 2, 3, 4, 5]}


def test_shards_keep_the_row_order_and_the_size_limit(toys, tmp_path):
    largest = max(os.path.getsize(path) for path in (tmp_path / "images/train2014").iterdir())
    out = tmp_path / "out"
    write_parquet(toys, out, ["train"], max_shard_size=largest, progress=False)
    names = _names(out / "data")
    assert len(names) > 2
    assert names == [f"train-{number:05}-of-{len(names):05}.parquet" for number in range(len(names))]
    ref_ids = [ref_id for name in names for ref_id in pq.read_table(out / "data" / name)["ref_id"].to_pylist()]
    assert ref_ids == [0, 1, 2, 4, 5]
    assert list(DataSource("out", str(tmp_path)).load("train")["ref_id"]) == ref_ids


def test_an_image_of_many_rows_is_stored_once(tmp_path):
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


def test_batches_limit_the_memory():
    sizes = [5, 4, 4, 20, 1, 1]
    rows = ({"image": {"bytes": bytes(size)}} for size in sizes)
    batches = [[len(row["image"]["bytes"]) for row in batch] for batch in convert._batches(rows, 10)]
    assert batches == [[5, 4], [4], [20], [1, 1]]


def test_invalid_rows_raise_or_are_skipped(toys, tmp_path):
    images = tmp_path / "images" / "train2014"
    (images / "b.png").write_bytes(b"no image")
    Image.new("RGB", (8, 9)).save(images / "a é.jpg")
    with pytest.raises(BadRowError, match=r"a é.jpg: expected a mask of 8x9 pixels, .* got 40x30 for reference 0"):
        write_parquet(toys, tmp_path / "out", ["train"], progress=False)
    assert not (tmp_path / "out").exists()
    bad_rows = BadRows()
    assert write_parquet(toys, tmp_path / "out", ["train"], bad_rows=bad_rows, progress=False) == {"train": 2}
    assert bad_rows.counts() == {"image_damaged": 1, "mask_malformed": 2}
    with pytest.raises(ValueError, match="toys val: expected at least one valid row, got none"):
        write_parquet(toys, tmp_path / "other", ["val"], bad_rows=bad_rows, progress=False)
    assert not (tmp_path / "other").exists()


def test_an_image_that_disappears_during_the_conversion_is_named(toys, tmp_path):
    rows = toys.load("train")
    (tmp_path / "images" / "train2014" / "c.jpg").unlink()
    with pytest.raises(MissingImageError, match=r"c.jpg: the image is missing; .*reference 4"):
        list(convert._embed_images(rows, None))


def test_a_full_disk_leaves_nothing_behind(toys, tmp_path):
    previous = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, previous[1]))  # maximum file size
    try:
        with pytest.raises(
            OSError, match=r"out: cannot be written .*; free disk space .* no partial output was kept"
        ) as caught:
            write_parquet(toys, tmp_path / "out", progress=False)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, previous)
    assert "\n" not in str(caught.value)
    assert _names(tmp_path) == ["images", "toys"]


def test_an_interrupted_replacement_keeps_the_old_output(toys, tmp_path, monkeypatch):
    out = tmp_path / "out"
    write_parquet(toys, out, ["val"], progress=False)
    before = {file: file.read_bytes() for file in out.rglob("*.*")}

    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(convert, "dataset_card", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_parquet(toys, out, overwrite=True, progress=False)
    assert {file: file.read_bytes() for file in out.rglob("*.*")} == before
    monkeypatch.undo()
    write_parquet(toys, out, ["train"], overwrite=True, progress=False)
    assert _names(out / "data") == ["train-00000-of-00001.parquet"]
    assert _names(tmp_path) == ["images", "out", "toys"]


def test_a_failed_replacement_restores_the_old_output(toys, tmp_path, monkeypatch):
    out = tmp_path / "out"
    write_parquet(toys, out, ["val"], progress=False)
    before = {file: file.read_bytes() for file in out.rglob("*.*")}
    rename = pathlib.Path.rename

    def fail_on_staging(path, target):
        if path.name.endswith(".part"):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        return rename(path, target)

    monkeypatch.setattr(pathlib.Path, "rename", fail_on_staging)
    with pytest.raises(OSError, match=r"out: cannot be written"):
        write_parquet(toys, out, ["train"], overwrite=True, progress=False)
    assert {file: file.read_bytes() for file in out.rglob("*.*")} == before
    assert _names(tmp_path) == ["images", "out", "toys"]


def test_only_the_output_of_a_conversion_is_replaced(toys, tmp_path):
    with pytest.raises(ValueError, match=r"--output .*images: expected an empty folder or one that detris wrote"):
        write_parquet(toys, tmp_path / "images", overwrite=True, progress=False)
    out = tmp_path / "out"
    out.mkdir()
    write_parquet(toys, out, ["val"], progress=False)  # an empty folder may be used
    with pytest.raises(ValueError, match=r"--output .*out: expected a new folder, got an existing one.*--overwrite"):
        write_parquet(toys, out, ["val"], progress=False)
    with pytest.raises(ValueError, match="expected a folder to write, got a file"):
        write_parquet(toys, out / "README.md", progress=False)
    (out / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match=r"expected only files that this command wrote, got notes\.txt; move it"):
        write_parquet(toys, out, ["val"], overwrite=True, progress=False)


def test_a_readme_of_the_user_is_not_replaced(toys, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (out / "README.md").write_text("# My project\n")
    with pytest.raises(ValueError, match="expected an empty folder or one that detris wrote"):
        write_parquet(toys, out, ["val"], overwrite=True, progress=False)
    assert _names(out) == ["README.md"]


def test_the_output_of_an_earlier_version_is_replaced(toys, tmp_path):
    out = tmp_path / "out"
    write_parquet(toys, out, ["val"], progress=False)
    (out / ".detris_peft").unlink()
    assert write_parquet(toys, out, ["train"], overwrite=True, progress=False) == {"train": 5}


@pytest.mark.parametrize(
    ("output", "message"),
    [
        (".", "expected a new folder, got the working directory"),
        ("..", "expected a new folder, got the working directory"),
        ("toys", "expected another folder than the dataset's own"),
    ],
)
def test_folders_that_must_not_be_replaced(toys, tmp_path, monkeypatch, output, message):
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty" if output.startswith(".") else tmp_path)
    with pytest.raises(ValueError, match=f"--output .*: {message}"):
        write_parquet(toys, output, overwrite=True, progress=False)
    assert _names(tmp_path) == ["empty", "images", "toys"]


def test_a_folder_that_cannot_be_created(toys, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match=r"expected a path in a folder, got .*file, which is a file"):
        write_parquet(toys, tmp_path / "file" / "out", progress=False)


def test_errors_of_the_source_are_not_reported_as_write_errors(toys, tmp_path, monkeypatch):
    def denied(*_):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), "elsewhere/refs.p")

    monkeypatch.setattr(DataSource, "load", denied)
    with pytest.raises(PermissionError, match=r"elsewhere/refs\.p"):
        write_parquet(toys, tmp_path / "out", ["val"], progress=False)


@pytest.mark.parametrize(("text", "size"), [("500MB", 500_000_000), ("1.5 gb", 1_500_000_000), ("7KB", 7000), (9, 9)])
def test_shard_sizes(text, size):
    assert shard_bytes(text) == size


@pytest.mark.parametrize("text", ["", "500", "MB", "-1MB", "0MB", "5TB"])
def test_invalid_shard_sizes_raise(text):
    with pytest.raises(ValueError, match="expected a number with KB, MB or GB"):
        shard_bytes(text)


def test_a_split_name_that_datasets_cannot_load_raises(toys, tmp_path):
    with pytest.raises(ValueError, match=r"expected a split name of letters, .*got 'a-b'"):
        write_parquet(toys, tmp_path / "out", ["a-b"], progress=False)


@pytest.mark.parametrize("name", ["set[1]", "set*", "set?", "exp[2]/set", "a]b"])
def test_wildcards_in_a_path_are_names(toys, tmp_path, monkeypatch, name):
    """`datasets` reads folders whose names match the path as a pattern."""
    write_parquet(toys, tmp_path / name, ["train"], progress=False)
    for other in ("set1", "set2", "exp2/set"):
        write_parquet(toys, tmp_path / other, ["val"], progress=False)
    path = tmp_path / name
    assert DataSource(str(path)).splits() == ["train"]
    monkeypatch.chdir(path.parent)
    for streaming in (False, True):
        rows = DataSource(path.name, streaming=streaming).load("train")
        assert [row["ref_id"] for row in rows] == [0, 1, 2, 4, 5]
    (path / "README.md").unlink()  # the splits are then known from the names of the files
    assert list(DataSource(path.name).load("train")["ref_id"]) == [0, 1, 2, 4, 5]


def test_a_replaced_file_with_the_same_modification_time_is_read(toys, tmp_path):
    out = tmp_path / "out"
    write_parquet(toys, out, ["train"], progress=False)
    (file,) = (out / "data").iterdir()
    times = (file.stat().st_atime_ns, file.stat().st_mtime_ns)
    assert list(DataSource(str(out)).load("train")["ref_id"]) == [0, 1, 2, 4, 5]
    rows = pq.read_table(file)
    pq.write_table(rows.take([4, 3, 2, 1, 0]), tmp_path / "new.parquet")
    (tmp_path / "new.parquet").replace(file)
    os.utime(file, ns=times)
    assert list(DataSource(str(out)).load("train")["ref_id"]) == [5, 4, 2, 1, 0]


def test_a_linked_data_folder_is_read(toys, tmp_path):
    write_parquet(toys, tmp_path / "out", ["train"], progress=False)
    (tmp_path / "link").mkdir()
    (tmp_path / "link" / "data").symlink_to(tmp_path / "out" / "data")
    (tmp_path / "link" / "loop").symlink_to(tmp_path / "link")
    assert list(DataSource(str(tmp_path / "link")).load("train")["ref_id"]) == [0, 1, 2, 4, 5]


@pytest.mark.parametrize("name", ["../b.png", "{root}/b.png", "link.png", "linked/b.png"])
def test_files_outside_of_the_dataset_are_copied_only_on_request(tmp_path, name):
    """A downloaded dataset could otherwise publish any image of the machine."""
    folder = tmp_path / "set"
    folder.mkdir()
    Image.new("RGB", (WIDTH, HEIGHT)).save(tmp_path / "b.png")
    (folder / "link.png").symlink_to(tmp_path / "b.png")
    (folder / "linked").symlink_to(tmp_path)
    line = {"file_name": name.format(root=tmp_path), "sentence": "it", "mask": UPRIGHT}
    (folder / "metadata.jsonl").write_text(json.dumps(line))
    source = DataSource(str(folder))
    for bad_rows in (None, BadRows()):
        with pytest.raises(ValueError, match=r"is not in the folder .*set; copy it there, or pass --allow_outside"):
            write_parquet(source, tmp_path / "out", bad_rows=bad_rows, progress=False)
    assert not (tmp_path / "out").exists()
    assert write_parquet(source, tmp_path / "out", allow_outside=True, progress=False) == {"train": 1}


def test_a_damaged_image_is_not_converted(toys, tmp_path):
    """Its header is intact, so only decoding finds the damage."""
    file = tmp_path / "images" / "train2014" / "c.jpg"
    file.write_bytes(file.read_bytes()[:-200])
    with pytest.raises(BadRowError, match=r"c\.jpg"):
        write_parquet(toys, tmp_path / "out", ["train"], progress=False)


def test_an_empty_dataset_is_not_converted(tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "metadata.jsonl").touch()
    with pytest.raises(ValueError, match="empty: expected at least one row, got an empty dataset"):
        write_parquet(DataSource(str(tmp_path / "empty")), tmp_path / "out", progress=False)
    assert not (tmp_path / "out").exists()


def _references(folder):
    """Return the reference ids of each split, read as users do."""
    source = DataSource(str(folder))
    return {split: source.load(split)["ref_id"][:] for split in source.splits()}


@pytest.mark.slow
def test_a_killed_conversion_leaves_the_old_or_the_new_dataset(toys, tmp_path):
    """The process is killed at every change of a folder; the next command reads a complete dataset."""
    out = tmp_path / "out"
    old, new = {"val": [3]}, {"train": [0, 1, 2, 4, 5], "val": [3]}
    write_parquet(toys, out, ["val"], progress=False)
    kills, seen = 0, []
    while run_killed(lambda: write_parquet(toys, out, overwrite=True, max_shard_size=9000, progress=False), kills + 1):
        kills += 1
        seen.append(_references(out))
        assert seen[-1] in (old, new)
        if seen[-1] == new:
            write_parquet(toys, out, ["val"], overwrite=True, progress=False)
        recover(out)  # so that every process starts with the same operations
        assert _names(tmp_path) == ["cache", "images", "out", "toys"]
    assert kills >= 20
    assert old in seen
    assert new in seen
    assert _references(out) == new
    assert _names(tmp_path) == ["cache", "images", "out", "toys"]
