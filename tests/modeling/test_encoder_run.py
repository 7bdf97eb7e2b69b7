"""An encoder that is run block by block computes exactly what its own forward does."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn

from detris_peft import TextAdapterConfig
from detris_peft.modeling.encoder_run import EncoderRun, enable_encoder_runs
from detris_peft.modeling.encoders import IMAGE_ENCODERS, TEXT_ENCODERS
from tests.helpers.replicas import call_in_threads
from tests.helpers.tiny_models import IMAGE, TEXT, image_encoder, inputs, perturb, text_encoder

ENCODERS = [*(("image", kind) for kind in IMAGE), *(("text", kind) for kind in TEXT)]
LORA = {
    "dinov2_with_registers": ["q_proj", "v_proj"],
    "clip_projected": ["q_proj", "v_proj"],
    "bert": ["query", "value"],
}


def make(side: str, kind: str, **changes) -> nn.Module:
    model = image_encoder(kind, **changes) if side == "image" else text_encoder(kind, **changes)
    enable_encoder_runs(model)
    return model


def encoder_inputs(model: nn.Module, seed: int = 0) -> dict:
    """Return images of another size than in the config, or sentences with padding and its mask."""
    if model.config.model_type in IMAGE_ENCODERS:
        pixels = torch.randn(2, 3, 40, 56, generator=torch.Generator().manual_seed(seed))
        return {"pixel_values": pixels, **IMAGE_ENCODERS[model.config.model_type].call}
    input_ids = inputs()["input_ids"].clone()
    input_ids[:, 1:3] += seed
    mask = torch.ones_like(input_ids)
    mask[0, 5:] = 0
    return {"input_ids": input_ids, "attention_mask": mask}


def assert_runs_as_the_encoder(model: nn.Module) -> None:
    """Compare all hidden states, run at once and in three parts."""
    kwargs = encoder_inputs(model)
    with torch.no_grad():
        expected = model(output_hidden_states=True, **kwargs)
        in_parts = EncoderRun(model, **kwargs)
        assert torch.equal(in_parts.run_through(0), expected.hidden_states[1])
        in_parts.replace(in_parts.run_through(1))
        for outputs in (in_parts.finish(), EncoderRun(model, **kwargs).finish()):
            assert torch.equal(outputs.last_hidden_state, expected.last_hidden_state)
            assert len(outputs.hidden_states) == len(expected.hidden_states) == 4
            for a, b in zip(outputs.hidden_states, expected.hidden_states, strict=True):
                assert torch.equal(a, b)


def test_every_listed_encoder_is_tested():
    assert {cls.model_type for _, cls, _ in IMAGE.values()} == set(IMAGE_ENCODERS)
    assert {cls.model_type for _, cls, _ in TEXT.values()} == set(TEXT_ENCODERS)


@pytest.mark.parametrize(("side", "kind"), ENCODERS)
def test_a_run_is_bit_equal(side, kind):
    model = make(side, kind)
    perturb(model)  # biases and norms, too
    assert_runs_as_the_encoder(model)


@pytest.mark.parametrize(("side", "kind"), [("image", "dinov2_with_registers"), ("text", "clip"), ("text", "bert")])
def test_a_run_is_bit_equal_in_bfloat16_and_with_eager_attention(side, kind):
    assert_runs_as_the_encoder(make(side, kind, attn_implementation="eager"))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert_runs_as_the_encoder(make(side, kind))
    assert_runs_as_the_encoder(make(side, kind).bfloat16())


@pytest.mark.parametrize("kind", LORA)
def test_a_run_is_bit_equal_with_lora(kind):
    model = image_encoder(kind) if kind in IMAGE else text_encoder(kind)
    names = {name.rpartition(".")[2] for name, _ in model.named_modules()}
    adapted = get_peft_model(model, LoraConfig(target_modules=sorted(names & {*LORA[kind], "q_proj", "v_proj"})))
    enable_encoder_runs(adapted)
    perturb(adapted)
    assert_runs_as_the_encoder(adapted.eval())


def test_a_run_is_bit_equal_with_an_adapter_that_has_a_second_input():
    adapted = get_peft_model(text_encoder("bert"), TextAdapterConfig(dim=16, layers_to_transform=[0, 2]))
    enable_encoder_runs(adapted)
    perturb(adapted)
    assert_runs_as_the_encoder(adapted.eval())


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize(("side", "kind"), [("image", "dinov3"), ("text", "xlm_roberta")])
def test_gradients_of_a_run_are_those_of_the_encoder(side, kind, checkpointing):
    model = make(side, kind)
    if checkpointing:
        model.gradient_checkpointing_enable()
    model.train()
    kwargs = encoder_inputs(model)
    gradients = []
    for call in (model, lambda **kwargs: EncoderRun(model, **kwargs).finish()):
        model.zero_grad()
        torch.manual_seed(1)  # dropout, and DINOv3's random scale of the positions
        call(**kwargs).last_hidden_state.square().sum().backward()
        gradients.append({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
    assert gradients[0].keys() == gradients[1].keys()
    assert len(gradients[0]) > 30
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, msg=name)


def test_a_run_leaves_the_encoder_as_it_was():
    """Also if it fails, and if the outputs are replaced."""
    model = make("text", "bert")
    kwargs = encoder_inputs(model)
    with torch.no_grad():
        expected = model(**kwargs).last_hidden_state
        state = {name: dict(m.__dict__) for name, m in model.named_modules()}
        hooks = [len(m._forward_pre_hooks) for m in model.modules()]
        run = EncoderRun(model, **kwargs)
        run.replace(run.run_through(1) * 0)
        assert not torch.equal(run.finish().last_hidden_state, expected)
        with pytest.raises(IndexError):
            EncoderRun(model, input_ids=torch.tensor([[1_000]]))
        enable_encoder_runs(model)  # again: one hook is enough
        assert hooks == [len(m._forward_pre_hooks) for m in model.modules()]
        assert state == {name: dict(m.__dict__) for name, m in model.named_modules()}
        for other in (model, copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
            assert torch.equal(other(**kwargs).last_hidden_state, expected)
            assert torch.equal(EncoderRun(other, **kwargs).finish().last_hidden_state, expected)


def test_threads_can_share_an_encoder():
    """Some run it block by block, others call it."""
    model = make("image", "dinov2_with_registers")
    samples = [encoder_inputs(model, seed) for seed in range(6)]
    with torch.no_grad():
        expected = [model(**sample).last_hidden_state for sample in samples]

        def work(i: int) -> list[torch.Tensor]:
            call = model if i % 2 else lambda **sample: EncoderRun(model, **sample).finish()
            return [call(**samples[i]).last_hidden_state for _ in range(20)]

        results = call_in_threads([lambda i=i: work(i) for i in range(6)])
    for got, wanted in zip(results, expected, strict=True):
        assert all(torch.equal(state, wanted) for state in got)


def test_an_encoder_that_is_not_prepared_is_an_error():
    with pytest.raises(RuntimeError, match="expected Dinov2Model to run the blocks that it had"):
        EncoderRun(image_encoder("dinov2"), pixel_values=torch.randn(1, 3, 32, 32))
