"""Outputs and gradients are the same with every attention kernel, and when checkpointed, compiled or exported."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import pytest
import torch
from peft import PeftModel, get_peft_model
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn

from tests.helpers.adapter_cases import (
    BOTTLENECK,
    CASES,
    CLIP_TEXT,
    COMPACTER,
    DINOV2,
    AdapterCase,
    assert_differ,
    each_parallel_tuner,
    each_tuner,
    every_image_case,
    every_parallel_case,
    every_parallel_case_and_each_tuner,
    randomize,
)

# Gradients may be summed in a different order.
TOLERANCE = {"atol": 1e-5, "rtol": 1e-4}


@every_parallel_case_and_each_tuner
@torch.no_grad()
def test_recorded_hidden_states_are_the_outputs_of_the_blocks(case: AdapterCase):
    """`output_hidden_states` includes the output of the adapters."""
    model = case.make_model()
    model.get_base_model().set_attn_implementation("eager")
    block_outputs: list[torch.Tensor] = []
    blocks = model.get_base_model().get_submodule(case.block_list)
    for block in blocks:
        block.register_forward_hook(
            lambda module, args, out: block_outputs.append(out[0] if isinstance(out, tuple) else out)
        )
    out = model(**case.inputs(), output_hidden_states=True, output_attentions=True)
    torch.testing.assert_close(out.last_hidden_state, case.run(model), **TOLERANCE)
    assert len(out.hidden_states) == len(blocks) + 1
    for recorded, expected in zip(out.hidden_states[1:-1], block_outputs, strict=False):
        torch.testing.assert_close(recorded, expected)
    assert len(out.attentions) == len(blocks)
    rows = out.attentions[1].sum(-1)
    torch.testing.assert_close(rows, torch.ones_like(rows))


@every_parallel_case_and_each_tuner
def test_eager_and_sdpa_attention_agree(case: AdapterCase):
    model = case.make_model()
    sdpa = case.run(model)
    model.get_base_model().set_attn_implementation("eager")
    torch.testing.assert_close(case.run(model), sdpa, **TOLERANCE)


@every_image_case
@torch.no_grad()
def test_samples_of_a_batch_are_independent_and_text_matters(case: AdapterCase):
    model = case.make_model()
    inputs, batched = case.inputs(), case.run(model)
    inputs["pixel_values"], inputs["text_states"] = inputs["pixel_values"][1:2], inputs["text_states"][1:2]
    torch.testing.assert_close(model(**inputs).last_hidden_state, batched[1:2], **TOLERANCE)
    assert_differ(case.run(model, text_states=case.inputs(seed=3)["text_states"]), batched)


@every_image_case
@pytest.mark.parametrize("sides", [(28, 28), (14, 42), (56, 28)], ids=str)
@torch.no_grad()
def test_patch_grid_follows_the_image_size(case: AdapterCase, sides: tuple[int, int]):
    model = case.make_model()
    grids: list[tuple] = []
    layer = next(m for m in model.modules() if isinstance(m, BaseTunerLayer))
    layer.branches["default"].dmoc.register_forward_hook(lambda module, args, out: grids.append(args[0].shape[-2:]))
    inputs = {**case.inputs(), "pixel_values": torch.randn(3, 3, *sides)}
    for call in (lambda: model(**inputs), lambda: model(inputs.pop("pixel_values"), **inputs)):
        out = call().last_hidden_state
        assert grids.pop() == (sides[0] // 14, sides[1] // 14)
        assert out.shape[1] >= sides[0] * sides[1] // 14**2


def gradients(
    case: AdapterCase, model: PeftModel, *, forwards: int = 1
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Return loss and gradients, including those of the text, of several forwards and one backward."""
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


@every_parallel_case_and_each_tuner
@pytest.mark.parametrize("forwards", [1, 2], ids=["one-forward", "two-forwards-before-one-backward"])
def test_gradient_checkpointing_keeps_gradients_and_statistics(case: AdapterCase, forwards: int):
    plain = trainable(case)
    checkpointed = copy.deepcopy(plain)
    checkpointed.get_base_model().activation_checkpointing_enable()
    checkpointed.train()
    (loss, grads), (loss_again, grads_again) = (
        gradients(case, m, forwards=forwards) for m in (plain.train(), checkpointed)
    )
    torch.testing.assert_close(loss_again, loss, **TOLERANCE)
    assert grads.keys() == grads_again.keys()
    for name, grad in grads.items():
        torch.testing.assert_close(grads_again[name], grad, msg=lambda m, name=name: f"{name}: {m}", **TOLERANCE)
        assert name.startswith("base_model") or grad.abs().sum() > 0
    # BatchNorm statistics are updated once per forward, not again in the recomputation.
    for name, buffer in plain.named_buffers():
        torch.testing.assert_close(checkpointed.get_buffer(name), buffer)
        if name.endswith("num_batches_tracked"):
            assert buffer == 7 + forwards


def trainable(case: AdapterCase, **changes: Any) -> PeftModel:
    """Return an adapted model whose backbone has no dropout; `changes` are fields of the adapter's config."""
    model = case.make_model(**changes)
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        for name in ("dropout", "attention_dropout", "attention_probs_dropout_prob"):
            if isinstance(getattr(module, name, None), float):
                setattr(module, name, 0.0)
    return model


