"""The adapted computation is one and the same, however it is run."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from peft import PeftModel, get_peft_model
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn

from tests.helpers.adapter_cases import CASES, Case, assert_differ, each_tuner, every_case, every_image_case, stir

# Also where gradients are summed in another order.
close = {"atol": 1e-5, "rtol": 1e-4}


@every_case
@torch.no_grad()
def test_hidden_states_and_attentions_agree(case: Case):
    """The list holds the states after the adapters, not those from before."""
    model = case.adapted()
    model.get_base_model().set_attn_implementation("eager")
    caught: list[torch.Tensor] = []
    blocks = model.get_base_model().get_submodule(case.blocks)
    for block in blocks:
        block.register_forward_hook(lambda module, args, out: caught.append(out[0] if isinstance(out, tuple) else out))
    out = model(**case.inputs(), output_hidden_states=True, output_attentions=True)
    torch.testing.assert_close(out.last_hidden_state, case.states(model), **close)
    assert len(out.hidden_states) == len(blocks) + 1
    for recorded, given in zip(out.hidden_states[1:-1], caught, strict=False):
        torch.testing.assert_close(recorded, given)
    assert len(out.attentions) == len(blocks)
    rows = out.attentions[1].sum(-1)
    torch.testing.assert_close(rows, torch.ones_like(rows))


@every_case
def test_eager_and_sdpa_attention_agree(case: Case):
    model = case.adapted()
    sdpa = case.states(model)
    model.get_base_model().set_attn_implementation("eager")
    torch.testing.assert_close(case.states(model), sdpa, **close)


@every_image_case
@torch.no_grad()
def test_each_image_and_sentence_alone(case: Case):
    """Batch order changes nothing, and text counts."""
    model = case.adapted()
    inputs, whole = case.inputs(), case.states(model)
    inputs["pixel_values"], inputs["text_states"] = inputs["pixel_values"][1:2], inputs["text_states"][1:2]
    torch.testing.assert_close(model(**inputs).last_hidden_state, whole[1:2], **close)
    assert_differ(case.states(model, text_states=case.inputs(seed=3)["text_states"]), whole)


@every_image_case
@pytest.mark.parametrize("sides", [(28, 28), (14, 42), (56, 28)], ids=str)
@torch.no_grad()
def test_images_of_any_shape(case: Case, sides: tuple[int, int]):
    """Turned on its side, another grid: not the same tokens in another order."""
    model = case.adapted()
    grids: list[tuple] = []
    layer = next(m for m in model.modules() if isinstance(m, BaseTunerLayer))
    layer.branches["default"].dmoc.register_forward_hook(lambda module, args, out: grids.append(args[0].shape[-2:]))
    inputs = {**case.inputs(), "pixel_values": torch.randn(3, 3, *sides)}
    for call in (lambda: model(**inputs), lambda: model(inputs.pop("pixel_values"), **inputs)):
        out = call().last_hidden_state
        assert grids.pop() == (sides[0] // 14, sides[1] // 14)
        assert out.shape[1] >= sides[0] * sides[1] // 14**2


def gradients(case: Case, model: PeftModel, *, forwards: int = 1) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Loss and gradients, of the text too, after some forwards and one backward over all of them."""
    model.zero_grad()
    losses, leaves = [], {}
    for i in range(forwards):
        inputs = case.inputs(seed=i)
        if "text_states" in inputs:
            leaves[f"text_states {i}"] = inputs["text_states"].requires_grad_()
        losses.append(model(**inputs).last_hidden_state.square().mean())
    loss = torch.stack(losses).sum()
    loss.backward()
    leaves |= {name: p for name, p in model.named_parameters() if p.requires_grad}
    return loss.detach(), {name: leaf.grad.clone() for name, leaf in leaves.items()}


@every_case
@pytest.mark.parametrize("forwards", [1, 2], ids=["one-forward", "two-forwards-before-one-backward"])
def test_gradient_checkpointing(case: Case, forwards: int):
    plain = trainable(case)
    checkpointed = copy.deepcopy(plain)
    checkpointed.get_base_model().activation_checkpointing_enable()
    checkpointed.train()
    (loss, grads), (loss_again, grads_again) = (
        gradients(case, m, forwards=forwards) for m in (plain.train(), checkpointed)
    )
    torch.testing.assert_close(loss_again, loss, **close)
    assert grads.keys() == grads_again.keys()
    for name, grad in grads.items():
        torch.testing.assert_close(grads_again[name], grad, msg=lambda m, name=name: f"{name}: {m}", **close)
        assert name.startswith("base_model") or grad.abs().sum() > 0
    # BatchNorm's statistics moved once a forward, not again on recompute.
    for name, buffer in plain.named_buffers():
        torch.testing.assert_close(checkpointed.get_buffer(name), buffer)
        if name.endswith("num_batches_tracked"):
            assert buffer == 7 + forwards


