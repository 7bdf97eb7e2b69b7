"""Tests of loading the original DINOv2 and CLIP files."""

from __future__ import annotations

import zipfile

import pytest
import torch
from transformers import CLIPTextConfig, CLIPTextModelWithProjection, Dinov2WithRegistersConfig
from transformers import Dinov2WithRegistersModel as Dinov2

from detris_peft.conversion.original_backbones import load_original_clip_text, load_original_dinov2
from tests.helpers.original_files import original_weights, write_torchscript
from tests.helpers.reference import FIXTURES


@pytest.fixture(scope="module")
def dinov2(tmp_path_factory):
    """A model and its original file."""
    config = Dinov2WithRegistersConfig(
        hidden_size=128, num_hidden_layers=3, num_attention_heads=2, image_size=42, patch_size=14, mlp_ratio=2
    )
    model = Dinov2(config).eval()
    path = tmp_path_factory.mktemp("dino") / "dino.pth"
    torch.save(original_weights(model, "vision"), path)
    return model, path


@pytest.fixture(scope="module")
def clip():
    """A model and its original weights."""
    config = CLIPTextConfig(
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=1,
        vocab_size=50,
        projection_dim=24,
        max_position_embeddings=11,
        bos_token_id=48,
        eos_token_id=49,
        pad_token_id=0,
    )
    model = CLIPTextModelWithProjection(config).eval()
    other = {"visual.proj": torch.zeros(3), "input_resolution": torch.tensor(224)}
    return model, {**original_weights(model, "text"), **other}


def test_original_dinov2_gives_the_same_outputs(dinov2):
    model, path = dinov2
    loaded, pixels = load_original_dinov2(path), torch.randn(1, 3, 42, 56)
    with torch.no_grad():
        assert torch.equal(loaded(pixels).last_hidden_state, model(pixels).last_hidden_state)
    assert not loaded.training


@pytest.mark.parametrize("file_format", ["state_dict", "archive"])
def test_original_clip_gives_the_same_outputs(clip, file_format, tmp_path, monkeypatch):
    model, weights = clip
    path = tmp_path / "clip.pt"
    torch.save(weights, path) if file_format == "state_dict" else write_torchscript(weights, path)
    monkeypatch.setattr(torch.jit, "load", lambda *a, **k: pytest.fail("the code of the archive was loaded"))
    loaded, input_ids = load_original_clip_text(path), torch.tensor([[48, 3, 7, 49, 0]])
    with torch.no_grad():
        assert torch.equal(loaded(input_ids).text_embeds, model(input_ids).text_embeds)
        assert torch.equal(loaded(input_ids).last_hidden_state, model(input_ids).last_hidden_state)


def test_other_files_are_rejected_with_their_content(dinov2, clip, tmp_path):
    torch.save(clip[1], tmp_path / "clip.pt")
    torch.save({"weight": torch.zeros(2)}, tmp_path / "other.pt")
    torch.save({"weight": 2}, tmp_path / "numbers.pt")
    write_torchscript(clip[1], tmp_path / "archive.pt")
    with pytest.raises(ValueError, match="expected an original CLIP file of OpenAI, got a DINO backbone"):
        load_original_clip_text(dinov2[1])
    for file, got in (
        (tmp_path / "clip.pt", "a CLIP"),
        (tmp_path / "archive.pt", "a TorchScript archive, the format of OpenAI's CLIP files"),
        (tmp_path / "other.pt", "other weights, such as weight"),
        (tmp_path / "numbers.pt", "a dict of other values than tensors"),
        (FIXTURES / "tiny_checkpoint.pth", "a training checkpoint"),
    ):
        with pytest.raises(ValueError, match=f"expected DINOv2 with registers .*, got {got}"):
            load_original_dinov2(file)


def test_incomplete_files_are_rejected(dinov2, tmp_path):
    weights = torch.load(dinov2[1], weights_only=True)
    torch.save({key: value for key, value in weights.items() if key != "norm.bias"}, tmp_path / "cut.pth")
    with pytest.raises(ValueError, match=r"does not match: missing keys: 1 \(norm.bias\); unexpected keys: none"):
        load_original_dinov2(tmp_path / "cut.pth")
    del weights["register_tokens"]
    torch.save(weights, tmp_path / "without_registers.pth")
    with pytest.raises(ValueError, match=r"whose size cannot be inferred \('register_tokens'\)"):
        load_original_dinov2(tmp_path / "without_registers.pth")


