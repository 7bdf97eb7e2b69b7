"""The model: shapes, errors, frozen weights, training mode, gradient checkpointing, precision."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from transformers.modeling_layers import GradientCheckpointingLayer

from detris_peft import DetrisForReferringSegmentation
from detris_peft.adapters import ParallelAdapterLayer
from detris_peft.modeling.losses import segmentation_loss
from tests.helpers.tiny_models import image_encoder, inputs, text_encoder, tiny_config


def make(**changes) -> DetrisForReferringSegmentation:
    return DetrisForReferringSegmentation(tiny_config(**changes))


@pytest.mark.parametrize("without", [(), ("vision_adapter",), ("text_adapter",), ("vision_adapter", "text_adapter")])
def test_shapes_with_and_without_adapters(without):
    """The ablation of Table 3: every combination runs and trains exactly its adapters and the head."""
    model = make(**dict.fromkeys(without))
    batch = inputs()
    out = model(**batch)
    assert out.logits.shape == (2, 1, 24, 24)
    assert out.text_states.shape == (2, 7, 48)
    assert out.sentence_state.shape == (2, 24)
    assert [feature_map.shape for feature_map in out.vision_features] == [(2, 32, 6, 6)] * 3
    assert out.loss.shape == ()
    out.loss.backward()
    trained = {name.split(".")[0] for name, p in model.named_parameters() if p.requires_grad}
    expected = {"neck", "decoder", "projector", "vision_model", "text_model"}
    assert trained == expected - {name.replace("adapter", "model") for name in without}
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)


def test_tuple_output_equals_the_model_output():
    model = make().eval()
    batch = inputs()
    out, values = model(**batch), model(**batch, return_dict=False)
    assert isinstance(values, tuple)
    assert torch.equal(values[0], out.loss)
    assert torch.equal(values[1], out.logits)
    assert model(batch["pixel_values"], batch["input_ids"]).loss is None


def test_model_loss_is_that_of_its_logits():
    model = make().eval()
    batch = inputs()
    out = model(**batch)
    assert torch.equal(out.loss, segmentation_loss(out.logits, batch["labels"]))


@pytest.mark.parametrize(("height", "width"), [(40, 64), (64, 24), (48, 48)])
def test_any_multiple_of_the_patch_size_is_accepted(height, width):
    out = make().eval()(**inputs(height=height, width=width))
    assert out.logits.shape == (2, 1, height // 2, width // 2)
    assert out.vision_features[0].shape == (2, 32, height // 8, width // 8)


def test_patch_grid_is_not_transposed():
    """A change of one patch changes the feature map most at the row and column of that patch."""
    model = make().eval()
    wide = inputs(height=40, width=64)
    with torch.no_grad():
        text, _ = model.encode_text(wide["input_ids"])
        features = model.encode_image(wide["pixel_values"], text)[0]
        changed = wide["pixel_values"].clone()
        changed[:, :, -8:, :8] += 3  # the patch at the bottom left
        moved = model.encode_image(changed, text)[0] - features
    strongest = moved.norm(dim=1).flatten(1).argmax(dim=1)
    assert strongest.tolist() == [4 * 8] * 2


@pytest.mark.parametrize(("height", "width"), [(44, 48), (48, 50)])
def test_other_image_sizes_raise(height, width):
    match = f"pixel_values: expected sides that are multiples of the patch size 8, got {height}x{width} pixels"
    with pytest.raises(ValueError, match=match):
        make()(**inputs(height=height, width=width))


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("pixel_values", lambda value: value[0], r"a tensor of images \(B, 3, H, W\), got shape \(3, 48, 48\)"),
        ("pixel_values", lambda value: value.numpy(), r"a tensor of images \(B, 3, H, W\), got ndarray"),
        ("input_ids", lambda value: value[0], r"a tensor of tokens \(B, L\), got shape \(7,\)"),
        ("input_ids", lambda value: value[:, :0], r"a tensor of tokens \(B, L\), got shape \(2, 0\)"),
        ("input_ids", lambda value: value[:1], "one for each image, got 1 for 2 images"),
        ("input_ids", lambda value: value.float(), "integers, got torch.float32"),
        ("labels", lambda value: value[:, None], r"a tensor of masks \(B, H, W\), got shape \(2, 1, 48, 48\)"),
        ("labels", lambda value: value[:, :30], r"masks with the height and width of pixel_values, .*got \(30, 48\)"),
    ],
)
def test_inputs_of_other_shapes_are_named(name, change, message):
    batch = inputs()
    with pytest.raises(ValueError, match=f"{name}: expected {message}"):
        make()(**{**batch, name: change(batch[name])})


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"vision_model": "facebook/dinov2-base"}, "vision_model: expected a model of transformers, got str; load it"),
        ({"text_model": None}, "text_model: expected a model of transformers, got NoneType"),
        ({"vision_model": text_encoder()}, "vision_model: expected an image encoder, got 'clip_text_model'"),
        ({"text_model": image_encoder()}, "text_model: expected a text encoder, got 'dinov2_with_registers'"),
        ({"config": {}}, "config: expected a DetrisConfig or None, got dict"),
        ({"tokenizer": "openai/clip"}, "tokenizer: expected a tokenizer of transformers, got str; load it with"),
    ],
)
def test_other_arguments_of_from_backbones_are_named(arguments, message):
    given = {"vision_model": image_encoder(), "text_model": text_encoder(), "config": tiny_config()}
    with pytest.raises((TypeError, ValueError), match=message):
        DetrisForReferringSegmentation.from_backbones(**{**given, **arguments})


def test_decoder_ignores_padding():
    """The decoder's output does not depend on text states at padding."""
    model = make().eval()
    features, states = torch.randn(2, 40, 6, 6), torch.randn(2, 7, 48)
    mask = torch.zeros(2, 7, dtype=torch.bool)
    mask[0, 5:] = True
    other = states.clone()
    other[0, 5:] = 100.0
    assert torch.equal(model.decoder(features, states, mask), model.decoder(features, other, mask))
    other[1, 5:] = 100.0
    assert not torch.equal(model.decoder(features, states, mask)[1], model.decoder(features, other, mask)[1])