def trainable(case: Case) -> PeftModel:
    """An adapted model without the backbone's own dropout."""
    model = case.adapted()
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        for name in ("dropout", "attention_dropout", "attention_probs_dropout_prob"):
            if isinstance(getattr(module, name, None), float):
                setattr(module, name, 0.0)
    return model


@each_tuner
def test_reentrant_checkpointing(case: Case):
    plain = trainable(case)
    checkpointed = copy.deepcopy(plain)
    checkpointed.prepare_model_for_gradient_checkpointing(checkpointed.get_base_model())
    checkpointed.get_base_model().activation_checkpointing_enable({"use_reentrant": True})
    (loss, grads), (loss_again, grads_again) = (gradients(case, m.train()) for m in (plain, checkpointed))
    torch.testing.assert_close(loss_again, loss, **close)
    for name, grad in grads.items():
        torch.testing.assert_close(grads_again[name], grad, **close)
    for name, buffer in plain.named_buffers():
        torch.testing.assert_close(checkpointed.get_buffer(name), buffer)


# Tracing is slow: two backbones that differ most from those of `each_tuner`.
OTHERS = pytest.mark.parametrize(
    "case", [c for c in CASES if c.name in ("siglip-vision", "bert")], ids=lambda c: c.name
)


@OTHERS
def test_compiled_in_one_graph(case: Case):
    model = case.adapted()
    torch._dynamo.reset()
    # `aot_eager`: dynamo's and autograd's tracing without a compiler of C++.
    compiled = torch.compile(model.get_base_model(), fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(case.states(compiled), case.states(model), **close)


@each_tuner
def test_compiled_training_step(case: Case):
    plain = trainable(case).train()
    twin = copy.deepcopy(plain)
    torch._dynamo.reset()
    twin.get_base_model().compile(fullgraph=True, backend="aot_eager")
    (loss, grads), (loss_again, grads_again) = gradients(case, plain), gradients(case, twin)
    torch.testing.assert_close(loss_again, loss, **close)
    for name, grad in grads.items():
        torch.testing.assert_close(grads_again[name], grad, **close)
    for name, buffer in plain.named_buffers():
        torch.testing.assert_close(twin.get_buffer(name), buffer, **close)


@OTHERS
def test_exported(case: Case):
    model = case.adapted().get_base_model()
    inputs = case.inputs()
    exported = torch.export.export(model, (), inputs)
    got = exported.module()(**inputs).last_hidden_state
    torch.testing.assert_close(got, case.states(model), **close)


@every_case
def test_frozen_adapters_stand_still(case: Case):
    """Running statistics and dropout, whatever `.train()` says."""
    model = trainable(case)
    model.add_adapter("other", case.config())
    stir(model)
    evaluated = case.states(model)
    model.set_requires_grad("default", False)
    model.train()
    before = {key: value.clone() for key, value in model.named_buffers()}
    torch.testing.assert_close(case.states(model), evaluated, **close)
    assert all(torch.equal(model.get_buffer(key), value) for key, value in before.items())
    model.set_adapter("other")
    model(**case.inputs())
    moved = {key for key, value in before.items() if not torch.equal(model.get_buffer(key), value)}
    assert moved
    assert all(".other." in key for key in moved)


@each_tuner
def test_frozen_by_hand(case: Case):
    """`requires_grad_` behind peft's back, after `.train()`."""
    model = trainable(case).train()
    model.requires_grad_(False)
    before = {key: value.clone() for key, value in model.named_buffers()}
    model(**case.inputs())
    assert all(torch.equal(model.get_buffer(key), value) for key, value in before.items())


@each_tuner
def test_sync_batch_norm_keeps_the_keys(case: Case):
    model = case.adapted()
    keys, before = set(model.state_dict()), case.states(model)
    model = nn.SyncBatchNorm.convert_sync_batchnorm(model)
    assert any(isinstance(module, nn.SyncBatchNorm) for module in model.modules())
    assert set(model.state_dict()) == keys
    assert model.base_model.prefix in next(name for name, p in model.named_parameters() if p.requires_grad)
    torch.testing.assert_close(case.states(model), before)


@each_tuner
def test_the_second_input_is_not_kept(case: Case):
    """A layer holds it for one call: no memory kept, no stale text in the next call."""
    model = case.adapted()
    case.states(model)
    layers: list[Any] = [m for m in model.modules() if isinstance(m, BaseTunerLayer)]
    assert [layer.handed_over for layer in layers] == [None, None]


@each_tuner
def test_dropout_of_the_cross_attention_is_reproducible_under_checkpointing(case: Case):
    if not case.takes_images:
        pytest.skip("only the Dense Aligner has dropout")
    plain = get_peft_model(case.backbone(), case.config(cross_attention_dropout=0.5))
    checkpointed = copy.deepcopy(plain)
    checkpointed.get_base_model().activation_checkpointing_enable()
    results = []
    for model in (plain.train(), checkpointed.train()):
        torch.manual_seed(5)
        results.append(gradients(case, model)[1])
    for name, grad in results[0].items():
        torch.testing.assert_close(results[1][name], grad, **close)
