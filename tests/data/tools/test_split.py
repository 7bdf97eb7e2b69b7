"""`split_dataset`: no near-duplicates in two splits, all fields kept, the same result on every machine."""

from __future__ import annotations

import errno
import json
import shutil

import datasets
import pytest
from PIL import Image

from detris_peft.atomic import recover
from detris_peft.data.errors import BadRowError, BadRows
from detris_peft.data.masks import decode_mask
from detris_peft.data.sources import DataSource
from detris_peft.data.tools.check import check_data
from detris_peft.data.tools.split import split_dataset
from tests.data.tools.coco_files import annotation, painted, square
from tests.data.tools.split_files import HEIGHT, WIDTH, divide, lines, photo, photos, write_photos
from tests.helpers.kills import run_killed


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))


def split_of_images(output):
    """Return the split of each image, by its bytes."""
    return {file.read_bytes(): file.parts[-3] for file in output.glob("*/images/*")}


def test_splits_have_the_requested_shares_and_pass_check(tmp_path):
    root = write_photos(tmp_path / "set" / "train", photos(20), references=3)
    result = divide(root, fractions=(0.7, 0.2, 0.1))
    assert {name: counts.references for name, counts in result.splits.items()} == {"train": 42, "val": 12, "test": 6}
    assert sum(counts.images for counts in result.splits.values()) == 20
    assert result.notices() == []
    source = DataSource(str(tmp_path / "out"))
    assert source.splits() == ["train", "val", "test"]
    for report in check_data(source, num_workers=1, progress=False):
        assert (report.errors, report.notices) == ([], [])
    assert len(datasets.load_dataset(str(tmp_path / "out"), split="train")) == 42


def test_rows_masks_ids_and_image_bytes_are_kept(tmp_path):
    root = write_photos(tmp_path / "set" / "train", photos(6), references=2)
    divide(root, fractions=(0.5, 0.5))
    source = {row["ref_id"]: row for row in DataSource(str(root)).load("train")}
    found = {}
    for split in ("train", "val"):
        for row in DataSource(str(tmp_path / "out")).load(split):
            found[row["ref_id"]] = row
    assert found.keys() == source.keys()
    for ref_id, row in found.items():
        same = ("sentences", "mask", "ann_id", "image_id", "category_id", "no_target")
        assert {name: row[name] for name in same} == {name: source[ref_id][name] for name in same}
    originals = {file.read_bytes() for file in root.glob("train/*.png")}
    assert split_of_images(tmp_path / "out").keys() == originals


def test_near_duplicates_are_in_one_split(tmp_path):
    images = photos(10)
    small = photo(3).resize((40, 30))
    images |= {"small.jpg": small, "mirrored.png": photo(3).transpose(Image.Transpose.FLIP_LEFT_RIGHT)}
    root = write_photos(tmp_path / "set" / "train", images)
    for seed in range(4):
        result = divide(root, seed=seed, fractions=(0.4, 0.3, 0.3))
        (group,) = result.groups
        names = ["003.png", "small.jpg", "mirrored.png"]
        assert group.images == [f"{group.split}/images/{name}" for name in names]
        assert all((tmp_path / "out" / name).is_file() for name in group.images)


def test_images_of_one_folder_are_in_one_split_on_request(tmp_path):
    train = write_photos(tmp_path / "set" / "train", photos(12)) / "train"
    metadata = (train / "metadata.jsonl").read_text()
    for name in photos(12):
        video = train / f"video{int(name[:3]) % 4}"
        video.mkdir(exist_ok=True)
        (train / name).rename(video / name)
        metadata = metadata.replace(f'"file_name": "{name}"', f'"file_name": "{video.name}/{name}"')
    (train / "metadata.jsonl").write_text(metadata)
    for seed in range(4):
        divide(train.parent, fractions=(0.4, 0.3, 0.3), seed=seed, keep_folders=True)
        found = {(file.parent.name, file.parts[-4]) for file in (tmp_path / "out").glob("*/images/*/*.png")}
        assert len(found) == 4
        assert len({split for _, split in found}) == 3
    metadata = metadata.replace("video1/", "video0/").replace("video2/", "video0/").replace("video3/", "video0/")
    for file in train.glob("video[123]/*"):
        file.rename(train / "video0" / file.name)
    (train / "metadata.jsonl").write_text(metadata)
    with pytest.raises(ValueError, match=r"12 images in 1 group of near-duplicates or folders; .*omit --keep_folders"):
        divide(train.parent, keep_folders=True)


