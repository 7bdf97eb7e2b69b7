"""The folder that the cases start from; every case gets its own copy."""

from __future__ import annotations

import json
import shutil

import pytest
from PIL import Image

from detris_peft.data.refshapes import write_refshapes
from tests.helpers import toy_run


@pytest.fixture(scope="session")
def pristine_workspace(tmp_path_factory):
    """Tiny valid inputs: a dataset, an image folder, backbones, a checkpoint with its processor, a photo."""
    root = tmp_path_factory.mktemp("bad_inputs")
    write_refshapes(root / "data", train=4, val=2, test=1, image_size=48)
    for split, count in (("train", 4), ("val", 2)):
        folder = root / "folder" / split
        folder.mkdir(parents=True)
        lines = []
        for i in range(count):
            Image.new("RGB", (48, 40), (40 * i, 90, 160 if split == "val" else 60)).save(folder / f"{i}.png")
            mask = Image.new("L", (48, 40))
            mask.paste(255, (8, 8, 24 + i, 24))
            mask.save(folder / f"{i}_mask.png")
            lines.append({"file_name": f"{i}.png", "mask": f"{i}_mask.png", "sentences": [f"the square number {i}"]})
        (folder / "metadata.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    toy_run.write_toys(root)
    model = toy_run.load_model(root)
    rows = toy_run.load_rows(root)
    model.save_pretrained(root / "run" / "best")
    toy_run.load_processor(model.config, rows[0]).save_pretrained(root / "run" / "best")
    Image.new("RGB", (60, 40), (200, 40, 40)).save(root / "photo.png")
    return root


@pytest.fixture
def workspace(pristine_workspace, tmp_path, monkeypatch):
    """A copy of the workspace as the working directory."""
    folder = tmp_path / "work"
    shutil.copytree(pristine_workspace, folder, symlinks=True)
    monkeypatch.chdir(folder)
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    return folder