@each_tuner
def test_reentrant_checkpointing_keeps_gradients_and_statistics(case: AdapterCase):
    plain = trainable(case)
    checkpointed = copy.deepcopy(plain)
    checkpointed.prepare_model_for_gradient_checkpointing(checkpointed.get_base_model())
    checkpointed.get_base_model().activation_checkpointing_enable({"use_reentrant": True})
    (loss, grads), (loss_again, grads_again) = (gradients(case, m.train()) for m in (plain, checkpointed))
    torch.testing.assert_close(loss_again, loss, **TOLERANCE)
    for name, grad in grads.items():
        torch.testing.assert_close(grads_again[name], grad, **TOLERANCE)
    for name, buffer in plain.named_buffers():
        torch.testing.assert_close(checkpointed.get_buffer(name), buffer)


def with_two_blocks(case: AdapterCase) -> AdapterCase:
    """Return the case with a backbone that is traced faster."""

    def backbone_config() -> Any:
        config = case.backbone_config()
        config.num_hidden_layers = 2
        return config

    return replace(case, backbone_config=backbone_config)


# Tracing is slow: two blocks, both with an adapter, and only the two backbones that differ most from those of
# `each_tuner`.
TRACED: dict[str, Any] = {"layers_to_transform": [0, 1]}
other_backbones = pytest.mark.parametrize(
    "case", [c for c in CASES if c.name in ("siglip-vision", "bert")], ids=lambda c: c.name
)


@other_backbones
def test_model_compiles_in_one_graph(case: AdapterCase):
    case = with_two_blocks(case)
    model = case.make_model(**TRACED)
    torch._dynamo.reset()
    # `aot_eager` traces with dynamo and autograd, but needs no C++ compiler.
    compiled = torch.compile(model.get_base_model(), fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(case.run(compiled), case.run(model), **TOLERANCE)


@pytest.mark.parametrize(
    "case",
    [DINOV2, CLIP_TEXT, *(pytest.param(case, marks=pytest.mark.slow) for case in (BOTTLENECK, COMPACTER))],
    ids=lambda case: case.name,
)
def test_compiled_training_step_equals_the_eager_one(case: AdapterCase):
    case = with_two_blocks(case)
    plain = trainable(case, **TRACED).train()
    compiled = copy.deepcopy(plain)
    torch._dynamo.reset()
    compiled.get_base_model().compile(fullgraph=True, backend="aot_eager")
    (loss, grads), (loss_again, grads_again) = gradients(case, plain), gradients(case, compiled)
    torch.testing.assert_close(loss_again, loss, **TOLERANCE)
    for name, grad in grads.items():
        torch.testing.assert_close(grads_again[name], grad, **TOLERANCE)
    for name, buffer in plain.named_buffers():
        torch.testing.assert_close(compiled.get_buffer(name), buffer, **TOLERANCE)


@other_backbones
def test_exported_model_has_the_same_outputs(case: AdapterCase):
    case = with_two_blocks(case)
    model = case.make_model(**TRACED).get_base_model()
    inputs = case.inputs()
    exported = torch.export.export(model, (), inputs)
    output = exported.module()(**inputs).last_hidden_state
    torch.testing.assert_close(output, case.run(model), **TOLERANCE)


@every_parallel_case
def test_frozen_adapters_stay_in_eval_mode(case: AdapterCase):
    """`.train()` does not enable dropout or statistics updates in them."""
    model = trainable(case)
    model.add_adapter("other", case.make_config())
    randomize(model)
    evaluated = case.run(model)
    model.set_requires_grad("default", False)
    model.train()
    before = {key: value.clone() for key, value in model.named_buffers()}
    torch.testing.assert_close(case.run(model), evaluated, **TOLERANCE)
    assert all(torch.equal(model.get_buffer(key), value) for key, value in before.items())
    model.set_adapter("other")
    model(**case.inputs())
    changed = {key for key, value in before.items() if not torch.equal(model.get_buffer(key), value)}
    assert changed
    assert all(".other." in key for key in changed)


@each_parallel_tuner
def test_adapters_frozen_without_peft_stay_in_eval_mode(case: AdapterCase):
    """Also if `requires_grad_(False)` is called after `.train()`."""
    model = trainable(case).train()
    model.requires_grad_(False)
    before = {key: value.clone() for key, value in model.named_buffers()}
    model(**case.inputs())
    assert all(torch.equal(model.get_buffer(key), value) for key, value in before.items())


@each_parallel_tuner
def test_sync_batch_norm_keeps_keys_and_outputs(case: AdapterCase):
    model = case.make_model()
    keys, before = set(model.state_dict()), case.run(model)
    model = nn.SyncBatchNorm.convert_sync_batchnorm(model)
    assert any(isinstance(module, nn.SyncBatchNorm) for module in model.modules())
    assert set(model.state_dict()) == keys
    assert model.base_model.prefix in next(name for name, p in model.named_parameters() if p.requires_grad)
    torch.testing.assert_close(case.run(model), before)


@each_parallel_tuner
def test_second_input_is_released_after_the_call(case: AdapterCase):
    """Otherwise it would occupy memory and could be used by the next call."""
    model = case.make_model()
    case.run(model)
    layers: list[Any] = [m for m in model.modules() if isinstance(m, BaseTunerLayer)]
    assert [layer.call_state.second_input for layer in layers] == [None, None]


def test_cross_attention_dropout_is_the_same_under_checkpointing():
    """Only the Dense Aligner has dropout."""
    plain = get_peft_model(DINOV2.make_backbone(), DINOV2.make_config(cross_attention_dropout=0.5))
    checkpointed = copy.deepcopy(plain)
    checkpointed.get_base_model().activation_checkpointing_enable()
    results = []
    for model in (plain.train(), checkpointed.train()):
        torch.manual_seed(5)
        results.append(gradients(DINOV2, model)[1])
    for name, grad in results[0].items():
        torch.testing.assert_close(results[1][name], grad, **TOLERANCE)