def test_equal_files_of_one_color_are_in_one_split_and_others_are_not(tmp_path):
    colors = {f"{level}.png": Image.new("RGB", (40, 30), (level, 90, 60)) for level in range(0, 200, 40)}
    root = write_photos(tmp_path / "set" / "train", {**colors, "copy.png": colors["40.png"]})
    result = divide(root, fractions=(0.5, 0.5))
    assert [[name.split("/")[-1] for name in group.images] for group in result.groups] == [["40.png", "copy.png"]]


def test_the_result_does_not_depend_on_names_and_order(tmp_path):
    images = photos(12)
    renamed = {f"x{number}.png": image for number, image in enumerate(reversed(images.values()))}
    first = write_photos(tmp_path / "a" / "train", images)
    second = write_photos(tmp_path / "b" / "val", renamed)
    divide(first, tmp_path / "out-a", num_workers=0)
    divide(second, tmp_path / "out-b", num_workers=3)
    assert split_of_images(tmp_path / "out-a") == split_of_images(tmp_path / "out-b")
    divide(first, tmp_path / "out-c", seed=1)
    assert split_of_images(tmp_path / "out-a") != split_of_images(tmp_path / "out-c")


def test_the_same_call_writes_the_same_bytes(tmp_path):
    root = write_photos(tmp_path / "set" / "train", photos(5), license="CC0")
    contents = []
    for _ in range(2):
        divide(root)
        output = tmp_path / "out"
        contents.append({str(file.relative_to(output)): file.read_bytes() for file in output.rglob("*.*")})
    assert contents[0] == contents[1]
    assert len(contents[0]) > 10


def test_splits_of_a_source_are_joined_and_colliding_ids_are_new(tmp_path):
    root = write_photos(tmp_path / "set" / "train", photos(4), references=2)
    write_photos(tmp_path / "set" / "val", photos(4, start=4), references=2)
    result = divide(root, fractions=(0.5, 0.5))
    assert result.renumbered
    assert any("source_ref_id" in notice for notice in result.notices())
    written = [line for split in lines(tmp_path / "out").values() for line in split]
    assert sorted(line["ref_id"] for line in written) == list(range(1, 17))
    assert sorted(line["source_ref_id"] for line in written if line["source_split"] == "val") == list(range(1, 9))
    assert len({line["image_id"] for line in written}) == 8
    assert len({line["ann_id"] for line in written}) == 16
    # Both splits have a 000.png after this: names in the output are unique.
    result = divide(root, splits=["val"], fractions=(0.5, 0.5))
    assert not result.renumbered
    assert sum(counts.images for counts in result.splits.values()) == 4


def test_equal_names_of_different_splits_stay_different_images(tmp_path):
    root = write_photos(tmp_path / "set" / "train", {"a.png": photo(0), "b.png": photo(1)})
    write_photos(tmp_path / "set" / "val", {"a.png": photo(2), "b.png": photo(3)})
    divide(root, fractions=(0.75, 0.25))
    assert len(split_of_images(tmp_path / "out")) == 4
    names = {file.name for file in (tmp_path / "out" / "train" / "images").iterdir()}
    assert names in ({"a.png", "a-2.png", "b.png"}, {"a.png", "b.png", "b-2.png"})


def test_near_duplicates_of_different_source_splits_are_noticed(tmp_path):
    root = write_photos(tmp_path / "set" / "train", photos(4))
    write_photos(tmp_path / "set" / "val", {"again.jpg": photo(2), "new.png": photo(9)})
    result = divide(root, fractions=(0.5, 0.5))
    (group,) = result.groups
    assert group.source_splits == ["train", "val"]
    (notice,) = [text for text in result.notices() if "several splits" in text]
    assert "groups of near-duplicates from several splits of the source: 1 (2 images)" in notice
    assert "again.jpg" in notice


