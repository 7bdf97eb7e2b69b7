"""The Bridger's stages, and how it connects two encoders."""

from __future__ import annotations

import copy

import pytest
import torch
from accelerate import cpu_offload, disk_offload
from peft import LoraConfig
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from detris_peft import DetrisConfig, DetrisForReferringSegmentation, TextAdapterConfig
from detris_peft.modeling.bridger import Bridger, BridgerStage
from detris_peft.modeling.bridger_config import BridgerConfig
from detris_peft.training.sync_batch_norm import SyncBatchNorm, convert_sync_batch_norm
from tests.helpers.replicas import call_in_threads, replicate
from tests.helpers.tiny_models import IMAGE, TEXT, image_encoder, inputs, perturb, text_encoder, tiny_config

BRIDGER = {"dim": 16, "num_heads": 2, "vision_after_blocks": [0, 2], "text_after_blocks": [1, 2]}


def make(image="dinov2_with_registers", text="clip_projected", depths=(3, 3), **changes):
    """Return a model with a Bridger and no adapters, with changed weights, in eval mode."""
    torch.manual_seed(0)
    vision = image_encoder(image, num_hidden_layers=depths[0])
    text_model = text_encoder(text, num_hidden_layers=depths[1])
    encoders = {"vision_config": vision.config, "text_config": text_model.config}
    fields = {"vision_adapter": None, "text_adapter": None, "bridger": BRIDGER, "dropout": 0.0, "pad_token_id": None}
    config = tiny_config(**{**encoders, **fields, **changes})
    model = DetrisForReferringSegmentation.from_backbones(vision, text_model, config)
    perturb(model)
    return model.eval()


def batch(model, **changes) -> dict[str, torch.Tensor]:
    return {**inputs(height=40, width=56, pad=model.config.pad_token_id), **changes}


def without_influence(model) -> DetrisForReferringSegmentation:
    """Return a copy whose Bridger adds zeros."""
    model = copy.deepcopy(model)
    for stage in model.bridger.stages:
        for module in (stage.vision_up[1], stage.text_up):
            nn.init.zeros_(module.weight)
            nn.init.zeros_(module.bias)
    return model


def test_number_of_parameters():
    """The default encoders: DINOv2-B/14 with registers and the text encoder of CLIP ViT-B/16."""
    with torch.device("meta"):
        model = DetrisForReferringSegmentation(
            DetrisConfig(vision_adapter=None, text_adapter=None, bridger=BridgerConfig())
        )
        plain = DetrisForReferringSegmentation(DetrisConfig(vision_adapter=None, text_adapter=None))
    counts = [sum(p.numel() for p in m.parameters() if p.requires_grad) for m in (model, plain)]
    assert counts[0] - counts[1] == 1_387_648
    assert model.state_dict().keys() - plain.state_dict().keys() == {
        f"bridger.{key}" for key in model.bridger.state_dict()
    }
    assert isinstance(model.bridger.stages[2].vision_down[0], nn.ConvTranspose2d)
    assert isinstance(model.bridger.stages[0].vision_up[0], nn.ConvTranspose2d)


