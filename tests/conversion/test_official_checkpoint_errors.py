"""Tests of checkpoints that do not match, and of other files than released checkpoints."""

from __future__ import annotations

import json
import os
import pickle

import pytest
import torch
from transformers import Dinov2Config, SiglipTextConfig

from detris_peft import DenseAlignerConfig, DetrisForReferringSegmentation
from detris_peft.conversion.official_checkpoint import (
    load_official_checkpoint,
    read_official,
    save_official_checkpoint,
)
from tests.helpers.reference import FIXTURES, reference_config

CHECKPOINT = FIXTURES / "tiny_checkpoint.pth"


@pytest.fixture
def rewritten(tmp_path):
    """Write a changed copy of the reference checkpoint: `rewritten(lambda weights: ...)`."""

    def write(change):
        content = torch.load(CHECKPOINT, weights_only=True)
        change(content["state_dict"])
        torch.save(content, tmp_path / "changed.pth")
        return tmp_path / "changed.pth"

    return write


def test_half_precision_weights_become_float32(rewritten):
    path = rewritten(lambda w: w.update({k: v.half() for k, v in w.items() if v.is_floating_point()}))
    model = load_official_checkpoint(path, reference_config())
    assert {p.dtype for p in model.parameters()} == {torch.float32}


# -- keys, shapes and architectures -----------------------------------------------------------------------------------


def rejects(path, config, *matches, error=ValueError):
    with pytest.raises(error) as raised:
        load_official_checkpoint(path, config)
    message = str(raised.value)
    assert "\n" not in message
    for match in matches:
        assert match in message, message


def test_missing_and_unexpected_keys_are_listed(rewritten):
    def change(weights):
        del weights["module.neck.txt_proj.bias"]
        del weights["module.dinov2.blocks.3.adapter.D_fc1.weight"]
        weights["module.surplus.weight"] = torch.zeros(1)

    rejects(
        rewritten(change),
        reference_config(),
        "missing keys: 2 (dinov2.blocks.3.adapter.D_fc1.weight, neck.txt_proj.bias)",
        "unexpected keys: 1 (surplus.weight)",
        "no preset matches either",
    )


@pytest.mark.parametrize("key", ["txt_backbone.logit_scale", "dinov2.mask_token", "proj.vis.4.bias"])
def test_every_key_is_required(rewritten, key):
    rejects(
        rewritten(lambda w: w.pop(f"module.{key}")),
        reference_config(),
        f"missing keys: 1 ({key}); unexpected keys: none",
    )


@pytest.mark.parametrize(
    ("key", "shape"),
    [
        ("neck.txt_proj.weight", (64, 63)),
        ("dinov2.blocks.0.attn.qkv.weight", (143, 48)),
        ("dinov2.blocks.0.attn.qkv.bias", ()),
        ("txt_backbone.text_projection", (64, 32)),
        ("txt_backbone.logit_scale", (1,)),
    ],
)
def test_other_shapes_are_listed(rewritten, key, shape):
    path = rewritten(lambda w: w.update({f"module.{key}": torch.zeros(shape)}))
    rejects(path, reference_config(), "shapes differ: 1 (", f"{key}: expected (", f"), got {shape})")


def test_checkpoints_of_another_config_are_rejected():
    rejects(
        CHECKPOINT,
        reference_config(decoder_ffn_dim=32),
        "shapes differ: 10 (",
        "ffn.0.bias: expected (32,), got (64,)",
    )
    rejects(CHECKPOINT, reference_config(vision_adapter=None), "unexpected keys", "dinov2.blocks.1.adapter.D_fc1.bias")
    rejects(CHECKPOINT, reference_config(decoder_layers=3), "missing keys: ", "decoder.layers.2.")


def test_unknown_presets_are_rejected():
    rejects(CHECKPOINT, "detris-xl", "got 'detris-xl'", "detris-l-mixed")


def test_checkpoints_of_another_preset_are_rejected():
    rejects(CHECKPOINT, "detris-b", "missing keys: ", "decoder.layers.2.", "no preset matches, pass the config")


@pytest.mark.parametrize(
    ("keys", "preset", "match"),
    [("keys_large_mixed", "detris-l", "detris-l-mixed"), ("keys_base", "detris-l", "detris-b")],
)
def test_the_matching_preset_is_named(monkeypatch, keys, preset, match):
    """Uses the keys and shapes of the released files only, which are gigabytes large."""
    released = json.loads((FIXTURES / f"{keys}.json").read_text())
    weights = {key: torch.empty(shape, device="meta") for key, shape in released.items()}
    monkeypatch.setattr("detris_peft.conversion.official_checkpoint.read_official", lambda path, mmap: weights)
    rejects("some.pth", preset, f"use the preset {match}.")


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        (
            {"vision_config": Dinov2Config(num_hidden_layers=3)},
            "vision_config: expected DINOv2 with registers (S, B or L), got dinov2;",
        ),
        ({"hidden_dim": 32}, "hidden_dim: expected the width of the text encoder, 64, got 32"),
        ({"text_config": SiglipTextConfig(hidden_size=64)}, "CLIPTextModelWithProjection, got SiglipTextModel"),
        (
            {"vision_adapter": DenseAlignerConfig(text_dim=64, target_modules="x")},
            "vision_adapter.target_modules: expected None, got a regular",
        ),
        ({"text_adapter": {"peft_type": "COMPACTER"}}, "text_adapter: expected a TextAdapterConfig, got a CompacterC"),
        (
            {"vision_adapter": None, "bridger": {"vision_after_blocks": [1], "text_after_blocks": [1]}},
            "bridger: expected None, got a Bridger",
        ),
    ],
)
def test_unsupported_architectures_are_rejected(changes, match):
    rejects(CHECKPOINT, reference_config(**changes), match)


