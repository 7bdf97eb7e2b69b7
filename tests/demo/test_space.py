"""The Space folder: complete, valid, and runnable without this checkout."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from detris_peft.demo import space
from detris_peft.demo.limits import DemoLimits
from detris_peft.demo.sources import CheckpointSource
from tests.demo.conftest import write_photo

IMPORT = """
import detris_peft, app
blocks = [block.get_config() for block in app.demo.blocks.values()]
print(detris_peft.__file__)
print([block["name"] for block in blocks])
print([block.get("value") for block in blocks if block["name"] == "markdown"][0])
"""


@pytest.fixture(scope="module")
def folder(checkpoint, tmp_path_factory):
    root = tmp_path_factory.mktemp("space")
    (root / "photos").mkdir()
    write_photo(root / "photos" / "a.png", 1)
    sources = [CheckpointSource(str(checkpoint)), CheckpointSource("user/name", "v1")]
    space.write_space(root / "space", sources, root / "photos", DemoLimits(max_sentences=5))
    return root / "space"


def test_the_header_of_the_readme_is_valid(folder):
    _, header, text = (folder / "README.md").read_text().split("---\n", 2)
    fields = yaml.safe_load(header)
    assert (fields["sdk"], fields["app_file"], fields["models"]) == ("gradio", "app.py", ["user/name"])
    assert fields["sdk_version"].startswith("6.")
    assert len(fields["short_description"]) <= 60  # the Hub refuses longer ones
    assert "hf upload" in text


def test_the_app_has_options_and_both_checkpoints(folder):
    text = (folder / "app.py").read_text()
    assert "max_sentences=5" in text
    assert "CheckpointSource(str(HERE / 'checkpoint'), given_title='run/best')" in text
    assert "CheckpointSource('user/name', revision='v1')" in text
    compile(text, "app.py", "exec")


def test_requirements_are_those_of_the_package(folder):
    lines = (folder / "requirements.txt").read_text().splitlines()
    assert "gradio<7,>=6" in lines or "gradio>=6,<7" in lines
    assert any(line.startswith("torch>") for line in lines)
    assert not [line for line in lines if "extra" in line or line.startswith(("pytest", "detris"))]


def test_a_failed_export_leaves_nothing(checkpoint, tmp_path, monkeypatch):
    monkeypatch.setattr(space, "_copy_package", lambda folder: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        space.write_space(tmp_path / "new" / "space", [CheckpointSource(str(checkpoint))])
    assert not [*tmp_path.iterdir()]


@pytest.mark.slow
def test_the_app_runs_elsewhere(checkpoint, tmp_path):
    """With the copy of the package and of the backbones, also after the original is gone."""
    shutil.copytree(checkpoint.parents[1], tmp_path / "original")
    sources = [CheckpointSource(str(tmp_path / "original/run/best"))]
    space.write_space(tmp_path / "space", sources)
    shutil.rmtree(tmp_path / "original")
    shutil.move(tmp_path / "space", tmp_path / "moved")
    environment = {**os.environ, "TMPDIR": str(tmp_path), "GRADIO_ANALYTICS_ENABLED": "False"}
    result = subprocess.run(
        [sys.executable, "-c", IMPORT], cwd=tmp_path / "moved", env=environment, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr
    package, names, title = result.stdout.strip().split("\n", 2)
    assert Path(package).parent == tmp_path / "moved" / "detris_peft"
    assert "image" in names
    assert "Checkpoint: run/best" in title
