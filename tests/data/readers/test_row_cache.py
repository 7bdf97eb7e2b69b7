"""The row cache: the same rows, errors and notices as without it, whatever happens to its files."""

import errno
import json
import os
import pickle
import shutil
import threading
import warnings
from concurrent.futures import ThreadPoolExecutor

import datasets
import pytest
from PIL import Image

from detris_peft.data import FEATURES, MissingImageError, load_grefer, load_mixed, load_refer
from detris_peft.data.errors import BadRowError, BadRows, collect_notices, notice
from detris_peft.data.readers import refer_files, row_cache
from detris_peft.data.readers.row_cache import BuiltRows, cached_rows, share_rows
from detris_peft.data.sources import DataSource
from detris_peft.data.tools.check import check_data
from tests.helpers.kills import run_killed

SIDE = 8


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """A cache of its own for each test, also for small datasets."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(row_cache, "MIN_BYTES", 0)
    return tmp_path / "cache"


@pytest.fixture
def root(tmp_path):
    write_set(tmp_path / "data", "toys/refs(unc).p")
    return tmp_path / "data"


def write_set(root, refs_file, ann_id=lambda number: number):
    """Write a dataset with images in two folders, an invalid row of each split, and one without a split."""
    file = root / refs_file
    file.parent.mkdir(parents=True, exist_ok=True)
    (root / "images/train2014/deep").mkdir(parents=True, exist_ok=True)
    images, annotations, references = [], [], []
    for number in range(12):
        name = f"{number}.jpg" if number % 3 else f"deep\\{number}.jpg"
        images.append({"id": number, "file_name": name, "height": SIDE, "width": SIDE})
        polygon = [] if number in (4, 7) else [[1, 1, 6, 1, 6, 2 + number % 5]]
        annotations.append({"id": number, "image_id": number, "segmentation": polygon})
        sentences = [
            {"sent_id": 2 * number + i, "sent": f"{text} {number} é"} for i, text in enumerate(("one", "two"))
        ]
        reference = {"ref_id": number, "ann_id": ann_id(number), "image_id": number, "sentences": sentences}
        references.append(reference | {"split": None if number == 6 else "val" if number % 4 == 3 else "train"})
        image_file = root / "images/train2014" / name.replace("\\", "/")
        Image.new("RGB", (SIDE, SIDE), (number, 0, 0)).save(image_file)
    content = json.dumps(references).encode() if file.suffix == ".json" else pickle.dumps(references, 2)
    file.write_bytes(content)
    (file.parent / "instances.json").write_text(json.dumps({"images": images, "annotations": annotations}))


def read(load, *arguments, **options):
    """Return the rows, errors and notices of a split."""
    bad_rows = BadRows()
    with collect_notices() as notices:
        rows = load(*arguments, bad_rows=bad_rows, **options)
    assert rows.features == FEATURES
    assert isinstance(rows.features["image"], type(FEATURES["image"]))
    content = rows.cast_column("image", datasets.Image(decode=False))[:]
    return content, [(type(error), error.kind, str(error)) for error in bad_rows], notices


def refuse_reading(monkeypatch):
    def refuse(file):
        raise AssertionError(f"{file} was read")

    monkeypatch.setattr(refer_files, "read_json", refuse)
    monkeypatch.setattr(refer_files, "load_plain_pickle", refuse)


def folders(cache):
    return [path for path in (cache / "detris_rows_v1").iterdir() if path.is_dir()]


# -- the same rows ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("split", ["train", "val"])
@pytest.mark.parametrize(
    ("refs_file", "ann_id", "load", "arguments"),
    [
        ("toys/refs(unc).p", int, load_refer, ("toys", "unc")),
        ("grefcoco/grefs(unc).json", lambda number: [number] if number % 5 else [-1], load_grefer, ()),
    ],
    ids=["refer", "grefcoco"],
)
def test_rows_errors_and_notices_are_those_without_a_cache(
    tmp_path, monkeypatch, refs_file, ann_id, load, arguments, split
):
    root = tmp_path / "data"
    write_set(root, refs_file, ann_id)
    (root / "images/train2014/11.jpg").unlink()
    (root / "images/train2014/8.jpg").rename(root / "8.jpg")
    (root / "images/train2014/8.jpg").symlink_to(root / "8.jpg")
    with monkeypatch.context() as patch:
        patch.setattr(row_cache, "MIN_BYTES", 2**40)
        expected = read(load, root, *arguments, split)
    rows, errors, notices = expected
    assert rows["ref_id"] == ([0, 1, 2, 5, 8, 9, 10] if split == "train" else [3])
    assert [kind for _, kind, _ in errors][-1] == ("row_malformed" if split == "train" else "image_missing")
    assert len(notices) == (split == "train")
    assert read(load, root, *arguments, split) == expected
    refuse_reading(monkeypatch)
    assert read(load, root, *arguments, split) == expected
    with pytest.raises(BadRowError) as caught:  # the first error
        load(root, *arguments, split)
    assert str(caught.value) == errors[0][2]


def test_mixed_rows_are_those_without_a_cache(tmp_path, monkeypatch):
    for name in ("refcoco/refs(unc).p", "refcoco+/refs(unc).p", "refcocog/refs(umd).p"):
        write_set(tmp_path, name)
    references = pickle.loads((tmp_path / "refcoco+/refs(unc).p").read_bytes())
    references[0]["split"] = "testA"
    (tmp_path / "refcoco+/refs(unc).p").write_bytes(pickle.dumps(references))
    with monkeypatch.context() as patch:
        patch.setattr(row_cache, "MIN_BYTES", 2**40)
        expected = read(load_mixed, tmp_path)
    assert 0 not in expected[0]["ref_id"]  # held out by refcoco+
    assert read(load_mixed, tmp_path) == expected
    refuse_reading(monkeypatch)
    assert read(load_mixed, tmp_path) == expected
    assert "images, with" in load_mixed(tmp_path, bad_rows=BadRows()).info.description


def test_a_moved_dataset_uses_the_same_rows_and_is_named_in_errors(root, tmp_path, monkeypatch):
    expected = read(load_refer, root, "toys", "unc", "train")
    moved = tmp_path / "moved"
    root.rename(moved)
    (moved / "images/train2014").rename(moved / "photos")
    refuse_reading(monkeypatch)
    rows, errors, _ = read(load_refer, moved, "toys", "unc", "train", image_folder="photos")
    assert rows["ref_id"] == expected[0]["ref_id"]
    assert rows["image"][0] == {"bytes": None, "path": str(moved / "photos/deep/0.jpg")}
    assert errors == [(cls, kind, message.replace(str(root), str(moved))) for cls, kind, message in expected[1]]
    assert len(errors) == 2


def test_images_are_looked_up_at_every_load(root):
    assert len(load_refer(root, "toys", "unc", "val", bad_rows=BadRows())) == 2
    (root / "images/train2014/11.jpg").unlink()
    bad_rows = BadRows()
    assert load_refer(root, "toys", "unc", "val", bad_rows=bad_rows)["ref_id"][:] == [3]
    assert isinstance(bad_rows[-1], MissingImageError)


def test_changed_content_is_read_again_even_if_size_and_time_are_the_same(root):
    before = read(load_refer, root, "toys", "unc", "val")
    file = root / "toys/instances.json"
    status, text = file.stat(), file.read_text()
    file.write_text(text.replace("[[1, 1, 6, 1, 6, 5]]", "[[1, 1, 6, 1, 6, 4]]"))
    os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert file.stat().st_size == status.st_size
    assert read(load_refer, root, "toys", "unc", "val")[0]["mask"] != before[0]["mask"]


def test_pickled_rows_are_mapped_again(root):
    """DataLoader workers that are spawned receive the rows as a pickle."""
    rows = load_refer(root, "toys", "unc", "train", bad_rows=BadRows())
    pickled = pickle.dumps(rows)
    assert rows["sentences"][0][0].encode() not in pickled
    assert pickle.loads(pickled).remove_columns("image")[:] == rows.remove_columns("image")[:]


def test_small_datasets_are_not_cached(root, cache, monkeypatch):
    monkeypatch.setattr(row_cache, "MIN_BYTES", 10_000)
    assert load_refer(root, "toys", "unc", "train", bad_rows=BadRows()).cache_files == []
    assert not cache.exists()


def test_many_references_without_a_split_are_one_error(root, monkeypatch):
    monkeypatch.setattr(refer_files, "_MAX_ERRORS", 1)
    with pytest.raises(ValueError, match=r"refs\(unc\).p: expected references with a 'split', got 1 without one"):
        load_refer(root, "toys", "unc", "train")


# -- files of the cache -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["rows.arrow", "index.json", "manifest.json"])
@pytest.mark.parametrize("damage", ["flip", "truncate", "remove", "folder"])
def test_damaged_files_are_built_again(root, cache, monkeypatch, name, damage):
    expected = read(load_refer, root, "toys", "unc", "train")
    file = folders(cache)[0] / name
    data = bytearray(file.read_bytes())
    file.unlink()
    if damage == "folder":
        file.mkdir()
    elif damage != "remove":
        data[len(data) // 2] ^= 255
        file.write_bytes(data[:10] if damage == "truncate" else data)
    assert read(load_refer, root, "toys", "unc", "train") == expected
    refuse_reading(monkeypatch)
    assert read(load_refer, root, "toys", "unc", "train") == expected


@pytest.mark.parametrize("kind", ["link", "file"])
def test_a_link_or_file_in_place_of_an_entry_is_replaced_itself(root, cache, tmp_path, monkeypatch, kind):
    expected = read(load_refer, root, "toys", "unc", "train")
    (entry,) = folders(cache)
    outside = entry.rename(tmp_path / "outside")
    (outside / "index.json").write_text("{}")
    if kind == "link":
        entry.symlink_to(outside)
    else:
        entry.touch()
    assert read(load_refer, root, "toys", "unc", "train") == expected
    assert entry.is_dir()
    assert not entry.is_symlink()
    assert (outside / "index.json").read_text() == "{}"  # not written through the link
    refuse_reading(monkeypatch)
    assert read(load_refer, root, "toys", "unc", "train") == expected


def test_a_cache_that_may_not_be_searched_is_read_past_with_a_warning(root, monkeypatch):
    def refuse(*_):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(row_cache, "manifest_problem", refuse)
    monkeypatch.setattr(row_cache, "lock_file", refuse)
    with pytest.warns(UserWarning, match="Permission denied"):
        assert len(load_refer(root, "toys", "unc", "train", bad_rows=BadRows()))


def test_without_a_writable_cache_rows_are_read_with_a_warning(root, cache, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(row_cache, "MIN_BYTES", 2**40)
        expected = read(load_refer, root, "toys", "unc", "train")
    cache.write_text("not a folder")
    with pytest.warns(UserWarning, match=r"cache/detris_rows_v1: expected to write a cache .* set HF_DATASETS_CACHE"):
        assert read(load_refer, root, "toys", "unc", "train") == expected


def test_a_full_disk_leaves_no_files_and_reads_once(root, cache, monkeypatch):
    def fail(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(row_cache, "write_manifest", fail)
    reads = count_reads(monkeypatch)
    with pytest.warns(UserWarning, match=r"got an error \(No space left on device\)"):
        assert len(load_refer(root, "toys", "unc", "train", bad_rows=BadRows())) == 7
    assert reads == ["refs(unc).p", "instances.json"]
    assert [path.suffix for path in (cache / "detris_rows_v1").iterdir()] == [".lock"]


def test_rows_on_a_read_only_disk_are_used(root, monkeypatch):
    expected = read(load_refer, root, "toys", "unc", "train")

    def fail(*_):
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(row_cache, "lock_file", fail)
    refuse_reading(monkeypatch)
    assert read(load_refer, root, "toys", "unc", "train") == expected


def test_a_file_that_changes_while_it_is_read_is_not_cached(tmp_path, cache):
    file = tmp_path / "key"
    file.write_text("old")

    def build():
        file.write_text("new")
        return BuiltRows({"train": []})

    assert cached_rows([file], {}, build).splits == ["train"]
    assert not folders(cache)


# -- several processes ------------------------------------------------------------------------------------------------


def test_one_builds_while_others_wait(tmp_path):
    file, started, builds = tmp_path / "key", threading.Barrier(4), []
    file.write_text("content")

    def build():
        builds.append(threading.get_ident())
        return BuiltRows({"train": [BadRowError("a bad row")]}, details=len(builds))

    def load(_):
        started.wait()
        return cached_rows([file], {"reader": "test"}, build).details

    with ThreadPoolExecutor(4) as threads:  # each has a lock of its own, as processes have
        assert [*threads.map(load, range(4))] == [1] * 4
    assert len(builds) == 1


def test_whoever_waits_too_long_reads_the_files(tmp_path, monkeypatch):
    file, building, done = tmp_path / "key", threading.Event(), threading.Event()
    file.write_text("content")
    monkeypatch.setattr(row_cache, "_MAX_WAIT", 0)

    def build_slowly():
        building.set()
        done.wait(10)
        return BuiltRows({"slow": []})

    with ThreadPoolExecutor(1) as threads:
        slow = threads.submit(cached_rows, [file], {}, build_slowly)
        building.wait(10)
        with pytest.warns(UserWarning, match="another process has been using it"):
            assert cached_rows([file], {}, lambda: BuiltRows({"own": []})).splits == ["own"]
        done.set()
        assert slow.result().splits == ["slow"]


def test_a_killed_builder_leaves_nothing_and_blocks_nobody(root, cache):
    expected, at = read(load_refer, root, "toys", "unc", "train"), 1
    while True:
        shutil.rmtree(cache, ignore_errors=True)
        if at % 2:  # replace damaged rows
            load_refer(root, "toys", "unc", "train", bad_rows=BadRows())
            (folders(cache)[0] / "rows.arrow").write_bytes(b"damaged")
        killed = run_killed(lambda: load_refer(root, "toys", "unc", "train", bad_rows=BadRows()), at)
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # the cache can be written
            assert read(load_refer, root, "toys", "unc", "train") == expected
        names = [path.name for path in (cache / "detris_rows_v1").iterdir()]
        assert len(names) == 2  # the rows and the lock
        if not killed:
            break
        at += 1
    assert at > 5


def test_a_failed_build_is_repeated(tmp_path, cache):
    file = tmp_path / "key"
    file.write_text("content")

    def fail():
        raise ValueError("damaged")

    for _ in range(2):
        with pytest.raises(ValueError, match="damaged"):
            cached_rows([file], {}, fail)
    assert not folders(cache)
    assert cached_rows([file], {}, lambda: BuiltRows({"val": []})).splits == ["val"]


# -- reading once -----------------------------------------------------------------------------------------------------


def count_reads(monkeypatch):
    """Return a list to which the name of every file that is read is appended."""
    reads = []
    for name in ("read_json", "load_plain_pickle"):
        original = getattr(refer_files, name)
        monkeypatch.setattr(
            refer_files, name, lambda file, original=original: reads.append(file.name) or original(file)
        )
    return reads


@pytest.mark.parametrize("min_bytes", [0, 2**40], ids=["cached", "small"])
def test_check_reads_each_file_once(root, monkeypatch, min_bytes):
    monkeypatch.setattr(row_cache, "MIN_BYTES", min_bytes)
    reads = count_reads(monkeypatch)
    reports = check_data(DataSource("toys", str(root)), progress=False)
    assert reads == ["refs(unc).p", "instances.json"]
    assert {report.split: report.references for report in reports} == {"train": 7, "val": 2}


def test_splits_of_damaged_annotations_are_found_while_sharing(root):
    (root / "toys/instances.json").write_text("{")
    with share_rows():
        assert DataSource("toys", str(root)).splits() == ["train", "val"]


def test_notices_and_options_are_kept_apart(tmp_path):
    file = tmp_path / "key"
    file.write_text("content")

    def val_rows():
        notice("late", "while a split is read")
        yield from ()

    def build(kind):
        notice(kind, f"{file}: all splits")
        return BuiltRows({"val": val_rows(), "test": []})

    for kind in ("a", "b", "a"):
        rows = cached_rows([file], {"kind": kind}, lambda kind=kind: build(kind))
        with collect_notices() as notices:
            rows.select("val", None)
        assert notices == [(kind, f"{file}: all splits"), ("late", "while a split is read")]
        with collect_notices() as notices:
            rows.select("test", None)
        assert notices == [(kind, f"{file}: all splits")]
