"""The way of a user with a LabelMe folder: check, describe, split, train, evaluate, predict."""

from __future__ import annotations

import json
import math
import re

import numpy as np
import pytest
from PIL import Image, ImageDraw

from detris_peft.cli import main
from detris_peft.data import load_folder

SIDE = 64
COLORS = {"red": (210, 30, 30), "blue": (40, 70, 215)}
CORNERS = {"circle": 24, "triangle": 3}


def _outline(corners: int, center: tuple[int, int], radius: int) -> list[list[float]]:
    """Return a regular polygon in pixels."""
    angles = [math.tau * number / corners - math.pi / 2 for number in range(corners)]
    return [[center[0] + radius * math.cos(angle), center[1] + radius * math.sin(angle)] for angle in angles]


def write_labelme(folder, count: int) -> None:
    """Write images with a circle and a triangle, and LabelMe's JSON next to each; the first one twice."""
    folder.mkdir()
    for number in range(count):
        rng = np.random.default_rng(number)
        background = Image.fromarray(rng.integers(90, 200, (4, 4, 3), np.uint8))
        image = background.resize((SIDE, SIDE), Image.Resampling.BICUBIC)
        columns = rng.permutation([17, 47]).tolist()
        shapes = []
        for label, x, color in zip(CORNERS, columns, rng.permutation([*COLORS]).tolist(), strict=True):
            points = _outline(CORNERS[label], (x, int(rng.integers(18, 46))), int(rng.integers(9, 14)))
            ImageDraw.Draw(image).polygon([tuple(point) for point in points], COLORS[color])
            shape = {"label": label, "points": points, "shape_type": "polygon", "group_id": None}
            shapes.append({**shape, "description": "", "flags": {}, "mask": None})
        for name in [f"{number:02}.png"] if number else ["00.png", "copy.jpg"]:
            image.save(folder / name)
            content = {"version": "5.5.0", "flags": {}, "shapes": shapes, "imagePath": name}
            content |= {"imageData": None, "imageHeight": SIDE, "imageWidth": SIDE}
            (folder / name).with_suffix(".json").write_text(json.dumps(content))


@pytest.mark.usefixtures("no_plots")
def test_from_a_labelme_folder_to_a_prediction(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("detris_peft.cli.data.describe.find_spec", lambda _: None)
    write_labelme(tmp_path / "labels", 15)

    def run(command: str) -> str:
        main(command.split())
        return capsys.readouterr().out

    printed = run("data check --dataset labels")
    assert "labels (LabelMe)" in printed
    assert "make some with `detris data describe --dataset labels" in printed
    assert "make splits with `detris data split`" in printed

    printed = run("data describe --dataset labels --output described")
    assert re.search(r"^images +16$", printed, re.MULTILINE)
    assert re.search(r"^objects +32$", printed, re.MULTILINE)
    described = load_folder("described")
    assert {text for texts in described["sentences"] for text in texts} >= {"the circle", "the triangle"}

    printed = run("data split --dataset described --output shapes --fractions 0.75 0.25")
    assert [line.split()[:3] for line in printed.splitlines()[3:5]] == [["train", "12", "24"], ["val", "4", "8"]]
    assert "near-duplicates: 2 images in 1 group, each in one split" in printed
    assert re.search(r"(train|val)/images/00\.png, \1/images/copy\.jpg", printed)
    rows = {split: load_folder("shapes", split) for split in ("train", "val")}
    assert sorted([*rows["train"]["ref_id"], *rows["val"]["ref_id"]]) == sorted(described["ref_id"])
    assert not {*rows["train"]["image_id"]} & {*rows["val"]["image_id"]}
    assert "No errors found.\n" in run("data check --dataset shapes")

    run(
        "train --preset tiny --dataset shapes --output_dir run --epochs 2 --milestones 1 --batch_size 12 "
        "--image_size 48 --num_workers 0"
    )
    epochs = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [epoch["step"] for epoch in epochs] == [2, 4]
    assert epochs[1]["train_loss"] < epochs[0]["train_loss"]

    run("evaluate --checkpoint run/best --dataset shapes --num_workers 0 --output scores.json")
    scores = json.loads((tmp_path / "scores.json").read_text())
    assert scores["samples"] == 8
    assert 0 <= scores["mIoU"] <= 1
    assert max(epoch["mIoU"] for epoch in epochs) == pytest.approx(scores["mIoU"], abs=1e-3)

    image = rows["val"][0]["file_name"]
    main(["predict", "--checkpoint", "run/best", "--image", f"shapes/{image}", "--text", "the circle"])
    assert "of the image is foreground; wrote prediction.png and prediction_mask.png" in capsys.readouterr().out
    assert Image.open("prediction.png").size == (SIDE, SIDE)
    mask = np.asarray(Image.open("prediction_mask.png"))
    assert mask.shape == (SIDE, SIDE)
    assert {*np.unique(mask)} <= {0, 255}
