"""Tests of converting released checkpoints to our model and back."""

from __future__ import annotations

import copy
import math
import subprocess
import sys

import pytest
import torch

from detris_peft import DenseAlignerConfig, DetrisConfig, DetrisForReferringSegmentation, TextAdapterConfig, presets
from detris_peft.conversion.official_checkpoint import (
    load_official_checkpoint,
    official_layout,
    save_official_checkpoint,
)
from tests.helpers.reference import FIXTURES, reference_config

CHECKPOINT = FIXTURES / "tiny_checkpoint.pth"


def other_config(**changes) -> DetrisConfig:
    """Return a config with other widths, depths, heads, patch and image sizes than the reference checkpoint."""
    vision = {
        "model_type": "dinov2_with_registers",
        "hidden_size": 96,
        "num_hidden_layers": 6,
        "num_attention_heads": 6,
        "image_size": 48,
        "patch_size": 8,
        "num_register_tokens": 2,
        "mlp_ratio": 2,
    }
    text = {
        "model_type": "clip_text_model",
        "hidden_size": 128,
        "intermediate_size": 512,
        "num_hidden_layers": 4,
        "num_attention_heads": 2,
        "vocab_size": 90,
        "projection_dim": 40,
        "max_position_embeddings": 20,
        "bos_token_id": 88,
        "eos_token_id": 89,
        "pad_token_id": 0,
    }
    fields = {
        "vision_config": vision,
        "text_config": text,
        "vision_adapter": DenseAlignerConfig(
            dim=48, layers_to_transform=[0, 2, 5], text_dim=128, cross_attention_dim=24, cross_attention_heads=3
        ),
        "text_adapter": TextAdapterConfig(dim=32, layers_to_transform=[3]),
        "extract_layers": [0, 3],
        "hidden_dim": 128,
        "neck_heads": 2,
        "decoder_layers": 1,
        "decoder_heads": 4,
        "decoder_ffn_dim": 20,
        "image_size": 64,
        "position_interpolation": "official",
    }
    return DetrisConfig(**{**fields, **changes})


def random_model(config: DetrisConfig, seed: int = 0) -> DetrisForReferringSegmentation:
    """Return a model whose weights and statistics, including frozen ones, depend on the seed and their index only."""
    model = DetrisForReferringSegmentation(config)
    state = model.state_dict()
    with torch.no_grad():
        for index, (name, value) in enumerate(state.items()):
            if value.is_floating_point():
                generator = torch.Generator().manual_seed(seed * 100_003 + index)
                scale = 0.02 if value.dim() > 1 else 0.1
                value.copy_(torch.randn(value.shape, generator=generator) * scale)
                if name.endswith("running_var") or (value.dim() == 1 and name.endswith("weight")):
                    value.abs_().add_(0.8)
            elif name.endswith("num_batches_tracked"):
                value.fill_(seed + 5)
    return model.eval()


def run(model: DetrisForReferringSegmentation, height: int, width: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(3)
    vocabulary = model.config.text_config.vocab_size
    input_ids = torch.randint(1, vocabulary - 2, (2, 9), generator=generator)
    input_ids[:, -1] = vocabulary - 1
    input_ids[0, 5:] = torch.tensor([vocabulary - 1, 0, 0, 0])
    with torch.no_grad():
        return model(torch.randn(2, 3, height, width, generator=generator), input_ids).logits


# -- round trips ------------------------------------------------------------------------------------------------------


def test_released_checkpoint_round_trips_exactly(tmp_path):
    """Official → ours → official, also through a checkpoint folder: every tensor, including `logit_scale`."""
    expected = torch.load(CHECKPOINT, weights_only=True)["state_dict"]
    model = load_official_checkpoint(CHECKPOINT, reference_config())
    save_official_checkpoint(model, tmp_path / "deep" / "back.pth")
    assert [f.name for f in (tmp_path / "deep").iterdir()] == ["back.pth"]

    for kind in ("vision", "text"):
        wrapped = getattr(model, f"{kind}_model")
        plain = copy.deepcopy(wrapped).unload()
        plain.save_pretrained(tmp_path / kind)
        setattr(model.config, f"{kind}_name_or_path", str(tmp_path / kind))
    model.save_pretrained(tmp_path / "run")
    loaded = DetrisForReferringSegmentation.from_pretrained(tmp_path / "run")
    assert torch.equal(run(loaded, 56, 56), run(model, 56, 56))
    save_official_checkpoint(loaded, tmp_path / "over_a_folder.pth")

    for file in (tmp_path / "deep" / "back.pth", tmp_path / "over_a_folder.pth"):
        got = torch.load(file, weights_only=True)["state_dict"]
        assert got.keys() == expected.keys()
        for key, value in expected.items():
            assert got[key].dtype == value.dtype
            assert got[key].shape == value.shape
            assert torch.equal(got[key], value), key


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"vision_adapter": None},
        {"text_adapter": None},
        {"vision_adapter": None, "text_adapter": None},
        {"text_adapter": TextAdapterConfig(dim=16, layers_to_transform=2)},
        {"text_adapter": TextAdapterConfig(dim=16, layers_to_transform=None)},
    ],
    ids=["both", "text only", "vision only", "none", "one layer", "every layer"],
)
def test_models_of_other_sizes_round_trip(changes, seed, tmp_path):
    """Ours → official → ours: the same weights and logits, at the position embeddings' own grid and at others."""
    model = random_model(other_config(**changes), seed)
    save_official_checkpoint(model, tmp_path / "official.pth")
    back = load_official_checkpoint(tmp_path / "official.pth", other_config(**changes))
    assert not back.training
    state = model.state_dict()
    assert state.keys() == back.state_dict().keys()
    for name, value in back.state_dict().items():
        assert torch.equal(value, state[name]), name
    for height, width in ((48, 48), (64, 64), (40, 72)):
        assert torch.equal(run(model, height, width), run(back, height, width))
    assert {n for n, p in model.named_parameters() if p.requires_grad} == {
        n for n, p in back.named_parameters() if p.requires_grad
    }


