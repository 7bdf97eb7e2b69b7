"""The folder that the cases start from; for every case, a copy of it is restored."""

from __future__ import annotations

import json

import pytest
from PIL import Image

from detris_peft.data.refshapes import write_refshapes
from tests.bad_inputs.workspace import Workspace
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


@pytest.fixture(scope="session")
def copied_workspace(pristine_workspace, tmp_path_factory):
    return Workspace(pristine_workspace, tmp_path_factory.mktemp("bad_inputs_copy") / "work")


@pytest.fixture
def workspace(copied_workspace, tmp_path, monkeypatch):
    """A restored copy of the workspace; its folder is the working directory."""
    copied_workspace.restore()
    monkeypatch.chdir(copied_workspace.folder)
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    return copied_workspace
