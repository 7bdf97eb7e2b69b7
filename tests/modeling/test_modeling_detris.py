"""The model: shapes, the loss, what is frozen, and that training's modes and savings change no number."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from transformers.modeling_layers import GradientCheckpointingLayer

from detris_peft import DetrisForReferringSegmentation
from detris_peft.adapters.layer import ParallelAdapterLayer
from detris_peft.modeling.losses import segmentation_loss
from tests.helpers.tiny_models import image_encoder, inputs, text_encoder, tiny_config


def make(**changes) -> DetrisForReferringSegmentation:
    return DetrisForReferringSegmentation(tiny_config(**changes))


@pytest.mark.parametrize("without", [(), ("vision_adapter",), ("text_adapter",), ("vision_adapter", "text_adapter")])
def test_shapes_with_and_without_adapters(without):
    """The ablation of Table 3: every combination runs, trains what it should, and reports the stages."""
    model = make(**dict.fromkeys(without))
    batch = inputs()
    out = model(**batch)
    assert out.logits.shape == (2, 1, 24, 24)
    assert out.text_states.shape == (2, 7, 48)
    assert out.sentence_state.shape == (2, 24)
    assert [tap.shape for tap in out.vision_features] == [(2, 32, 6, 6)] * 3
    assert out.loss.shape == ()
    out.loss.backward()
    trained = {name.split(".")[0] for name, p in model.named_parameters() if p.requires_grad}
    expected = {"neck", "decoder", "projector", "vision_model", "text_model"}
    assert trained == expected - {name.replace("adapter", "model") for name in without}
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)


def test_tuple_output_is_the_same():
    model = make().eval()
    batch = inputs()
    out, plain = model(**batch), model(**batch, return_dict=False)
    assert isinstance(plain, tuple)
    assert torch.equal(plain[0], out.loss)
    assert torch.equal(plain[1], out.logits)
    assert model(batch["pixel_values"], batch["input_ids"]).loss is None


def test_loss_by_hand():
    """Equation 7: every logit against the label at its nearest pixel; in float32 whatever the logits are."""
    logits, labels = torch.randn(2, 1, 4, 6), torch.rand(2, 12, 24)
    total = 0.0
    for sample in range(2):
        for row in range(4):
            for column in range(6):
                # The released code's nearest neighbor: the pixel at floor(i · scale).
                y, x = labels[sample, row * 3, column * 4].double(), logits[sample, 0, row, column].double()
                total += -(y * torch.log(torch.sigmoid(x)) + (1 - y) * torch.log(1 - torch.sigmoid(x)))
    expected = total / logits.numel()
    torch.testing.assert_close(segmentation_loss(logits, labels).double(), expected, atol=1e-6, rtol=0)
    assert segmentation_loss(logits.bfloat16(), labels.bfloat16()).dtype == torch.float32
    boolean = labels > 0.5
    torch.testing.assert_close(segmentation_loss(logits, boolean), segmentation_loss(logits, boolean.float()))


def test_model_loss_is_that_of_its_logits():
    model = make().eval()
    batch = inputs()
    out = model(**batch)
    assert torch.equal(out.loss, segmentation_loss(out.logits, batch["labels"]))


@pytest.mark.parametrize(("height", "width"), [(40, 64), (64, 24), (48, 48)])
def test_sides_that_are_multiples_of_the_patch(height, width):
    out = make().eval()(**inputs(height=height, width=width))
    assert out.logits.shape == (2, 1, height // 2, width // 2)
    assert out.vision_features[0].shape == (2, 32, height // 8, width // 8)


def test_transposed_grids_are_not_confused():
    """A patch grid read as w×h would give a image's taps in another order."""
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
def test_other_sides_are_refused(height, width):
    with pytest.raises(ValueError, match=f"pixel_values is {height}x{width}: both sides must be multiples .* 8"):
        make()(**inputs(height=height, width=width))


def test_padding_is_not_looked_at_by_the_decoder():
    """The decoder alone: words at padded places do not count."""
    model = make().eval()
    features, states = torch.randn(2, 40, 6, 6), torch.randn(2, 7, 48)
    mask = torch.zeros(2, 7, dtype=torch.bool)
    mask[0, 5:] = True
    other = states.clone()
    other[0, 5:] = 100.0
    assert torch.equal(model.decoder(features, states, mask), model.decoder(features, other, mask))
    other[1, 5:] = 100.0
    assert not torch.equal(model.decoder(features, states, mask)[1], model.decoder(features, other, mask)[1])


# -- frozen -----------------------------------------------------------------------------------------------------------


def backbone_of(wrapped):
    return wrapped.get_base_model() if hasattr(wrapped, "get_base_model") else wrapped