def test_fields_that_the_reader_does_not_know_are_kept(tmp_path):
    fields = {"license": "CC BY 2.0 <b>|", "url": "http://x/ü", "kinds": ["class"], "odd": {"a": [1, None, "\ud800"]}}
    root = write_photos(tmp_path / "set" / "train", photos(3), ref_id=None, **fields)
    divide(root)
    for (line,) in lines(tmp_path / "out").values():
        assert {name: line[name] for name in fields} == fields
    card = (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
    assert "| CC BY 2.0 (b)/ | 3 |" in card
    assert str(tmp_path) not in card


def test_flagged_masks_are_left_out_and_counted(tmp_path):
    root = write_photos(tmp_path / "set" / "train", photos(4))
    file = root / "train" / "metadata.jsonl"
    first, *others = file.read_text().splitlines()
    file.write_text("\n".join([json.dumps({**json.loads(first), "bad_mask": True}), *others]))
    result = divide(root)
    assert sum(counts.references for counts in result.splits.values()) == 3
    assert "lines that are not used because 'bad_mask' is true: 1" in result.notices()


def test_references_without_a_target_are_kept(tmp_path):
    root = write_photos(tmp_path / "set" / "train", photos(4))
    with open(root / "train" / "metadata.jsonl", "a") as file:
        file.write(json.dumps({"file_name": "000.png", "sentence": "the unicorn", "no_target": True}) + "\n")
    result = divide(root, fractions=(0.5, 0.5))
    assert sum(counts.no_target for counts in result.splits.values()) == 1
    output = DataSource(str(tmp_path / "out"))
    (row,) = [row for split in output.splits() for row in output.load(split) if row["no_target"]]
    assert row["sentences"] == ["the unicorn"]
    assert not decode_mask(row["mask"]).any()


def test_a_coco_file_and_parquet_with_embedded_images(tmp_path):
    boxes = [(10 + 8 * number, 10, 60 + 8 * number, 50 + 8 * number) for number in range(4)]
    (tmp_path / "coco").mkdir()
    for number, box in enumerate(boxes, start=1):
        Image.fromarray(painted((box, (220, 20, 20)))).save(tmp_path / "coco" / f"{number}.png")
    annotations = [
        {**annotation(number, "dog", box, number), "sentences": ["the dog"]} for number, box in enumerate(boxes, 1)
    ]
    content = {"images": [{"id": n, "file_name": f"{n}.png"} for n in range(1, 5)], "annotations": annotations}
    (tmp_path / "coco" / "set.json").write_text(json.dumps(content))
    options = {"fractions": (0.5, 0.5), "max_distance": 0, "progress": False}
    result = split_dataset(DataSource(str(tmp_path / "coco" / "set.json")), tmp_path / "out", **options)
    assert [counts.images for counts in result.splits.values()] == [2, 2]
    written = [line for split in lines(tmp_path / "out").values() for line in split]
    assert {(line["ref_id"], line["image_id"], line["category_id"]) for line in written} == {
        (number, number, 1) for number in range(1, 5)
    }

    from detris_peft.data.tools.convert import write_parquet

    write_parquet(DataSource(str(tmp_path / "out")), tmp_path / "parquet", progress=False)
    again = split_dataset(DataSource(str(tmp_path / "parquet")), tmp_path / "again", **options)
    assert [counts.images for counts in again.splits.values()] == [2, 2]
    assert split_of_images(tmp_path / "again") == split_of_images(tmp_path / "out")


def test_exif_rotation_is_kept(tmp_path):
    root = write_photos(tmp_path / "set" / "train", photos(3))
    exif = Image.Exif()
    exif[274] = 6  # the stored image is turned
    photo(0).save(root / "train" / "turned.jpg", exif=exif)
    line = {"file_name": "turned.jpg", "sentence": "it", "mask": square(2, 40, 20, 70)}
    with open(root / "train" / "metadata.jsonl", "a") as file:
        file.write(json.dumps(line) + "\n")
    divide(root)
    output = DataSource(str(tmp_path / "out"))
    (row,) = [row for split in output.splits() for row in output.load(split) if row["sentences"] == ["it"]]
    assert row["mask"]["size"] == [WIDTH, HEIGHT]
    assert row["image"].size == (HEIGHT, WIDTH)
    assert decode_mask(row["mask"])[40:70, 2:20].all()


def test_every_split_has_an_image_if_there_are_enough_groups(tmp_path):
    root = write_photos(tmp_path / "set" / "train", photos(3))
    result = divide(root, fractions=(0.98, 0.01, 0.01))
    assert [counts.images for counts in result.splits.values()] == [1, 1, 1]
    assert any(notice.startswith("val has 33.3% of the references instead of 1.0%") for notice in result.notices())


def test_too_few_images_are_an_error(tmp_path):
    root = write_photos(tmp_path / "set" / "train", photos(2))
    with pytest.raises(ValueError, match=r"expected at least 3 images for the splits train, val, test, got 2; add"):
        divide(root)
    copies = {f"{side}.png": photo(0).resize((side, side)) for side in range(40, 60)}
    root = write_photos(tmp_path / "copies" / "train", copies)
    with pytest.raises(ValueError, match=r"got 20 images in 1 group of near-duplicates; .* lower --max_distance"):
        divide(root)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"fractions": (0.5,)}, ValueError, "expected two or three numbers"),
        ({"fractions": (0.5, 0.4)}, ValueError, "expected a sum of 1, got 0.5 0.4"),
        ({"fractions": (1.2, -0.2)}, ValueError, "expected numbers above 0"),
        ({"fractions": (1, 0, 0)}, ValueError, "expected numbers above 0"),
        ({"fractions": (float("nan"), 0.5)}, ValueError, "expected numbers above 0"),
        ({"fractions": ("0.5", 0.5)}, TypeError, "fractions: expected numbers, got str"),
        ({"seed": -1}, ValueError, "seed: expected 0 or more, got -1"),
        ({"seed": 0.5}, TypeError, "seed: expected an integer, got float"),
        ({"max_distance": 33}, ValueError, "max_distance: expected 0 to 32, got 33"),
    ],
)
def test_options_out_of_range_are_errors(tmp_path, options, error, message):
    with pytest.raises(error, match=message):
        divide(tmp_path, tmp_path / "out", **options)


