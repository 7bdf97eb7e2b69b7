"""Replicas as `nn.DataParallel` makes them, without GPUs."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import torch
from torch import nn


def replicate(network: nn.Module, count: int) -> list[nn.Module]:
    """Return replicas of a module. They have the same layout as those of `torch.nn.parallel.replicate`.

    Parameters are attributes instead of parameters, and gradients flow back to the module. The buffers of the first
    replica are those of the module, as on the first GPU.
    """
    modules = list(network.modules())
    copies = {}
    for module in modules:  # parents before their children, as in PyTorch
        for i in range(count):
            copies[module, i] = module._replicate_for_data_parallel()
            copies[module, i]._former_parameters = OrderedDict()
    for module in modules:
        for i in range(count):
            replica = copies[module, i]
            for name, child in module._modules.items():
                replica._modules[name] = None if child is None else copies[child, i]
            for name, parameter in module._parameters.items():
                if parameter is None:
                    replica._parameters[name] = None
                    continue
                value = parameter.view_as(parameter)  # not a leaf
                setattr(replica, name, value)
                replica._former_parameters[name] = value
            for name, buffer in module._buffers.items():
                replica._buffers[name] = buffer if buffer is None or i == 0 else buffer.clone()
    return [copies[network, i] for i in range(count)]


def call_in_threads(calls: list[Callable[[], Any]]) -> list[Any]:
    """Return the results of functions that run at the same time, each in a thread of its own, as in `DataParallel`."""
    results: list[Any] = [None] * len(calls)
    start, enabled = threading.Barrier(len(calls)), torch.is_grad_enabled()

    def run(index: int) -> None:
        start.wait()
        try:
            with torch.set_grad_enabled(enabled):
                results[index] = calls[index]()
        except Exception as error:
            results[index] = error

    threads = [threading.Thread(target=run, args=(index,)) for index in range(len(calls))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for result in results:
        if isinstance(result, Exception):
            raise result
    return results
