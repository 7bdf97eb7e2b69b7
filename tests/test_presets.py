"""The presets by name, and random backbones on disk."""

from __future__ import annotations

import pytest
from safetensors.torch import load_file

from detris_peft import presets


def test_names():
    assert presets.list() == ("detris-b", "detris-b-half", "detris-l", "detris-l-mixed", "tiny")


def test_each_call_gives_a_config_of_its_own():
    first = presets.get("detris-b")
    first.vision_adapter.dim = 16
    assert presets.get("detris-b").vision_adapter.dim == 128


def test_an_unknown_name_says_which_there_are():
    with pytest.raises(ValueError, match="no preset 'detris-xl'; there are detris-b, detris-b-half"):
        presets.get("detris-xl")


def test_random_backbones_come_from_the_seed_and_are_written_once(tmp_path):
    config = presets.random_backbones(presets.get("tiny"), tmp_path / "a", seed=1)
    presets.random_backbones(presets.get("tiny"), tmp_path / "b", seed=1)
    presets.random_backbones(presets.get("tiny"), tmp_path / "c", seed=2)
    assert config.vision_name_or_path == str(tmp_path / "a/vision-1")
    for kind in ("vision", "text"):
        a, b, c = (
            load_file(tmp_path / run / f"{kind}-{seed}" / "model.safetensors")
            for run, seed in zip("abc", (1, 1, 2), strict=True)
        )
        assert all(a[name].equal(b[name]) for name in a)
        assert not all(a[name].equal(c[name]) for name in a)
    before = (tmp_path / "a/vision-1/model.safetensors").stat().st_mtime_ns
    presets.random_backbones(presets.get("tiny"), tmp_path / "a", seed=1)
    assert (tmp_path / "a/vision-1/model.safetensors").stat().st_mtime_ns == before