def test_invalid_rows_are_errors_or_skipped(tmp_path):
    root = write_photos(tmp_path / "set" / "train", photos(5), references=2)
    data = (root / "train" / "001.png").read_bytes()
    (root / "train" / "001.png").write_bytes(data[: len(data) // 2])
    with pytest.raises(BadRowError, match=r"001\.png: .*cannot be decoded.*\(reference 3\)"):
        divide(root)
    bad_rows = BadRows()
    result = divide(root, bad_rows=bad_rows)
    assert bad_rows.counts() == {"image_damaged": 2}
    assert sum(counts.images for counts in result.splits.values()) == 4
    for file in (root / "train").glob("*.png"):
        file.write_bytes(b"")
    with pytest.raises(ValueError, match="expected at least one"):
        divide(root, bad_rows=BadRows())


def test_files_outside_the_folder_are_not_copied_unless_allowed(tmp_path):
    root = write_photos(tmp_path / "set" / "train", photos(4))
    photo(8).save(tmp_path / "private.png")
    line = {"file_name": "../../private.png", "sentence": "it", "mask": square(2, 10, 20, 30)}
    with open(root / "train" / "metadata.jsonl", "a") as file:
        file.write(json.dumps(line) + "\n")
    with pytest.raises(ValueError, match=r"private\.png.* is not in the folder .*--allow_outside"):
        divide(root)
    result = divide(root, allow_outside=True)
    assert sum(counts.images for counts in result.splits.values()) == 5
    assert len([*tmp_path.glob("out/*/images/private.png")]) == 1


def test_only_earlier_outputs_are_replaced(tmp_path):
    root = write_photos(tmp_path / "set" / "train", photos(4))
    divide(root)
    with pytest.raises(ValueError, match="got an existing one"):
        divide(root, overwrite=False)
    (tmp_path / "out" / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match=r"got notes\.txt"):
        divide(root)
    with pytest.raises(ValueError, match="another folder than the dataset's own"):
        divide(root, root)


def test_a_full_disk_leaves_no_output(tmp_path, monkeypatch):
    root = write_photos(tmp_path / "set" / "train", photos(4))

    def full(source, target):
        raise OSError(errno.ENOSPC, "No space left on device", str(target))

    monkeypatch.setattr(shutil, "copyfile", full)
    with pytest.raises(OSError, match=r"out: cannot be written \(No space left.*no partial output was kept"):
        divide(root)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["set"]


@pytest.mark.slow
def test_a_killed_run_leaves_the_old_output_or_the_new_one(tmp_path):
    """The process is killed at every change of a folder."""
    root = write_photos(tmp_path / "set" / "train", photos(4))
    out = tmp_path / "out"
    divide(root)
    old = split_of_images(out)
    seed = next(seed for seed in range(1, 50) if _splits(root, tmp_path / "trial", seed) != old)
    new = split_of_images(tmp_path / "trial")
    kills, seen = 0, []
    while run_killed(lambda: divide(root, seed=seed), kills + 1):
        kills += 1
        recover(out)
        seen.append(split_of_images(out))
        assert seen[-1] in (old, new)
        if seen[-1] == new:
            divide(root)  # so that every process starts with the same folder
        assert sorted(file.name for file in tmp_path.iterdir()) == ["out", "set", "trial"]
    assert kills >= 20
    assert old in seen
    assert new in seen
    assert split_of_images(out) == new


def _splits(root, output, seed):
    divide(root, output, seed=seed)
    return split_of_images(output)