def test_code_in_an_archive_is_rejected_and_not_executed(clip, tmp_path):
    write_torchscript(clip[1], tmp_path / "archive.pt")
    with zipfile.ZipFile(tmp_path / "archive.pt") as old, zipfile.ZipFile(tmp_path / "evil.pt", "w") as new:
        for name in old.namelist():
            evil = f"cos\nmkdir\n(V{tmp_path}/ran\ntR.".encode()
            new.writestr(name, evil if name.endswith("/data.pkl") else old.read(name))
    with pytest.raises(ValueError, match=r"(os|posix)\.mkdir is not allowed"):
        load_original_clip_text(tmp_path / "evil.pt")
    assert not (tmp_path / "ran").exists()


def changed(weights, **changes):
    """Return weights in which a function changes some, by key with `__` for `.`."""
    names = {name.replace("__", "."): change for name, change in changes.items()}
    assert names.keys() <= weights.keys()
    return {key: names[key](value) if key in names else value for key, value in weights.items()}


@pytest.mark.parametrize(
    ("key", "change", "problem"),
    [
        ("norm.bias", lambda v: v * float("nan"), "NaN or infinite values in norm.bias"),
        ("norm.bias", lambda v: v.long(), "type int64 in norm.bias"),
        ("norm.bias", lambda v: v > 0, "type bool in norm.bias"),
        ("cls_token", lambda v: v.to(torch.complex64), "type complex64 in cls_token"),
        ("pos_embed", lambda v: v.to("meta"), "a tensor without data (device meta) in pos_embed"),
        ("pos_embed", lambda v: v[:, :0], "an empty or sparse tensor in pos_embed"),
        ("cls_token", lambda v: v[..., :32], "size cannot be inferred (width 32, expected a multiple of 64"),
        ("cls_token", lambda v: v[..., :100], "size cannot be inferred (width 100, expected a multiple of 64"),
        ("cls_token", lambda v: v[0, 0, 0], "size cannot be inferred"),
        ("pos_embed", lambda v: v[0, 0], "size cannot be inferred"),
        ("register_tokens", lambda v: v.view(-1), "size cannot be inferred"),
    ],
)
def test_damaged_dinov2_files_are_rejected_in_one_line(dinov2, tmp_path, key, change, problem):
    torch.save(
        changed(torch.load(dinov2[1], weights_only=True), **{key.replace(".", "__"): change}), tmp_path / "d.pth"
    )
    with pytest.raises(ValueError, match=r"d.pth: expected ") as caught:
        load_original_dinov2(tmp_path / "d.pth")
    assert problem in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("scripted", [False, True])
@pytest.mark.parametrize(
    ("key", "change", "problem"),
    [
        ("ln_final.bias", lambda v: v * float("nan"), "NaN or infinite values in ln_final.bias"),
        ("ln_final.bias", lambda v: v.int(), "type int32 in ln_final.bias"),
        ("token_embedding.weight", lambda v: v[:, :48], "size cannot be inferred (width 48"),
        ("token_embedding.weight", lambda v: v[0], "size cannot be inferred"),
        ("text_projection", lambda v: v[0], "size cannot be inferred"),
        ("positional_embedding", lambda v: v.sum(), "size cannot be inferred"),
    ],
)
def test_damaged_clip_files_are_rejected_in_one_line(clip, tmp_path, key, change, problem, scripted):
    weights = changed(clip[1], **{key.replace(".", "__"): change})
    write_torchscript(weights, tmp_path / "c.pt") if scripted else torch.save(weights, tmp_path / "c.pt")
    with pytest.raises(ValueError, match=r"c.pt: expected ") as caught:
        load_original_clip_text(tmp_path / "c.pt")
    assert problem in str(caught.value)
    assert "\n" not in str(caught.value)


def test_layers_must_be_numbered_without_gaps(dinov2, tmp_path):
    """A key such as blocks.10000000.norm1.bias would otherwise build ten million layers."""
    weights = torch.load(dinov2[1], weights_only=True)
    torch.save({**weights, "blocks.10000000.norm1.bias": torch.zeros(1)}, tmp_path / "d.pth")
    with pytest.raises(ValueError, match="4 layers whose largest number is 10000000"):
        load_original_dinov2(tmp_path / "d.pth")