def attention(module: nn.MultiheadAttention, query: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    """Multi-head attention (B, N, d), (B, M, d) → (B, N, d), one head after the other."""
    dim, heads = query.shape[-1], module.num_heads
    wq, wk, wv = module.in_proj_weight.split(dim)
    bq, bk, bv = module.in_proj_bias.split(dim)
    q, k, v = query @ wq.T + bq, other @ wk.T + bk, other @ wv.T + bv
    parts = []
    for i in range(heads):
        part = slice(i * dim // heads, (i + 1) * dim // heads)
        scores = q[..., part] @ k[..., part].transpose(1, 2) / (dim // heads) ** 0.5
        parts.append(scores.softmax(-1) @ v[..., part])
    return torch.cat(parts, -1) @ module.out_proj.weight.T + module.out_proj.bias


def normalized(norm: nn.BatchNorm2d, x: torch.Tensor) -> torch.Tensor:
    """BatchNorm in eval mode and ReLU for tokens (B, N, channels)."""
    return ((x - norm.running_mean) / (norm.running_var + norm.eps).sqrt() * norm.weight + norm.bias).clamp(min=0)


def matrix(conv: nn.Conv2d | nn.ConvTranspose2d) -> torch.Tensor:
    """Return the weights of a 1×1 convolution as (inputs, outputs)."""
    weight = conv.weight[:, :, 0, 0]
    return weight if isinstance(conv, nn.ConvTranspose2d) else weight.T


@pytest.mark.parametrize(("is_first", "is_last"), [(True, False), (False, False), (False, True), (True, True)])
@torch.no_grad()
def test_a_stage_follows_the_paper(is_first, is_last):
    stage = BridgerStage(24, 20, 16, 4, is_first, is_last).eval()
    perturb(stage)
    patches, words = torch.randn(2, 6, 24), torch.randn(2, 5, 20)
    previous = None if is_first else (torch.randn(2, 6, 16), torch.randn(2, 5, 16))
    vision_update, text_update, pair = stage(patches, words, (2, 3), previous)

    v = normalized(stage.vision_down[1], patches @ matrix(stage.vision_down[0]))
    t = words @ stage.text_down.weight.T + stage.text_down.bias
    if previous is not None:
        v, t = stage.vision_norm(v + previous[0]), stage.text_norm(t + previous[1])
    torch.testing.assert_close(pair, (v, t))
    fused_v, fused_t = v * attention(stage.vision_attention, v, t), t * attention(stage.text_attention, t, v)
    torch.testing.assert_close(vision_update, normalized(stage.vision_up[1], fused_v @ matrix(stage.vision_up[0])))
    torch.testing.assert_close(text_update, fused_t @ stage.text_up.weight.T + stage.text_up.bias)
    assert vision_update.any()


@torch.no_grad()
def test_prefix_tokens_do_not_change():
    bridger = Bridger(BridgerConfig(**BRIDGER), image_encoder(), text_encoder()).eval()
    image_states, text_states = torch.randn(2, 5 + 6, 32), torch.randn(2, 7, 48)
    new_image, new_text, _ = bridger(0, image_states, text_states, (2, 3))
    assert torch.equal(new_image[:, :5], image_states[:, :5])
    assert (new_image[:, 5:] != image_states[:, 5:]).any(-1).all()
    assert (new_text != text_states).any(-1).all()


@pytest.mark.parametrize(
    ("image", "text"), [*zip(IMAGE, [*TEXT, "clip_projected"], strict=True), ("dinov2_with_registers", "siglip")]
)
@torch.no_grad()
def test_a_bridger_that_adds_nothing_gives_the_plain_model(image, text):
    model = make(image, text)
    head = {key: value for key, value in model.state_dict().items() if not key.startswith("bridger.")}
    plain = copy.deepcopy(model)
    plain.bridger = None
    assert plain.state_dict().keys() == head.keys()
    expected, got = plain(**batch(model)), without_influence(model)(**batch(model))
    assert torch.equal(got.sentence_state, expected.sentence_state)
    assert torch.equal(got.text_states, expected.text_states)
    assert all(map(torch.equal, got.vision_features, expected.vision_features))
    assert torch.equal(got.logits, expected.logits)
    assert not torch.equal(model(**batch(model)).logits, expected.logits)


@torch.no_grad()
def test_both_directions():
    """A pixel changes the words, and a word changes the patches; the first stage passes both on to the second."""
    model = make()
    first = batch(model)
    other_image = {**first, "pixel_values": first["pixel_values"] + 0.1}
    input_ids = first["input_ids"].clone()
    input_ids[:, 2] = 33
    before, image, words = (model(**b) for b in (first, other_image, {**first, "input_ids": input_ids}))
    assert (before.text_states != image.text_states).any(-1).all()
    # A patch does not change where ReLU sets all channels of its update to 0.
    assert (before.vision_features[0] != words.vision_features[0]).any(1).float().mean() > 0.9
    plain = without_influence(model)
    before, image, words = (plain(**b) for b in (first, other_image, {**first, "input_ids": input_ids}))
    assert torch.equal(before.text_states, image.text_states)
    assert torch.equal(before.vision_features[-1], words.vision_features[-1])


@torch.no_grad()
def test_each_stage_uses_the_outputs_of_its_blocks():
    """The encoders run by hand, with updates after image blocks 0 and 2, and text blocks 1 and 2."""
    model = make()
    b = batch(model)
    vision, text, grid = model.vision_model, model.text_model.text_model, (5, 7)
    image_states = vision.embeddings(b["pixel_values"])
    words = text.embeddings(input_ids=b["input_ids"])
    causal = torch.full((7, 7), float("-inf")).triu(1)[None, None]
    run_text = lambda states, i: text.encoder.layers[i](states, causal, is_causal=False)  # noqa: E731
    image_states = vision.encoder.layer[0](image_states)
    words = run_text(run_text(words, 0), 1)
    image_states, words, pair = model.bridger(0, image_states, words, grid)
    extracted = [image_states]
    image_states = vision.encoder.layer[1](image_states)
    extracted.append(image_states)
    image_states, words, _ = model.bridger(1, vision.encoder.layer[2](image_states), run_text(words, 2), grid, pair)
    extracted.append(vision.layernorm(image_states))
    got = model(**b)
    torch.testing.assert_close(got.text_states, text.final_layer_norm(words))
    assert model.config.extract_layers == [0, 1]
    for feature_map, states in zip(got.vision_features, extracted, strict=True):
        torch.testing.assert_close(feature_map.flatten(2).transpose(1, 2), states[:, -35:])


@pytest.mark.parametrize("text", ["bert", "clip_projected"])
def test_encoders_of_different_depths(text):
    config = BridgerConfig(dim=16, num_heads=4, vision_after_blocks=[1, 3], text_after_blocks=[0, 2])
    model = make("dinov2", text, depths=(4, 3), bridger=config).train()
    model(**batch(model)).loss.backward()
    assert all(p.grad is not None and p.grad.any() for p in model.bridger.parameters() if p.ndim > 1)
    assert all(p.grad is None for m in (model.vision_model, model.text_model) for p in m.parameters())


@pytest.mark.parametrize(("image", "text"), [("dinov2_with_registers", "clip_projected"), ("siglip", "siglip")])
def test_gradient_checkpointing_changes_nothing(image, text):
    """Statistics of BatchNorm are updated once per step, since no stage is recomputed."""
    models = [make(image, text).train() for _ in range(2)]
    models[1].gradient_checkpointing_enable()
    models[1].train()
    for model in models:
        model(**batch(model)).loss.backward()
    for (name, a), b in zip(models[0].named_parameters(), models[1].parameters(), strict=True):
        assert (a.grad is None) == (b.grad is None) == (not a.requires_grad), name
        if a.grad is not None:
            torch.testing.assert_close(a.grad, b.grad, msg=name)
    for (name, a), b in zip(models[0].named_buffers(), models[1].buffers(), strict=True):
        torch.testing.assert_close(a, b, msg=name)
    assert models[1].bridger.stages[0].vision_down[1].num_batches_tracked == 1


def test_modes_and_synchronized_statistics():
    model = make()
    assert not any(m.training for m in model.bridger.modules())
    model.train()
    assert all(m.training for m in model.bridger.modules())
    convert_sync_batch_norm(model, torch.device("cpu"))
    norms = [m for m in model.bridger.modules() if isinstance(m, _BatchNorm)]
    assert len(norms) == 4
    assert all(isinstance(m, SyncBatchNorm) for m in norms)


@pytest.mark.parametrize("text_adapter", [None, TextAdapterConfig(dim=16, layers_to_transform=[1])])
def test_with_adapters_in_the_encoders(text_adapter):
    model = make(vision_adapter=LoraConfig(r=2, target_modules=["q_proj"]), text_adapter=text_adapter).train()
    model(**batch(model)).loss.backward()
    for name, parameter in model.named_parameters():
        assert (parameter.grad is not None) == parameter.requires_grad, name
    assert any("lora_A" in name for name, p in model.named_parameters() if p.requires_grad)


def test_encoders_in_bfloat16():
    """The Bridger runs in its own precision; the encoders keep theirs."""
    model = make()
    for encoder in (model.vision_model, model.text_model):
        encoder.to(torch.bfloat16)
    model.train()
    out = model(**batch(model, pixel_values=batch(model)["pixel_values"].bfloat16()))
    assert out.text_states.dtype == out.vision_features[0].dtype == torch.bfloat16
    out.loss.backward()
    assert all(p.grad.dtype == torch.float32 for p in model.bridger.parameters())
    expected = make().train()(**batch(model)).logits
    assert (out.logits - expected).norm() < 0.1 * expected.norm()


def test_autocast():
    model = make().train()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = model(**batch(model))
    out.loss.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.bridger.parameters())


def test_replicas_of_data_parallel():
    """Replicas share hooks, and run at the same time."""
    model = make()
    halves = [batch(model), batch(model, pixel_values=batch(model)["pixel_values"] * 0.5)]
    with torch.no_grad():
        expected = [model(**half).logits for half in halves]
        for _ in range(3):
            replicas = replicate(model, 2)
            got = call_in_threads([lambda r=r, h=h: r(**h).logits for r, h in zip(replicas, halves, strict=True)])
            for a, b in zip(got, expected, strict=True):
                torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)


def test_copies(tmp_path):
    model = make()
    expected = model(**batch(model)).logits
    torch.save(model, tmp_path / "model.pt")
    for other in (copy.deepcopy(model), torch.load(tmp_path / "model.pt", weights_only=False)):
        assert torch.equal(other(**batch(model)).logits, expected)
        nn.init.zeros_(other.bridger.stages[0].text_up.weight)
        assert not torch.equal(other(**batch(model)).logits, expected)
    assert torch.equal(model(**batch(model)).logits, expected)


@torch.no_grad()
def test_save_and_load(tmp_path):
    model = make()
    backbones = [copy.deepcopy(part) for part in (model.vision_model, model.text_model)]
    with pytest.warns(UserWarning, match="does not name"):
        model.save_pretrained(tmp_path)
    loaded = DetrisForReferringSegmentation.from_pretrained(
        tmp_path, vision_model=backbones[0], text_model=backbones[1]
    )
    assert loaded.config.bridger == model.config.bridger == BridgerConfig(**BRIDGER)
    assert torch.equal(loaded(**batch(model)).logits, model(**batch(model)).logits)


def test_a_config_that_no_longer_fits_the_model_is_not_saved(tmp_path):
    model = make()
    model.config.bridger = None
    with pytest.raises(ValueError, match=r"config.bridger: expected the value with which .*; restore it"):
        model.save_pretrained(tmp_path / "saved")
    assert not (tmp_path / "saved").exists()


@pytest.mark.parametrize("where", ["cpu", "disk"])
@torch.no_grad()
def test_weights_can_be_offloaded(where, tmp_path):
    model = make(text="siglip")
    b = batch(model, labels=None)
    expected = model(**b).logits
    if where == "cpu":
        cpu_offload(model, execution_device=torch.device("cpu"))
    else:
        disk_offload(model, str(tmp_path), execution_device=torch.device("cpu"))
    assert all(parameter.is_meta for parameter in model.parameters())
    for _ in range(2):
        assert torch.equal(model(**b).logits, expected)
    assert all(parameter.is_meta for parameter in model.parameters())


def test_seeded_weights_of_the_head_do_not_depend_on_the_bridger():
    torch.manual_seed(3)
    plain = DetrisForReferringSegmentation(tiny_config(vision_adapter=None))
    torch.manual_seed(3)
    bridged = DetrisForReferringSegmentation(tiny_config(vision_adapter=None, bridger=BRIDGER))
    for key, value in plain.state_dict().items():
        assert torch.equal(bridged.state_dict()[key], value), key


def test_an_encoder_alone_is_an_error():
    model = make()
    with pytest.raises(ValueError, match=r"expected a model without a Bridger.*call encode"):
        model.encode_text(batch(model)["input_ids"])
    with pytest.raises(ValueError, match=r"expected a model without a Bridger.*call encode"):
        model.encode_image(batch(model)["pixel_values"], torch.randn(2, 7, 48))


def test_wrong_inputs_are_the_errors_of_other_models():
    model = make()
    with pytest.raises(ValueError, match="multiples of the patch size"):
        model(**batch(model, pixel_values=torch.randn(2, 3, 41, 56), labels=None))
    with pytest.raises(ValueError, match="expected tokens from 0 to 59"):
        model(**batch(model, input_ids=torch.full((2, 7), 60)))
    assert model(**batch(model)).logits.isfinite().all()
