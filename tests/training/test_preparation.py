"""Compilation, precision and optimizer of a run."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from detris_peft.training import preparation, train
from tests.helpers import toy_run

pytestmark = pytest.mark.usefixtures("no_plots")


def without_dropout(root):
    """Return a model whose steps are equal with and without compilation: dropout has two implementations."""
    model = toy_run.load_model(root, 0.0)
    for module in model.modules():
        if isinstance(module, nn.MultiheadAttention):
            module.dropout = 0.0
    return model


@pytest.mark.slow
def test_a_compiled_run_gives_the_same_losses(root, rows, tmp_path, monkeypatch):
    compile_module, checked = nn.Module.compile, []
    monkeypatch.setattr(preparation, "check_compiler", checked.append)
    histories = []
    for compiled in (False, True):
        torch._dynamo.reset()
        # The backend "eager" traces the same graph, without minutes of C++ compilation.
        monkeypatch.setattr(nn.Module, "compile", lambda self: compile_module(self, backend="eager", fullgraph=True))
        model = without_dropout(root)
        processor = toy_run.load_processor(model.config, rows[0])
        folder = tmp_path / str(compiled)
        histories.append(train(model, processor, *rows, toy_run.arguments(folder, compile=compiled, epochs=1)))
        assert (model._compiled_call_impl is not None) is compiled
        assert not any("_orig_mod" in name for name in model.state_dict())
    assert checked == [torch.device("cpu")]
    for name in ("train_loss", "loss", "mIoU"):
        assert histories[1][0][name] == pytest.approx(histories[0][0][name], abs=1e-4)


@pytest.mark.parametrize(("precision", "frozen"), [("fp32", torch.float32), ("bf16", torch.bfloat16)])
def test_frozen_weights_have_the_precision_and_trained_ones_are_float32(root, rows, tmp_path, precision, frozen):
    model = without_dropout(root)
    processor = toy_run.load_processor(model.config, rows[0])
    train(model, processor, *rows, toy_run.arguments(tmp_path / "run", epochs=1, precision=precision))
    dtypes = {
        trained: {p.dtype for p in model.parameters() if p.requires_grad is trained} for trained in (True, False)
    }
    assert dtypes == {True: {torch.float32}, False: {frozen}}
