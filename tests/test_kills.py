"""Kills of `save_pretrained` at every change of a file: the folder is old or new, and the next save works."""

from __future__ import annotations

import os
import shutil

import pytest
import torch

from detris_peft import DetrisForReferringSegmentation
from tests.helpers.checkpoints import logits, make
from tests.helpers.kills import run_killed
from tests.helpers.tiny_models import image_encoder, text_encoder

pytestmark = pytest.mark.slow

load = DetrisForReferringSegmentation.from_pretrained


@pytest.fixture(scope="module")
def backbones(tmp_path_factory):
    folder = tmp_path_factory.mktemp("backbones")
    image_encoder().save_pretrained(folder / "vision")
    text_encoder().save_pretrained(folder / "text")
    return folder


@pytest.mark.parametrize("new_changes", [{}, {"text_adapter": None}], ids=["same", "without an adapter"])
def test_killed_save_over_an_old_checkpoint(backbones, tmp_path, new_changes):
    old, new, last = make(backbones), make(backbones, **new_changes), make(backbones)
    expected = {"old": logits(old), "new": logits(new)}
    old.save_pretrained(tmp_path / "pristine" / "run")
    found, kills, killed = [], 0, True
    while killed:
        folder = tmp_path / str(kills) / "run"
        shutil.copytree(tmp_path / "pristine" / "run", folder)
        (folder / "notes.txt").write_text("mine")
        killed = run_killed(lambda folder=folder: new.save_pretrained(folder), at=kills + 1)
        kills += killed
        result = logits(load(folder))
        found += [name for name, value in expected.items() if torch.equal(result, value)]
        assert len(found) == kills + (not killed), "mixed"
        last.save_pretrained(folder)
        assert torch.equal(logits(load(folder)), logits(last))
        assert (folder / "notes.txt").read_text() == "mine"
        assert set(os.listdir(folder)) == {*os.listdir(tmp_path / "pristine" / "run"), "notes.txt"}
        assert os.listdir(folder.parent) == ["run"]
        shutil.rmtree(folder.parent)
    assert kills >= 20
    assert found == sorted(found, reverse=True)  # old up to some point, new after it
    assert set(found) == {"old", "new"}


def test_killed_first_save(backbones, tmp_path):
    """The folder does not exist, or is complete."""
    model, kills, killed = make(backbones), 0, True
    while killed:
        folder = tmp_path / str(kills) / "run"
        killed = run_killed(lambda folder=folder: model.save_pretrained(folder), at=kills + 1)
        kills += killed
        if folder.exists():
            assert torch.equal(logits(load(folder)), logits(model))
        model.save_pretrained(folder)
        assert torch.equal(logits(load(folder)), logits(model))
        assert os.listdir(folder.parent) == ["run"]
    assert kills >= 20


def test_simultaneous_saves_and_loads(backbones, tmp_path):
    """Two processes save to one folder while a third loads: every load gives one of the two models."""
    models = [make(backbones), make(backbones)]
    folder = tmp_path / "run"
    models[0].save_pretrained(folder)
    writers = []
    for model in models:
        pid = os.fork()
        if not pid:
            for _ in range(20):
                model.save_pretrained(folder)
            os._exit(0)
        writers.append(pid)
    expected = [logits(model) for model in models]
    for _ in range(20):
        result = logits(load(folder))
        assert any(torch.equal(result, value) for value in expected)
    assert [os.waitpid(pid, 0)[1] for pid in writers] == [0, 0]
    assert os.listdir(tmp_path) == ["run"]
