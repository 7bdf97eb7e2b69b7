"""Several processes that go on together or stop together."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from accelerate import Accelerator
from accelerate.utils import gather_object
from safetensors import SafetensorError
from torch.distributed.checkpoint.api import CheckpointException


def together(accelerator: Accelerator, action: Callable[[], Any], main_only: bool = False) -> str | None:
    """Act on every process, or on the main one; if one fails all of them hear of it, and none waits for ever.

    Returns:
        What went wrong first, in one line; None where all went well.
    """
    failure = None
    try:
        if accelerator.is_main_process or not main_only:
            action()
    # PyTorch reports a full disk as RuntimeError, and while it writes shards as a BaseException of its own.
    except (OSError, RuntimeError, ValueError, SafetensorError, CheckpointException) as error:
        failure = " ".join(str(error).split()) or type(error).__name__
    return next((text for text in gather_object([failure]) if text), None)
