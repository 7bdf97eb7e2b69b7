"""Fuzz all targets, each in a process of its own with bounded time and memory: `python -m tests.fuzz.run`.

The inputs depend on the seed only; how many are tried depends on the speed of the machine.
"""

from __future__ import annotations

import argparse
import faulthandler
import itertools
import multiprocessing
import os
import resource
import sys
import tempfile
import time
import warnings
from pathlib import Path

from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import seed as hypothesis_seed

from tests.fuzz.checks import problem, watch_for_execution
from tests.fuzz.targets import TARGETS

MEMORY = 4 << 30  # bytes per process
HANG = 30  # seconds per input
BATCH = 200  # inputs per seed of hypothesis


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("targets", nargs="*", choices=[*TARGETS, []], help="default: all")
    parser.add_argument("--seconds", type=float, default=240, help="time for all targets, without that for imports")
    parser.add_argument("--jobs", type=int, default=min(2, os.cpu_count() or 1), help="targets at the same time")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    waiting = arguments.targets or [*TARGETS]
    seconds = arguments.seconds / -(-len(waiting) // arguments.jobs)
    # Forked: the imports take longer than the inputs.
    context = multiprocessing.get_context("fork")
    failed, running = [], {}
    while waiting or running:
        while waiting and len(running) < arguments.jobs:
            name = waiting.pop(0)
            process = context.Process(target=fuzz, args=(name, seconds, arguments.seed))
            process.start()
            running[name] = process, time.monotonic() + seconds + 2 * HANG
        time.sleep(0.1)
        for name, (process, deadline) in [*running.items()]:
            if process.is_alive() and time.monotonic() > deadline:
                process.kill()
                process.join()
            if not process.is_alive():
                del running[name]
                if process.exitcode:
                    failed.append(name)
                    print(
                        f"{name}: FAILED with exit code {process.exitcode}; last input: {_last_input(name)}",
                        flush=True,
                    )
    sys.exit(f"failed: {', '.join(failed)}" if failed else 0)


def fuzz(name: str, seconds: float, seed: int) -> None:
    """Fuzz one target in this process; exit with code 1 if something was found."""
    end, target, last = time.monotonic() + seconds, TARGETS[name], _last_input(name)
    seeds = target.seeds()
    found: dict[str, bytes] = {}
    count = 0
    resource.setrlimit(resource.RLIMIT_DATA, (MEMORY, MEMORY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))

    def check(data: bytes) -> None:
        nonlocal count
        if time.monotonic() > end:
            return
        count += 1
        last.write_bytes(data)  # remains if the process crashes
        faulthandler.dump_traceback_later(HANG, exit=True)
        wrong = problem(target, data)
        faulthandler.cancel_dump_traceback_later()
        if wrong and len(data) < len(found.get(wrong, data + b" ")):
            found[wrong] = data

    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        for data in seeds:
            target.read(data)  # valid; also imports what is imported on first use
        watch_for_execution()
        options = settings(
            max_examples=BATCH,
            deadline=None,
            database=None,
            phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        )
        for batch in itertools.count(seed * 1_000_000):
            if time.monotonic() > end:
                break
            hypothesis_seed(batch)(options(given(target.inputs(seeds))(check)))()
        os.chdir("/")
    if not found:
        last.unlink(missing_ok=True)
    print(f"{name}: {count:,} inputs, {len(found)} failures", flush=True)
    for wrong, data in found.items():
        print(f"  {wrong}\n    input ({len(data)} bytes): {data[:300]!r}", flush=True)
    sys.exit(1 if found else 0)


def _last_input(name: str) -> Path:
    return Path(tempfile.gettempdir()) / f"detris-fuzz-{name}.bin"


if __name__ == "__main__":
    main()
