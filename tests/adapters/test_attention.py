"""Multi-head attention: equal to PyTorch's, without copies of weights, and with dropout on the CPU."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from detris_peft.adapters.attention import MultiheadAttention, _chunks, _DropoutAttention
from detris_peft.modeling import DetrisForReferringSegmentation
from tests.helpers.tiny_models import inputs, tiny_config


def pair(**options) -> tuple[MultiheadAttention, nn.MultiheadAttention]:
    """Return our attention, and PyTorch's with the same weights."""
    ours = MultiheadAttention(24, 4, **options)
    theirs = nn.MultiheadAttention(24, 4, batch_first=True, **options)
    theirs.load_state_dict(ours.state_dict())
    nn.init.normal_(ours.in_proj_bias)
    nn.init.normal_(ours.out_proj.bias)
    theirs.load_state_dict(ours.state_dict())
    return ours, theirs


@pytest.mark.parametrize("options", [{}, {"kdim": 10, "vdim": 10}], ids=["one width", "two widths"])
@pytest.mark.parametrize("masked", [False, True])
def test_equals_the_attention_of_pytorch(options, masked):
    ours, theirs = pair(**options)
    query, words = torch.randn(3, 7, 24), torch.randn(3, 5, options.get("kdim", 24))
    mask = torch.arange(5) >= torch.tensor([[5], [3], [1]]) if masked else None
    expected, _ = theirs(query, words, words, key_padding_mask=mask, need_weights=False)
    got = ours(query, words, words, key_padding_mask=mask)
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-6)
    for a, b in zip(
        torch.autograd.grad(got.square().sum(), [*ours.parameters()]),
        torch.autograd.grad(expected.square().sum(), [*theirs.parameters()]),
        strict=True,
    ):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


class _RepeatedWeights(TorchDispatchMode):
    """Lists batched matrix products with one matrix for the entire batch, which autocast copies for each row."""

    def __init__(self) -> None:
        super().__init__()
        self.is_active = True
        self.products: list[tuple[int, ...]] = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if self.is_active and function.overloadpacket is torch.ops.aten.bmm:
            self.products += [tuple(x.shape) for x in args if len(x) > 1 and x.stride(0) == 0]
        return function(*args, **(kwargs or {}))

    def watch(self, module: nn.Module) -> None:
        """From now on, list the products of this module only."""
        self.is_active = False
        module.register_forward_pre_hook(lambda *_: setattr(self, "is_active", True))
        module.register_forward_hook(lambda *_: setattr(self, "is_active", False))


@pytest.mark.parametrize("batch", [1, 3])
def test_no_attention_copies_a_weight_for_each_row_under_autocast(batch):
    model = DetrisForReferringSegmentation(tiny_config()).eval()
    attentions = [module for module in model.modules() if isinstance(module, nn.MultiheadAttention)]
    assert len(attentions) == 7  # 2 Dense Aligners, 3 gates, 2 in the decoder
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16), _RepeatedWeights() as repeated:
        for attention in attentions:
            repeated.watch(attention)
        batch_of_inputs = inputs(batch=batch)
        model(batch_of_inputs["pixel_values"], batch_of_inputs["input_ids"])
    assert repeated.products == []


def test_the_attention_of_pytorch_copies_a_weight_for_each_row_under_autocast():
    _, theirs = pair()
    x, y = torch.randn(2, 3, 400, 24)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16), _RepeatedWeights() as repeated:
        theirs(x, x, y, need_weights=False)
    assert repeated.products == 3 * [(400, 24, 24)]


def plain(q, k, v, dropout, kept):
    """Attention with dropout by its formula; `kept` is 0 or 1 per weight."""
    weights = (q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5).softmax(-1)
    return (weights * kept / (1 - dropout)) @ v


def kept_weights(q, k, dropout):
    """Return which weights the next call keeps, without changing the generator."""

    class Context:
        seed = 0

    state = torch.get_rng_state()
    context = Context()
    context.seed, context.dropout = int(torch.randint(2**62, ())), dropout
    torch.set_rng_state(state)
    flat = q.flatten(0, 1), k.flatten(0, 1)
    return torch.cat([kept.clone() for _, _, kept in _chunks(*flat, context)]).unflatten(0, q.shape[:2])


@pytest.mark.parametrize("chunk", [1, 70, 1 << 21], ids=["head by head", "two heads", "all at once"])
def test_dropout_equals_its_formula_with_gradients(chunk, monkeypatch):
    monkeypatch.setattr("detris_peft.adapters.attention._CHUNK", chunk)
    q, k, v = (torch.randn(2, 3, n, 4, dtype=torch.float64, requires_grad=True) for n in (7, 5, 5))
    kept = kept_weights(q, k, 0.4)
    assert 0 < kept.mean() < 1
    got, expected = _DropoutAttention.apply(q, k, v, 0.4), plain(q, k, v, 0.4, kept)
    torch.testing.assert_close(got, expected)
    gradient = torch.randn_like(got)
    for a, b in zip(
        torch.autograd.grad(got, (q, k, v), gradient), torch.autograd.grad(expected, (q, k, v), gradient), strict=True
    ):
        torch.testing.assert_close(a, b)


def test_dropout_drops_the_configured_share_and_differs_between_heads_and_calls():
    q = torch.randn(1, 4, 100, 4)
    kept = kept_weights(q, q, 0.1)
    assert kept.mean().item() == pytest.approx(0.9, abs=0.005)  # 40,000 weights: standard deviation 0.0015
    assert len({tuple(head.flatten().tolist()) for head in kept[0]}) == 4
    torch.manual_seed(0)
    first, second = (_DropoutAttention.apply(q, q, q, 0.1) for _ in range(2))
    torch.manual_seed(0)
    assert not torch.equal(first, second)
    assert torch.equal(first, _DropoutAttention.apply(q, q, q, 0.1))


def test_large_scores_do_not_overflow():
    q = torch.randn(1, 1, 4, 4) * 1e4
    assert _DropoutAttention.apply(q, q, q, 0.5).isfinite().all()


def test_module_has_dropout_in_training_only_and_under_autocast():
    attention, _ = pair(dropout=0.5)
    x = torch.randn(2, 6, 24)
    expected = copy.deepcopy(attention).eval()(x, x, x)
    torch.manual_seed(0)
    trained = attention.train()(x, x, x)
    assert not torch.allclose(trained, expected)
    torch.manual_seed(0)
    with torch.autocast("cpu", torch.bfloat16):
        lower = attention(x, x, x)
    assert lower.dtype == torch.bfloat16
    torch.testing.assert_close(lower.float(), trained, rtol=0.1, atol=0.1)
    lower.float().sum().backward()
    assert all(p.grad is not None and p.grad.dtype == torch.float32 for p in attention.parameters())
    assert torch.equal(attention.eval()(x, x, x), expected)


def test_module_with_dropout_in_bfloat16():
    attention, _ = pair(dropout=0.5)
    x = torch.randn(2, 6, 24, dtype=torch.bfloat16, requires_grad=True)
    output = attention.to(torch.bfloat16).train()(x, x, x)
    assert output.dtype == torch.bfloat16
    output.sum().backward()
    assert x.grad is not None
    assert x.grad.dtype == torch.bfloat16
