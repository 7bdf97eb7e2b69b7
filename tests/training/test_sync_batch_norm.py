"""With one rank, our SyncBatchNorm equals BatchNorm. test_distributed.py tests it with two."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.distributed as dist
from torch import nn

from detris_peft.training.sync_batch_norm import SyncBatchNorm, convert_sync_batch_norm


@pytest.fixture
def _group(tmp_path):
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.usefixtures("_group")
@pytest.mark.parametrize(("layer", "shape"), [(nn.BatchNorm1d, (6, 4, 5)), (nn.BatchNorm2d, (3, 4, 5, 2))])
def test_with_one_rank_it_equals_batch_norm(layer, shape):
    plain = nn.Sequential(layer(4, eps=1e-3))
    nn.init.normal_(plain[0].weight)
    nn.init.normal_(plain[0].bias)
    synced = copy.deepcopy(plain)
    convert_sync_batch_norm(synced, torch.device("cpu"))
    assert isinstance(synced[0], SyncBatchNorm)
    assert list(synced.state_dict()) == list(plain.state_dict())
    for _ in range(2):
        inputs = [torch.randn(shape, generator=torch.Generator().manual_seed(1)).requires_grad_() for _ in range(2)]
        outputs = [module(x) for module, x in zip((plain, synced), inputs, strict=True)]
        for output in outputs:
            (output * torch.linspace(0, 1, output.numel()).view(shape)).sum().backward()
        torch.testing.assert_close(outputs[1], outputs[0], atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(inputs[1].grad, inputs[0].grad, atol=1e-4, rtol=1e-4)
    for (name, value), other in zip(plain.state_dict().items(), synced.state_dict().values(), strict=True):
        torch.testing.assert_close(other, value, msg=name)
    plain.eval()
    synced.eval()
    torch.testing.assert_close(synced(inputs[0]), plain(inputs[0]))