def test_saved_file_has_the_released_format(tmp_path):
    """Keys under `module.`, float32, contiguous tensors, and CLIP's constant if none was read."""
    model = random_model(other_config())
    model.vision_model.to(torch.bfloat16)
    save_official_checkpoint(model, tmp_path / "official.pth")
    weights = torch.load(tmp_path / "official.pth", weights_only=True)["state_dict"]
    assert set(weights) == {f"module.{row.official}" for row in official_layout(model.config)}
    assert {v.dtype for v in weights.values()} == {torch.float32, torch.int64}
    assert all(v.is_contiguous() for v in weights.values())
    assert weights["module.txt_backbone.logit_scale"].shape == ()
    assert weights["module.txt_backbone.logit_scale"].item() == pytest.approx(math.log(100))
    # Fused and transposed like the released weights.
    assert weights["module.dinov2.blocks.1.attn.qkv.weight"].shape == (288, 96)
    assert weights["module.txt_backbone.text_projection"].shape == (128, 40)
    assert weights["module.neck.f5_proj.0.weight"].shape == (96, 128, 1, 1)


def test_no_tensor_stays_on_the_meta_device():
    """Buffers that the file does not contain must be real, and weights must not share memory."""
    model = load_official_checkpoint(CHECKPOINT, reference_config())
    tensors = [*model.named_parameters(), *model.named_buffers()]
    assert not [name for name, tensor in tensors if tensor.is_meta]
    storages = [tensor.untyped_storage().data_ptr() for _, tensor in tensors if tensor.numel()]
    assert len(set(storages)) == len(storages)
    positions = next(b for n, b in tensors if n.endswith("position_ids"))
    assert torch.equal(positions, torch.arange(positions.numel()).unsqueeze(0))


def test_training_does_not_change_the_loaded_file(tmp_path):
    path = tmp_path / "official.pth"
    path.write_bytes(CHECKPOINT.read_bytes())
    model = load_official_checkpoint(path, reference_config())
    before = run(model, 56, 56)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    model.train()(torch.randn(2, 3, 56, 56), torch.full((2, 5), 119), torch.rand(2, 56, 56)).loss.backward()
    optimizer.step()
    assert path.read_bytes() == CHECKPOINT.read_bytes()
    assert torch.equal(run(load_official_checkpoint(path, reference_config()), 56, 56), before)
    save_official_checkpoint(model, path)  # replaces the file that it was loaded from
    assert torch.equal(run(load_official_checkpoint(path, reference_config()), 56, 56), run(model.eval(), 56, 56))


def test_the_config_of_the_caller_is_not_changed():
    config = reference_config()
    before = config.to_dict()
    model = load_official_checkpoint(CHECKPOINT, config)
    assert config.to_dict() == before
    assert model.config.position_interpolation == "official"


def test_the_end_token_is_the_largest_id():
    """The released code reads the sentence embedding there, regardless of the text config."""
    config = reference_config()
    config.text_config.eos_token_id = 49407
    model = load_official_checkpoint(CHECKPOINT, config)
    assert torch.equal(run(model, 56, 56), run(load_official_checkpoint(CHECKPOINT, reference_config()), 56, 56))


def test_a_failed_save_keeps_the_old_file(tmp_path, monkeypatch):
    model = load_official_checkpoint(CHECKPOINT, reference_config())
    (tmp_path / "official.pth").write_bytes(b"earlier")

    def fail(*args, **kwargs):
        raise OSError("No space left on device")

    monkeypatch.setattr(torch, "save", fail)
    with pytest.raises(OSError, match="No space left"):
        save_official_checkpoint(model, tmp_path / "official.pth")
    assert [(f.name, f.read_bytes()) for f in tmp_path.iterdir()] == [("official.pth", b"earlier")]


# -- full size --------------------------------------------------------------------------------------------------------


FULL_SIZE = """
import re, sys, torch
from pathlib import Path
from detris_peft.conversion.official_checkpoint import load_official_checkpoint
def peak_memory():  # of this process only; getrusage would include its parent
    return int(re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1])
before = peak_memory()
model = load_official_checkpoint(sys.argv[1], sys.argv[2])
peak = peak_memory()
with torch.no_grad():
    logits = model(torch.ones(1, 3, 56, 70), torch.tensor([[49406, 320, 736, 49407, 0, 0]])).logits
torch.save({"logits": logits, "kilobytes": peak - before}, sys.argv[3])
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads the peak memory from /proc")
@pytest.mark.parametrize("preset", ["detris-b", "detris-l", "detris-l-mixed"])
def test_presets_round_trip_at_full_size(preset, tmp_path):
    """A new process computes the same logits, and loading takes less memory than 1.5 times the file size."""
    config = presets.get(preset)
    config.position_interpolation = "official"
    model = random_model(config)
    path = tmp_path / "official.pth"
    save_official_checkpoint(model, path)
    with torch.no_grad():
        expected = model(torch.ones(1, 3, 56, 70), torch.tensor([[49406, 320, 736, 49407, 0, 0]])).logits
    del model
    subprocess.run([sys.executable, "-c", FULL_SIZE, path, preset, tmp_path / "out.pth"], check=True)
    out = torch.load(tmp_path / "out.pth", weights_only=True)
    assert torch.equal(out["logits"], expected)
    assert 0.9 * path.stat().st_size < out["kilobytes"] * 1024 < 1.5 * path.stat().st_size
    path.unlink()
