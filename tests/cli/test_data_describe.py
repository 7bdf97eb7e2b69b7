"""`detris data describe`: printed counts, the preview, and what training reads."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image

from detris_peft.cli import main
from detris_peft.data.sources import DataSource


@pytest.fixture
def park(tmp_path):
    """A COCO file per split with a red car, a blue car and a dog, and an image without annotations."""
    for number, split in enumerate(("train", "val")):
        (tmp_path / split).mkdir()
        pixels = np.full((60, 80, 3), 200 - number, np.uint8)
        boxes = [
            (5, 10, 25, 30, (220, 20, 20), 1),
            (50, 10, 75, 30, (20, 60, 220), 1),
            (30, 35, 50, 55, (90, 60, 40), 2),
        ]
        annotations = []
        for ann_id, (left, top, right, bottom, color, category) in enumerate(boxes):
            pixels[top:bottom, left:right] = color
            outline = [left, top, right, top, right, bottom, left, bottom]
            annotations.append({"id": ann_id, "image_id": 1, "category_id": category, "segmentation": [outline]})
        for name in ("a.png", "empty.png"):
            Image.fromarray(pixels).save(tmp_path / split / name)
        content = {
            "images": [{"id": 1, "file_name": "a.png"}, {"id": 2, "file_name": "empty.png"}],
            "annotations": annotations,
            "categories": [{"id": 1, "name": "car"}, {"id": 2, "name": "dog"}],
        }
        (tmp_path / f"{split}.json").write_text(json.dumps(content))
    return tmp_path


def run(park, *arguments):
    source = ("--dataset", f"{park}/{{split}}.json", "--image_folder", f"{park}/{{split}}", "--output", f"{park}/out")
    try:
        main(["data", "describe", *source, *map(str, arguments)])
    except SystemExit as exit_:
        return exit_.code
    return 0


def test_counts_are_printed_and_the_result_passes_check(park, capsys):
    assert run(park) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"wrote {park}/out"
    assert [line.split() for line in lines[2:5]] == [["train", "val"], ["images", "1", "1"], ["objects", "3", "3"]]
    assert ["images", "without", "annotations", "1", "1"] in map(str.split, lines)
    assert lines[-1] == f"wrote {park}/out/preview.png"
    assert Image.open(park / "out" / "preview.png").format == "PNG"
    main(["data", "check", "--dataset", str(park / "out")])
    assert "No errors found." in capsys.readouterr().out
    assert DataSource(str(park / "out")).splits() == ["train", "val"]


def test_the_preview_can_be_written_elsewhere(park):
    assert run(park, "--preview", park / "grid.png", "--splits", "val") == 0
    assert (park / "grid.png").exists()
    assert not (park / "out" / "preview.png").exists()
    assert "expected a new folder" in run(park)
    assert "grid.png: expected a new file" in run(park, "--preview", park / "grid.png")
    assert run(park, "--preview", park / "grid.png", "--overwrite") == 0


def test_skipped_images_are_listed(park, capsys):
    content = json.loads((park / "train.json").read_text())
    content["annotations"].append({"id": 9, "image_id": 2, "category_id": 5, "segmentation": [[0, 0, 9, 0, 9, 9]]})
    (park / "train.json").write_text(json.dumps(content))
    assert "annotation 9: expected a 'category_id' among 'categories', got 5" in run(park)
    assert not (park / "out").exists()
    assert run(park, "--skip_bad_rows") == 0
    out = capsys.readouterr().out
    assert "skipped 1 invalid row\n" in out
    assert "annotation 9" in out


def test_without_matplotlib_only_the_default_preview_is_omitted(park, monkeypatch):
    for module in ("describe", "preview"):
        monkeypatch.setattr(f"detris_peft.cli.data.{module}.find_spec", lambda name: None)
    assert "expected matplotlib" in run(park, "--preview", park / "grid.png")
    assert run(park) == 0
    assert not (park / "out" / "preview.png").exists()