def test_models_with_other_adapters_are_rejected(tmp_path):
    model = load_official_checkpoint(CHECKPOINT, reference_config())
    model.vision_model.add_adapter("second", model.config.vision_adapter)
    with pytest.raises(ValueError, match=r"cannot be stored in the released layout: .* differ, such as .*second"):
        save_official_checkpoint(model, tmp_path / "official.pth")
    assert not (tmp_path / "official.pth").exists()


def test_saving_with_another_position_interpolation_warns(tmp_path):
    model = DetrisForReferringSegmentation(reference_config())
    with pytest.warns(UserWarning, match="position_interpolation is 'backbone'"):
        save_official_checkpoint(model, tmp_path / "official.pth")


# -- other files ------------------------------------------------------------------------------------------------------


class Payload:
    """Creates a folder when it is read by an unpickler that executes code."""

    def __init__(self, target):
        self.target = target

    def __reduce__(self):
        return os.mkdir, (str(self.target),)


@pytest.mark.parametrize("write", ["torch", "torch legacy", "pickle"])
def test_pickled_code_is_never_executed(tmp_path, write):
    content, path = {"state_dict": {"module.x": Payload(tmp_path / "ran")}}, tmp_path / "evil.pth"
    if write == "pickle":
        path.write_bytes(pickle.dumps(content))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=write == "torch")
    rejects(path, reference_config(), "evil.pth", "without pickled code, which is never executed")
    assert not (tmp_path / "ran").exists()
    # The payload works: an unsafe unpickler executes it.
    torch.load(path, weights_only=False) if write != "pickle" else pickle.loads(path.read_bytes())
    assert (tmp_path / "ran").exists()


@pytest.mark.parametrize("size", [0, 1, 100, 5_000, -1, -100_000])
def test_truncated_files_are_rejected(tmp_path, size):
    (tmp_path / "cut.pth").write_bytes(CHECKPOINT.read_bytes()[:size])
    rejects(tmp_path / "cut.pth", reference_config(), "got a truncated one" if abs(size) > 1 else "cut.pth: expected ")


@pytest.mark.parametrize("content", [b"not a checkpoint at all", b"\x89PNG\r\n\x1a\n" + bytes(50), b"\x80\x02}q\x00."])
def test_files_of_other_formats_are_rejected(tmp_path, content):
    (tmp_path / "other.pth").write_bytes(content)
    rejects(tmp_path / "other.pth", reference_config(), "other.pth: expected a PyTorch checkpoint")


def test_missing_files_are_rejected(tmp_path):
    for path in (tmp_path / "none.pth", tmp_path):
        rejects(path, "detris-b", f"{path}: expected a checkpoint, found no such file", error=FileNotFoundError)


def test_other_files_are_rejected_with_their_content(tmp_path):
    tensor, path = torch.zeros(2), tmp_path / "other.pth"
    for content, match in (
        ({"cls_token": tensor, "pos_embed": tensor, "blocks.0.norm1.weight": tensor}, "got a DINO backbone alone"),
        ({"token_embedding.weight": tensor, "text_projection": tensor, "visual.proj": tensor}, "got a CLIP alone"),
        ({"model": {}}, 'got a dict without "state_dict"'),
        ([tensor], "got a list"),
        ({"state_dict": tensor}, 'got a "state_dict" that is not a dict of tensors'),
        ({"state_dict": {"module.x": 1.0}}, "that is not a dict of tensors"),
    ):
        torch.save(content, path)
        rejects(path, "detris-b", "other.pth", match)
    torch.jit.save(torch.jit.trace(torch.nn.Linear(2, 2), torch.zeros(1, 2)), path)
    rejects(path, "detris-b", "got a TorchScript archive, the format of OpenAI's CLIP files")


def test_files_of_old_torch_versions_are_read(tmp_path):
    """Before torch 1.6, checkpoints were not zip files."""
    content = torch.load(CHECKPOINT, weights_only=True)
    torch.save(content, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    for key, value in read_official(tmp_path / "old.pth").items():
        assert torch.equal(value, content["state_dict"][f"module.{key}"]), key


@pytest.mark.parametrize(
    ("key", "change", "problem"),
    [
        ("neck.txt_proj.weight", lambda v: v.fill_(float("nan")), "NaN or infinite values"),
        ("dinov2.blocks.0.attn.qkv.weight", lambda v: v.index_fill(0, torch.tensor([5]), float("inf")), "NaN or inf"),
        ("neck.txt_proj.bias", lambda v: v.int(), "type int32"),
        ("neck.txt_proj.bias", lambda v: v > 0, "type bool"),
        ("neck.txt_proj.bias", lambda v: v.to(torch.complex64), "type complex64"),
        ("neck.txt_proj.bias", lambda v: v.to("meta"), "a tensor without data (device meta)"),
        ("neck.f5_proj.1.num_batches_tracked", lambda v: v.float(), "type float32"),
        ("neck.f5_proj.1.num_batches_tracked", lambda v: v - 10**6, "a negative count"),
        ("txt_backbone.logit_scale", lambda v: v * float("nan"), "NaN or infinite values"),
    ],
)
def test_weights_that_are_not_finite_floats_are_named(rewritten, key, change, problem):
    """load_state_dict would accept them, some after a conversion to float."""
    path = rewritten(lambda w: w.update({f"module.{key}": change(w[f"module.{key}"].clone())}))
    rejects(
        path, reference_config(), f"changed.pth: expected finite floating-point weights, got {problem}", f"in {key};"
    )


def test_keys_that_are_not_text_are_rejected(rewritten):
    rejects(rewritten(lambda w: w.update({3: torch.zeros(1)})), reference_config(), "not a dict of tensors")
