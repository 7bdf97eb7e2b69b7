"""The authors' checkpoints: in, out, and every kind of file that is none."""

from __future__ import annotations

import copy
import json
import math
import os
import pickle
import subprocess
import sys

import pytest
import torch
from transformers import Dinov2Config, SiglipTextConfig

from detris_peft import DenseAlignerConfig, DetrisConfig, DetrisForReferringSegmentation, TextAdapterConfig, presets
from detris_peft.conversion.official_checkpoint import (
    load_official_checkpoint,
    official_layout,
    read_official,
    save_official_checkpoint,
)
from tests.helpers.reference import FIXTURES, reference_config

CHECKPOINT = FIXTURES / "tiny_checkpoint.pth"


def other_config(**changes) -> DetrisConfig:
    """Other widths, depths, heads, patch and sides than the reference checkpoint's."""
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
    """Every weight and statistic, the frozen ones too, from a seed and its name alone."""
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


@pytest.fixture
def rewritten(tmp_path):
    """Writes the reference checkpoint with its weights changed: `rewritten(lambda weights: ...)`."""

    def write(change):
        content = torch.load(CHECKPOINT, weights_only=True)
        change(content["state_dict"])
        torch.save(content, tmp_path / "changed.pth")
        return tmp_path / "changed.pth"

    return write


# -- in and out -------------------------------------------------------------------------------------------------------


def test_round_trip_of_the_authors_file_is_bit_equal(tmp_path):
    """Official → ours → official: every tensor, `logit_scale` too; also over a checkpoint folder of ours."""
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
def test_other_sizes(changes, seed, tmp_path):
    """Ours → official → ours at other sizes: the same weights and logits, at the table's own grid and at others."""
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


def test_the_file_is_as_theirs(tmp_path):
    """Keys under `module.`, float32, tensors of their own memory, and CLIP's constant where nobody read another."""
    model = random_model(other_config())
    model.vision_model.to(torch.bfloat16)
    save_official_checkpoint(model, tmp_path / "official.pth")
    weights = torch.load(tmp_path / "official.pth", weights_only=True)["state_dict"]
    assert set(weights) == {f"module.{row.official}" for row in official_layout(model.config)}
    assert {v.dtype for v in weights.values()} == {torch.float32, torch.int64}
    assert all(v.is_contiguous() for v in weights.values())
    assert weights["module.txt_backbone.logit_scale"].shape == ()
    assert weights["module.txt_backbone.logit_scale"].item() == pytest.approx(math.log(100))
    # Fused and turned as theirs.
    assert weights["module.dinov2.blocks.1.attn.qkv.weight"].shape == (288, 96)
    assert weights["module.txt_backbone.text_projection"].shape == (128, 40)
    assert weights["module.neck.f5_proj.0.weight"].shape == (96, 128, 1, 1)


def test_nothing_is_left_without_memory():
    """The model is built without weights: buffers that no file holds must be real, every weight its own."""
    model = load_official_checkpoint(CHECKPOINT, reference_config())
    tensors = [*model.named_parameters(), *model.named_buffers()]
    assert not [name for name, tensor in tensors if tensor.is_meta]
    storages = [tensor.untyped_storage().data_ptr() for _, tensor in tensors if tensor.numel()]
    assert len(set(storages)) == len(storages)
    positions = next(b for n, b in tensors if n.endswith("position_ids"))
    assert torch.equal(positions, torch.arange(positions.numel()).unsqueeze(0))


def test_a_read_model_trains_and_the_file_stays(tmp_path):
    """The weights are the model's: neither does a step reach the file nor a new file the weights."""
    path = tmp_path / "official.pth"
    path.write_bytes(CHECKPOINT.read_bytes())
    model = load_official_checkpoint(path, reference_config())
    before = run(model, 56, 56)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    model.train()(torch.randn(2, 3, 56, 56), torch.full((2, 5), 119), torch.rand(2, 56, 56)).loss.backward()
    optimizer.step()
    assert path.read_bytes() == CHECKPOINT.read_bytes()
    assert torch.equal(run(load_official_checkpoint(path, reference_config()), 56, 56), before)
    save_official_checkpoint(model, path)  # over the file it came from
    assert torch.equal(run(load_official_checkpoint(path, reference_config()), 56, 56), run(model.eval(), 56, 56))


def test_the_users_config_is_left_alone():
    config = reference_config()
    before = config.to_dict()
    model = load_official_checkpoint(CHECKPOINT, config)
    assert config.to_dict() == before
    assert model.config.position_interpolation == "official"