# -- frozen weights and training mode ---------------------------------------------------------------------------------


def test_only_adapters_and_head_are_trained():
    model = make()
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    frozen = {name for name, _ in model.named_parameters()} - trained
    assert all(n.startswith(("neck.", "decoder.", "projector.")) or "_branches." in n for n in trained)
    assert not [n for n in frozen if n.startswith(("neck.", "decoder.", "projector.")) or "_branches." in n]
    # An optimizer step changes the trained weights; the frozen ones stay bit-identical.
    before = copy.deepcopy(model.state_dict())
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=1.0)
    model(**inputs()).loss.backward()
    optimizer.step()
    for name, value in model.state_dict().items():
        if name in frozen:
            assert torch.equal(value, before[name]), name
    assert sum(not torch.equal(model.state_dict()[n], before[n]) for n in trained) > 0.9 * len(trained)


DROPOUT = [
    ("vit", "bert", {"hidden_dropout_prob": 0.5, "attention_probs_dropout_prob": 0.5}),
    ("dinov2", "xlm_roberta", {"hidden_dropout_prob": 0.5, "attention_probs_dropout_prob": 0.5}),
    ("dinov2", "clip", {"drop_path_rate": 0.5}),
    ("siglip", "clip_projected", {"attention_dropout": 0.5}),
]


@pytest.mark.parametrize(("image", "text", "rates"), DROPOUT)
def test_backbones_have_no_dropout_in_training(image, text, rates):
    """Frozen features do not depend on `.train()`, even if the backbone has dropout or drop path."""
    model = DetrisForReferringSegmentation.from_backbones(
        image_encoder(image, **rates), text_encoder(text, **rates), tiny_config(vision_adapter=None, text_adapter=None)
    )
    batch = inputs(pad=model.config.pad_token_id)
    with torch.no_grad():
        training = model.train()(**batch)
        evaluation = model.eval()(**batch)
    for name in ("text_states", "sentence_state"):
        assert torch.equal(training[name], evaluation[name])
    for one, other in zip(training.vision_features, evaluation.vision_features, strict=True):
        assert torch.equal(one, other)


def test_train_changes_the_mode_of_adapters_and_head_only():
    model = make()
    assert model.training, "a new model is in training mode, like any module"
    for mode in (True, False):
        model.train(mode)
        for part in (model.neck, model.decoder, model.projector):
            assert all(m.training is mode for m in part.modules())
        for wrapped in (model.vision_model, model.text_model):
            for layer in (m for m in wrapped.modules() if isinstance(m, ParallelAdapterLayer)):
                assert all(m.training is mode for m in layer.branches.modules())
                assert not any(m.training for m in layer.base_layer.modules())
            frozen = [m for n, m in wrapped.named_modules() if "_branches" not in n]
            checked = [m for m in frozen if isinstance(m, (nn.Dropout, nn.LayerNorm, nn.Linear))]
            assert checked
            assert not any(m.training for m in checked)


def test_batch_norm_statistics_are_updated_in_training_only():
    model = make()
    norms = {n: m for n, m in model.named_modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)}
    assert {n.split(".")[0] for n in norms} == {"neck", "projector", "vision_model", "text_model"}
    model.eval()(**inputs())
    assert all(m.num_batches_tracked == 0 for m in norms.values())
    model.train()(**inputs())
    assert all(m.num_batches_tracked == 1 for m in norms.values())