def test_only_adapters_and_head_are_trained():
    model = make()
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    held = {name for name, _ in model.named_parameters()} - trained
    assert all(n.startswith(("neck.", "decoder.", "projector.")) or "_branches." in n for n in trained)
    assert not [n for n in held if n.startswith(("neck.", "decoder.", "projector.")) or "_branches." in n]
    # A step moves what is trained and leaves the rest bit-equal.
    before = copy.deepcopy(model.state_dict())
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=1.0)
    model(**inputs()).loss.backward()
    optimizer.step()
    for name, value in model.state_dict().items():
        if name in held:
            assert torch.equal(value, before[name]), name
    assert sum(not torch.equal(model.state_dict()[n], before[n]) for n in trained) > 0.9 * len(trained)


DROPOUT = [
    ("vit", "bert", {"hidden_dropout_prob": 0.5, "attention_probs_dropout_prob": 0.5}),
    ("dinov2", "xlm_roberta", {"hidden_dropout_prob": 0.5, "attention_probs_dropout_prob": 0.5}),
    ("dinov2", "clip", {"drop_path_rate": 0.5}),
    ("siglip", "clip_projected", {"attention_dropout": 0.5}),
]


@pytest.mark.parametrize(("image", "text", "rates"), DROPOUT)
def test_backbones_drop_nothing_in_training(image, text, rates):
    """Frozen features do not depend on `.train()`, not even where the backbone has dropout to apply."""
    model = DetrisForReferringSegmentation.from_backbones(
        image_encoder(image, **rates), text_encoder(text, **rates), tiny_config(vision_adapter=None, text_adapter=None)
    )
    batch = inputs(pad=model.config.pad_token_id)
    with torch.no_grad():
        trained = model.train()(**batch)
        held = model.eval()(**batch)
    for name in ("text_states", "sentence_state"):
        assert torch.equal(trained[name], held[name])
    for one, other in zip(trained.vision_features, held.vision_features, strict=True):
        assert torch.equal(one, other)


def test_train_reaches_adapters_and_head_only():
    model = make()
    assert model.training, "a new model is in training mode, as any module"
    for mode in (True, False):
        model.train(mode)
        for part in (model.neck, model.decoder, model.projector):
            assert all(m.training is mode for m in part.modules())
        for wrapped in (model.vision_model, model.text_model):
            for layer in (m for m in wrapped.modules() if isinstance(m, ParallelAdapterLayer)):
                assert all(m.training is mode for m in layer.branches.modules())
                assert not any(m.training for m in layer.base_layer.modules())
            plain = [m for n, m in wrapped.named_modules() if "_branches" not in n]
            checked = [m for m in plain if isinstance(m, (nn.Dropout, nn.LayerNorm, nn.Linear))]
            assert checked
            assert not any(m.training for m in checked)


def test_batch_norm_of_head_and_adapters_follows_the_data():
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
def test_gradient_checkpointing_changes_no_number(image, text, rates):
    """Same loss, gradients and running statistics; and the blocks do run twice."""
    model = DetrisForReferringSegmentation.from_backbones(
        image_encoder(image, **rates), text_encoder(text, **rates), tiny_config(dropout=0.0)
    )
    for layer in model.modules():
        if isinstance(layer, nn.MultiheadAttention):
            layer.dropout = 0.0
    saving = copy.deepcopy(model)
    saving.activation_checkpointing_enable()
    assert saving.is_activation_checkpointing
    batch = inputs(pad=model.config.pad_token_id)
    runs = []
    for each in (model, saving):
        calls = []
        for wrapped in (each.vision_model, each.text_model):
            for block in (m for m in wrapped.modules() if isinstance(m, GradientCheckpointingLayer)):
                # Inside the block: the block itself is called once, its forward twice.
                inner = next(m for m in block.modules() if isinstance(m, nn.LayerNorm))
                inner.register_forward_hook(lambda *_, block=block, calls=calls: calls.append(block))
        each.train()
        loss = each(**batch).loss
        forward = len(calls)
        loss.backward()
        runs.append((loss, forward, len(calls) - forward))
    assert runs[0][2] == 0
    assert runs[1][1] == runs[0][1]
    assert runs[1][2] >= 3, "blocks that carry gradients are recomputed, those of the text encoder too"
    assert torch.equal(runs[0][0], runs[1][0])
    for (name, one), other in zip(model.named_parameters(), saving.parameters(), strict=True):
        if one.requires_grad:
            torch.testing.assert_close(one.grad, other.grad, rtol=1e-5, atol=1e-7, msg=name)
    for (name, one), other in zip(model.named_buffers(), saving.buffers(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=0, msg=name)


def test_gradient_checkpointing_can_be_switched_off():
    model = make()
    model.activation_checkpointing_enable()
    model.activation_checkpointing_disable()
    assert not model.is_activation_checkpointing
    model(**inputs()).loss.backward()


# -- precision --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("lowered", [("image",), ("text",), ("image", "text")])
def test_backbones_in_lower_precision_under_a_float32_head(dtype, lowered):
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


def test_whole_model_in_bfloat16():
    model = make().to(torch.bfloat16)
    batch = inputs()
    out = model(batch["pixel_values"].bfloat16(), batch["input_ids"], batch["labels"])
    assert (out.logits.dtype, out.loss.dtype) == (torch.bfloat16, torch.float32)
    out.loss.backward()


def test_under_autocast():
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