def test_end_token_is_the_largest_id():
    """As the authors take it, whatever the text config says."""
    config = reference_config()
    config.text_config.eos_token_id = 49407
    model = load_official_checkpoint(CHECKPOINT, config)
    assert torch.equal(run(model, 56, 56), run(load_official_checkpoint(CHECKPOINT, reference_config()), 56, 56))


def test_half_precision_weights_become_float32(rewritten):
    path = rewritten(lambda w: w.update({k: v.half() for k, v in w.items() if v.is_floating_point()}))
    model = load_official_checkpoint(path, reference_config())
    assert {p.dtype for p in model.parameters()} == {torch.float32}


def test_a_failed_save_leaves_nothing(tmp_path, monkeypatch):
    model = load_official_checkpoint(CHECKPOINT, reference_config())
    (tmp_path / "official.pth").write_bytes(b"earlier")

    def fail(*args, **kwargs):
        raise OSError("No space left on device")

    monkeypatch.setattr(torch, "save", fail)
    with pytest.raises(OSError, match="No space left"):
        save_official_checkpoint(model, tmp_path / "official.pth")
    assert [(f.name, f.read_bytes()) for f in tmp_path.iterdir()] == [("official.pth", b"earlier")]


# -- strictness -------------------------------------------------------------------------------------------------------


def refused(path, config, *matches, error=ValueError):
    with pytest.raises(error) as raised:
        load_official_checkpoint(path, config)
    message = str(raised.value)
    assert "\n" not in message
    for match in matches:
        assert match in message, message


def test_missing_and_left_over_keys_are_listed(rewritten):
    def change(weights):
        del weights["module.neck.txt_proj.bias"]
        del weights["module.dinov2.blocks.3.adapter.D_fc1.weight"]
        weights["module.surplus.weight"] = torch.zeros(1)

    refused(
        rewritten(change),
        reference_config(),
        "missing: 2 (dinov2.blocks.3.adapter.D_fc1.weight, neck.txt_proj.bias)",
        "left over: 1 (surplus.weight)",
        "No preset fits it",
    )


@pytest.mark.parametrize("key", ["txt_backbone.logit_scale", "dinov2.mask_token", "proj.vis.4.bias"])
def test_no_key_may_be_missing(rewritten, key):
    refused(rewritten(lambda w: w.pop(f"module.{key}")), reference_config(), f"missing: 1 ({key}); left over: none")


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
    refused(path, reference_config(), f"sizes differ: 1 ({key} is {shape}, needed (")


def test_other_sizes_than_the_config(tmp_path):
    refused(
        CHECKPOINT, reference_config(decoder_ffn_dim=32), "sizes differ: 10 (", "ffn.0.bias is (64,), needed (32,)"
    )
    refused(CHECKPOINT, reference_config(vision_adapter=None), "left over", "dinov2.blocks.1.adapter.D_fc1.bias")
    refused(CHECKPOINT, reference_config(decoder_layers=3), "missing: ", "decoder.layers.2.")


def test_unknown_preset():
    refused(CHECKPOINT, "detris-xl", "There is no preset 'detris-xl'", "detris-l-mixed")


def test_wrong_preset():
    refused(CHECKPOINT, "detris-b", "missing: ", "decoder.layers.2.", "No preset fits it: pass its own config")


@pytest.mark.parametrize(
    ("keys", "given", "fits"),
    [("keys_large_mixed", "detris-l", "detris-l-mixed"), ("keys_base", "detris-l", "detris-b")],
)
def test_the_preset_that_would_fit_is_named(monkeypatch, keys, given, fits):
    """From the key lists of the released files, without their gigabytes."""
    released = json.loads((FIXTURES / f"{keys}.json").read_text())
    weights = {key: torch.empty(shape, device="meta") for key, shape in released.items()}
    monkeypatch.setattr("detris_peft.conversion.official_checkpoint.read_official", lambda path, mmap: weights)
    refused("some.pth", given, f"It fits the preset {fits}.")


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"vision_config": Dinov2Config(num_hidden_layers=3)}, "vision_config is a dinov2: the released layout is of"),
        ({"hidden_dim": 32}, "hidden_dim=32, but the text encoder is 64 wide"),
        ({"text_config": SiglipTextConfig(hidden_size=64)}, "text_config is a SiglipTextModel: the released layout"),
        (
            {"vision_adapter": DenseAlignerConfig(text_dim=64, target_modules="x")},
            "vision_adapter.target_modules is a",
        ),
    ],
)
def test_architectures_the_authors_do_not_have(changes, match):
    refused(CHECKPOINT, reference_config(**changes), match)


