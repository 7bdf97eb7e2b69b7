"""Images that two splits share are found by their content."""

import datasets
import numpy as np
import pytest
from PIL import Image

from detris_peft.cli.training_run import check_leaks
from detris_peft.data.schema import make_row, to_dataset
from detris_peft.data.sources import DataSource
from detris_peft.data.tools.leaks import shared_images


def rows(folder, names, root):
    mask = {"size": [6, 8], "counts": "0"}
    return to_dataset(
        [
            make_row(
                image=str(folder / name),
                sentences=["x"],
                mask=mask,
                ref_id=index,
                ann_ids=[1],
                image_id=1,
                split="s",
                dataset="d",
                file_name=(folder / name).relative_to(root).as_posix(),
            )
            for index, name in enumerate(names)
        ]
    )


@pytest.fixture
def splits(tmp_path):
    """Return train and val rows: `val/0.png` is a copy of `train/1.png`, and the other images have the same names."""
    for split, colors in (("train", (1, 2, 3)), ("val", (2, 5))):
        (tmp_path / split).mkdir()
        for index, color in enumerate(colors):
            Image.fromarray(np.full((6, 8, 3), color, np.uint8)).save(tmp_path / split / f"{index}.png")
    train, val = (sorted(path.name for path in (tmp_path / split).iterdir()) for split in ("train", "val"))
    return rows(tmp_path / "train", train, tmp_path), rows(tmp_path / "val", val * 2, tmp_path)


def embedded(dataset):
    rows = [dict(row) for row in dataset.cast_column("image", datasets.Image(decode=False))]
    for row in rows:
        with open(row["image"]["path"], "rb") as file:
            row["image"] = {"bytes": file.read(), "path": "same.png"}
    return datasets.Dataset.from_list(rows, features=dataset.features)


def test_a_copy_is_found_under_another_name(splits):
    train, val = splits
    for first, second in (
        (train, val),
        (embedded(train), val),
        (train, embedded(val)),
        (embedded(train).shuffle(1), val),
    ):
        assert shared_images(first, second) == [("train/1.png", "val/0.png")]
    assert not shared_images(train.select([0, 2]), val)


def test_only_images_of_equal_size_are_read(splits, monkeypatch):
    train, val = splits
    (path,) = {row["image"]["path"] for row in val.select([1]).cast_column("image", datasets.Image(decode=False))}
    with open(path, "ab") as file:
        file.write(b"longer")
    read = []
    monkeypatch.setattr("detris_peft.data.tools.leaks._digest", lambda row: read.append(row["file_name"]) or "")
    shared_images(train, val)
    assert "val/1.png" not in read


def test_training_stops_at_a_copy(splits, tmp_path):
    (tmp_path / "metadata.jsonl").write_text("")
    source = DataSource(str(tmp_path))
    with pytest.raises(ValueError, match=r"1 shared images \(train/1\.png is also val/0\.png in validation\)"):
        check_leaks(*splits, source)
    check_leaks(*splits, DataSource(str(tmp_path), leak="keep"))
