"""Backbones on disk are old or new at every moment, and a failed write leaves nothing."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError
from transformers import CLIPTextConfig, CLIPTextModelWithProjection

from detris_peft import presets
from detris_peft.modeling.backbone_folders import write_backbone
from detris_peft.modeling.backbones import load_pretrained_backbone
from detris_peft.outputs import folder_kind
from tests.helpers.kills import run_killed


def encoder(value: float) -> CLIPTextModelWithProjection:
    """Return a tiny text encoder whose weights all have this value."""
    config = CLIPTextConfig(
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=1,
        vocab_size=20,
        projection_dim=8,
        max_position_embeddings=20,
        eos_token_id=int(value),
    )
    model = CLIPTextModelWithProjection(config)
    with torch.no_grad():
        for weight in model.parameters():
            weight.fill_(value)
    return model


def read(folder) -> float:
    """Return the value of all weights; config and weights must be of the same model."""
    model = load_pretrained_backbone("text", str(folder), "pass another one")
    (value,) = {float(value) for weight in model.parameters() for value in weight.unique()}
    assert model.config.eos_token_id == value
    return value


@pytest.mark.slow
def test_a_kill_at_any_operation_leaves_the_old_or_the_new_backbone(tmp_path):
    old, new = encoder(1), encoder(2)
    seen, kills, killed = set(), 0, True
    while killed:
        folder = tmp_path / str(kills) / "clip"
        write_backbone(old, folder)
        kills += 1
        killed = run_killed(lambda folder=folder: write_backbone(new, folder), kills)
        seen.add(read(folder))  # a later command reads it
        assert [path.name for path in folder.parent.iterdir()] == ["clip"]
        assert {path.name for path in folder.iterdir()} == {"config.json", "model.safetensors", ".detris_peft"}
        write_backbone(new, folder)  # the killed command is repeated
        assert read(folder) == 2
    assert seen == {1, 2}
    assert kills > 20


def test_others_can_read_the_weights(tmp_path):
    """safetensors writes files that only their owner can read."""
    write_backbone(encoder(1), tmp_path / "clip")
    assert len({path.stat().st_mode for path in (tmp_path / "clip").iterdir()}) == 1


def test_a_failed_write_leaves_no_parent_folders(tmp_path, monkeypatch):
    model = encoder(1)
    monkeypatch.setattr(model, "save_pretrained", lambda _: Path("/dev/full").write_text("x"))
    with pytest.raises(OSError, match=r"a/b/clip: the backbone cannot be written \(.*No space left"):
        write_backbone(model, tmp_path / "a/b/clip")
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_random_backbones_can_be_repeated_after_a_kill(tmp_path):
    """Existing folders are reused, so none may be incomplete."""
    kills, killed = 0, True
    while killed:
        kills += 1
        folder = tmp_path / str(kills)
        killed = run_killed(lambda folder=folder: presets.random_backbones(presets.get("tiny"), folder), kills)
        config = presets.random_backbones(presets.get("tiny"), folder)
        for kind in ("vision", "text"):
            load_pretrained_backbone(kind, getattr(config, f"{kind}_name_or_path"), "pass another one")
        assert {path.name for path in folder.iterdir()} == {"vision-0", "text-0"}
    assert kills > 20


@pytest.mark.parametrize("at", [1, 2])
def test_a_kill_while_an_update_is_committed_is_recovered_by_the_next_reader(tmp_path, at):
    write_backbone(encoder(1), tmp_path / "clip")
    assert run_killed(lambda: write_backbone(encoder(2), tmp_path / "clip"), at, ("replace",))
    assert read(tmp_path / "clip") == 2


@pytest.mark.parametrize(
    "error", [OSError(28, "No space left on device"), SafetensorError("I/O error: No space left")]
)
def test_a_full_disk_is_one_line_and_leaves_nothing(tmp_path, monkeypatch, error):
    model = encoder(1)

    def fail(folder):
        (folder / "config.json").write_text("{")
        raise error

    monkeypatch.setattr(model, "save_pretrained", fail)
    with pytest.raises(OSError, match=r"clip: the backbone cannot be written \(.*No space left.*\); free") as caught:
        write_backbone(model, tmp_path / "out-backbones" / "clip")
    assert "\n" not in str(caught.value)
    assert [*tmp_path.iterdir()] == []
    write_backbone(encoder(1), tmp_path / "clip")
    with pytest.raises(OSError, match="No space left"):
        write_backbone(model, tmp_path / "clip")
    assert read(tmp_path / "clip") == 1


def test_two_writers_of_one_folder_do_not_mix_their_files(tmp_path):
    models = [encoder(1), encoder(2)]
    for _ in range(3):
        writers = [threading.Thread(target=write_backbone, args=(model, tmp_path / "clip")) for model in models]
        for writer in writers:
            writer.start()
        for writer in writers:
            writer.join()
        assert read(tmp_path / "clip") in (1, 2)
    assert [path.name for path in tmp_path.iterdir()] == ["clip"]


def test_written_folders_are_marked(tmp_path):
    write_backbone(encoder(1), tmp_path / "clip")
    assert folder_kind(tmp_path / "clip") == "backbone"