def test_models_the_authors_do_not_have(tmp_path):
    model = load_official_checkpoint(CHECKPOINT, reference_config())
    model.vision_model.add_adapter("second", model.config.vision_adapter)
    with pytest.raises(ValueError, match=r"no place for this model, which differs in .*second"):
        save_official_checkpoint(model, tmp_path / "official.pth")
    assert not (tmp_path / "official.pth").exists()


def test_saving_with_another_position_table_warns(tmp_path):
    model = DetrisForReferringSegmentation(reference_config())
    with pytest.warns(UserWarning, match="position_interpolation is 'backbone'"):
        save_official_checkpoint(model, tmp_path / "official.pth")


# -- other files ------------------------------------------------------------------------------------------------------


class Payload:
    """Pickled, it makes a folder when it is read by an unpickler that runs what it is told."""

    def __init__(self, target):
        self.target = target

    def __reduce__(self):
        return os.mkdir, (str(self.target),)


@pytest.mark.parametrize("write", ["torch", "torch legacy", "pickle"])
def test_pickled_code_is_never_run(tmp_path, write):
    content, path = {"state_dict": {"module.x": Payload(tmp_path / "ran")}}, tmp_path / "evil.pth"
    if write == "pickle":
        path.write_bytes(pickle.dumps(content))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=write == "torch")
    refused(path, reference_config(), "evil.pth", "pickled code in it, which is never run")
    assert not (tmp_path / "ran").exists()
    # The payload is live: an unpickler that trusts it runs it.
    torch.load(path, weights_only=False) if write != "pickle" else pickle.loads(path.read_bytes())
    assert (tmp_path / "ran").exists()


@pytest.mark.parametrize("size", [0, 1, 100, 5_000, -1, -100_000])
def test_truncated(tmp_path, size):
    (tmp_path / "cut.pth").write_bytes(CHECKPOINT.read_bytes()[:size])
    refused(tmp_path / "cut.pth", reference_config(), "cut.pth is truncated" if abs(size) > 1 else "cut.pth is ")


@pytest.mark.parametrize("content", [b"not a checkpoint at all", b"\x89PNG\r\n\x1a\n" + bytes(50), b"\x80\x02}q\x00."])
def test_no_checkpoint(tmp_path, content):
    (tmp_path / "other.pth").write_bytes(content)
    refused(tmp_path / "other.pth", reference_config(), "other.pth ")


def test_missing_file(tmp_path):
    refused(tmp_path / "none.pth", "detris-b", "There is no checkpoint", "none.pth", error=FileNotFoundError)
    refused(tmp_path, "detris-b", "There is no checkpoint", error=FileNotFoundError)


def test_other_files_are_named_for_what_they_are(tmp_path):
    tensor, path = torch.zeros(2), tmp_path / "other.pth"
    for content, match in (
        ({"cls_token": tensor, "pos_embed": tensor, "blocks.0.norm1.weight": tensor}, "is a DINO backbone alone"),
        ({"token_embedding.weight": tensor, "text_projection": tensor, "visual.proj": tensor}, "is a CLIP alone"),
        ({"model": {}}, 'holds no "state_dict"'),
        ([tensor], "holds a list"),
        ({"state_dict": tensor}, '"state_dict" in'),
        ({"state_dict": {"module.x": 1.0}}, "is not a dict of tensors"),
    ):
        torch.save(content, path)
        refused(path, "detris-b", "other.pth", match)
    torch.jit.save(torch.jit.trace(torch.nn.Linear(2, 2), torch.zeros(1, 2)), path)
    refused(path, "detris-b", "is a TorchScript archive, as OpenAI publishes CLIP")


def test_files_of_old_torch_are_read(tmp_path):
    """Written before torch 1.6, not as a zip."""
    content = torch.load(CHECKPOINT, weights_only=True)
    torch.save(content, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    for key, value in read_official(tmp_path / "old.pth").items():
        assert torch.equal(value, content["state_dict"][f"module.{key}"]), key


# -- full size --------------------------------------------------------------------------------------------------------


FULL_SIZE = """
import re, sys, torch
from pathlib import Path
from detris_peft.conversion.official_checkpoint import load_official_checkpoint
def peak_memory():  # of this process alone: getrusage would start from its parent's
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
def test_full_size(preset, tmp_path):
    """Saved, read in a fresh process with less memory than 1.5 times the file: the same logits."""
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
