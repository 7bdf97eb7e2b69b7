"""`is_recomputing` detects the recomputation of gradient checkpointing, which must not update BatchNorm statistics."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from detris_peft.adapters.layer import _in_checkpoint_frame, is_recomputing

GRAPH_TASK_ID = "_current_graph_task_id"


class RecordingBlock(nn.Module):
    """A linear layer that records, in each forward, the results of both ways to detect a recomputation."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)
        self.from_autograd: list[bool] = []
        self.from_stack: list[bool] = []

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.from_autograd.append(is_recomputing())
        self.from_stack.append(_in_checkpoint_frame())
        return self.linear(x).relu()


def test_autograd_reports_whether_a_backward_is_running():
    reason = f"detris_peft/adapters/layer.py:is_recomputing relies on torch._C.{GRAPH_TASK_ID}, a private function: "
    graph_task_id = getattr(torch._C, GRAPH_TASK_ID, None)
    assert graph_task_id is not None, reason + "it no longer exists, so the slower fallback is used"
    assert graph_task_id() == -1, reason + "expected -1 outside of a backward"

    in_backward: list[int] = []
    x = torch.ones(2, requires_grad=True)
    y = x * 2
    y.register_hook(lambda grad: in_backward.append(graph_task_id()))
    y.sum().backward()
    assert len(in_backward) == 1
    assert in_backward[0] != -1, reason + "expected a value other than -1 inside a backward"
    assert graph_task_id() == -1, reason + "expected -1 after a backward"


@pytest.mark.parametrize("use_reentrant", [False, True], ids=["non-reentrant", "reentrant"])
def test_recomputation_is_detected_with_and_without_the_private_function(use_reentrant: bool):
    blocks = nn.ModuleList([RecordingBlock(), RecordingBlock()])
    x = torch.randn(3, 4, requires_grad=True)
    for block in blocks:
        x = checkpoint(block, x, use_reentrant=use_reentrant)
    for block in blocks:
        assert block.from_autograd == block.from_stack == [False]
    x.sum().backward()
    for block in blocks:
        assert block.from_autograd == block.from_stack == [False, True]
    blocks[0](torch.randn(3, 4))
    assert blocks[0].from_autograd == blocks[0].from_stack == [False, True, False]


def test_forward_without_checkpointing_is_not_a_recomputation():
    block = RecordingBlock()
    block(torch.randn(3, 4)).sum().backward()
    assert block.from_autograd == block.from_stack == [False]


@pytest.mark.parametrize("use_reentrant", [False, True], ids=["non-reentrant", "reentrant"])
def test_is_recomputing_works_if_pytorch_removes_the_private_function(
    use_reentrant: bool, monkeypatch: pytest.MonkeyPatch
):
    recorded: list[bool] = []

    def block(x: torch.Tensor) -> torch.Tensor:
        with monkeypatch.context() as patch:  # only during this call: checkpointing itself uses the function
            patch.delattr(torch._C, GRAPH_TASK_ID, raising=False)
            recorded.append(is_recomputing())
        return x.sin()

    checkpoint(block, torch.randn(3, requires_grad=True), use_reentrant=use_reentrant).sum().backward()
    assert recorded == [False, True]
