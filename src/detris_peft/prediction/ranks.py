"""The ranks of `accelerate launch`: actions that succeed or fail on all of them together."""

from __future__ import annotations

import os
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import torch

from ..errors import one_line

_TIMEOUT = timedelta(days=7)  # a fast rank waits for a slow one


class Ranks:
    """The ranks of `accelerate launch`, seen from one of them. Without a launcher, there is one rank.

    Args:
        device: the device of every rank, such as "cpu"; default: one accelerator per rank, else the CPU.

    Attributes:
        rank, world: number of this rank, and of all ranks.
        device: the device of this rank; None: not launched, and no device was given.

    Raises:
        ValueError: several ranks would use the same accelerator.
    """

    def __init__(self, device: str | None = None) -> None:
        self.rank, self.world = 0, 1
        self.device: str | torch.device | None = device
        self._state = None
        if int(os.environ.get("WORLD_SIZE", "1")) > 1:
            if device not in (None, "cpu"):
                raise ValueError(
                    f"--device: expected cpu or no such option with several ranks, got {device}; omit it: each rank "
                    "uses one accelerator."
                )
            from accelerate import PartialState

            on_cpu = device == "cpu" or not torch.accelerator.is_available()
            self._state = PartialState(cpu=on_cpu, timeout=_TIMEOUT)
            self.rank, self.world = self._state.process_index, self._state.num_processes
            self.device = self._state.device

    @property
    def is_main(self) -> bool:
        """Whether this is the main rank. Only this one prints."""
        return self.rank == 0

    def on_main(self, action: Callable[[], Any]) -> Any:
        """Return, on every rank, the result of an action that only the main rank runs; all ranks end if it fails."""
        results = [None]

        def run() -> None:
            if self.is_main:
                results[0] = action()

        self.on_all(run)
        if self.world > 1:
            from accelerate.utils import broadcast_object_list

            broadcast_object_list(results)
        return results[0]

    def on_all(self, action: Callable[[], None]) -> None:
        """Run an action on every rank; all ranks end if it fails on one, so that none waits forever.

        Raises:
            OSError, ValueError, RuntimeError, MemoryError: that of this rank; on the main rank also that of others.
            SystemExit: another rank failed, whose error the main rank raises.
        """
        if self.world == 1:
            return action()
        from accelerate.utils import gather_object

        failure: Exception | None = None
        try:
            action()
        except (OSError, ValueError, RuntimeError, MemoryError) as error:
            failure = error
        failures = gather_object([None if failure is None else f"rank {self.rank}: {one_line(failure)}"])
        first = next((text for text in failures if text), None)
        if first is None:
            return None
        self.close()
        if self.is_main:
            raise failure if failure is not None else OSError(first)
        raise SystemExit(1)

    def close(self) -> None:
        """End the communication between the ranks."""
        if self._state is not None:
            self._state.destroy_process_group()
            self._state = None