# -- gradient checkpointing -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("image", "text", "rates"),
    [("dinov2_with_registers", "clip_projected", {}), ("dinov3", "siglip", {}), ("clip", "bert", {}), *DROPOUT],
)
def test_gradient_checkpointing_does_not_change_the_results(image, text, rates):
    """Loss, gradients and running statistics are the same, and the blocks are recomputed."""
    model = DetrisForReferringSegmentation.from_backbones(
        image_encoder(image, **rates), text_encoder(text, **rates), tiny_config(dropout=0.0)
    )
    for layer in model.modules():
        if isinstance(layer, nn.MultiheadAttention):
            layer.dropout = 0.0
    checkpointed = copy.deepcopy(model)
    checkpointed.activation_checkpointing_enable()
    assert checkpointed.is_activation_checkpointing
    batch = inputs(pad=model.config.pad_token_id)
    runs = []
    for each in (model, checkpointed):
        calls = []
        for wrapped in (each.vision_model, each.text_model):
            for block in (m for m in wrapped.modules() if isinstance(m, GradientCheckpointingLayer)):
                # A hook inside the block counts the recomputation; a hook on the block would not.
                inner = next(m for m in block.modules() if isinstance(m, nn.LayerNorm))
                inner.register_forward_hook(lambda *_, block=block, calls=calls: calls.append(block))
        each.train()
        loss = each(**batch).loss
        forward = len(calls)
        loss.backward()
        runs.append((loss, forward, len(calls) - forward))
    (loss, forward, backward), (checkpointed_loss, checkpointed_forward, checkpointed_backward) = runs
    assert backward == 0
    assert checkpointed_forward == forward
    assert checkpointed_backward >= 3, "blocks with gradients are recomputed, also those of the text encoder"
    assert torch.equal(loss, checkpointed_loss)
    for (name, one), other in zip(model.named_parameters(), checkpointed.parameters(), strict=True):
        if one.requires_grad:
            torch.testing.assert_close(one.grad, other.grad, rtol=1e-5, atol=1e-7, msg=name)
    for (name, one), other in zip(model.named_buffers(), checkpointed.buffers(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=0, msg=name)


def test_gradient_checkpointing_can_be_disabled():
    model = make()
    model.activation_checkpointing_enable()
    model.activation_checkpointing_disable()
    assert not model.is_activation_checkpointing
    model(**inputs()).loss.backward()


# -- precision --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("lowered", [("image",), ("text",), ("image", "text")])
def test_backbones_may_have_a_lower_precision_than_the_head(dtype, lowered):
    vision = image_encoder()
    text = text_encoder()
    exact = DetrisForReferringSegmentation.from_backbones(
        copy.deepcopy(vision), copy.deepcopy(text), tiny_config()
    ).eval()
    vision = vision.to(dtype) if "image" in lowered else vision
    text = text.to(dtype) if "text" in lowered else text
    model = DetrisForReferringSegmentation.from_backbones(vision, text, tiny_config())
    trained = {n: p for n, p in model.named_parameters() if p.requires_grad}
    assert {p.dtype for p in trained.values()} == {torch.float32}
    model.load_state_dict({n: p for n, p in exact.state_dict().items() if n in trained}, strict=False)
    batch = inputs()
    out = model.eval()(**batch)
    assert out.logits.dtype == torch.float32
    expected = exact(**batch).logits
    assert (out.logits - expected).abs().max() < 0.1 * expected.std()
    model.train()(**batch).loss.backward()
    assert all(p.grad.isfinite().all() and p.grad.dtype == torch.float32 for p in trained.values())


def test_complete_model_in_bfloat16():
    model = make().to(torch.bfloat16)
    batch = inputs()
    out = model(batch["pixel_values"].bfloat16(), batch["input_ids"], batch["labels"])
    assert (out.logits.dtype, out.loss.dtype) == (torch.bfloat16, torch.float32)
    out.loss.backward()


def test_training_step_under_autocast():
    model = make()
    with torch.autocast("cpu", torch.bfloat16):
        loss = model(**inputs()).loss
    loss.backward()
    assert loss.dtype == torch.float32
    assert all(p.grad.dtype == torch.float32 for p in model.parameters() if p.requires_grad)


def test_attention_implementations_agree():
    model = make().eval()
    batch = inputs()
    sdpa = model(**batch).logits
    model.set_attn_implementation("eager")
    assert model.config.vision_config._attn_implementation == "eager"
    torch.testing.assert_close(model(**batch).logits, sdpa, rtol=1e-4, atol=1e-5)
