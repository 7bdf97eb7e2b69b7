"""What the benchmarks share: rows in separate processes, an earlier revision next to this one, and Markdown tables."""

import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).parents[1]


def measure_rows(
    rows: Sequence[str], options: Sequence[str], repeats: int, baseline: Path | None = None
) -> dict[tuple[str, bool], dict[str, float]]:
    """Measure rows of the running script, each in a process of its own; report the median of all repeats.

    The script is called again with `--row NAME` and prints one JSON object of numbers. The rows take turns, so that a
    change of the machine's speed affects all of them.

    Args:
        rows: names of the rows.
        options: further options of the script.
        repeats: processes per row.
        baseline: checkout of an earlier revision, for which the rows are measured as well, in turns.

    Returns:
        The medians, keyed by row and whether they are those of the baseline. A row that the baseline does not know
        prints nothing and is left out.
    """
    results: dict[tuple[str, bool], list[dict[str, float]]] = {}
    for _ in range(repeats):
        for row in rows:
            for is_baseline in (False, True) if baseline else (False,):
                source = baseline if is_baseline and baseline else ROOT
                environment = {**os.environ, "PYTHONPATH": str(source / "src")}
                command = [sys.executable, str(Path(sys.argv[0]).resolve()), *options, "--row", row]
                command += ["--is_baseline"] if is_baseline else []
                completed = subprocess.run(
                    command, stdout=subprocess.PIPE, text=True, env=environment, check=True, cwd=tempfile.gettempdir()
                )
                if lines := completed.stdout.splitlines():
                    results.setdefault((row, is_baseline), []).append(json.loads(lines[-1]))
    return {
        key: {name: statistics.median(value[name] for value in values) for name in values[0]}
        for key, values in results.items()
    }


@contextmanager
def worktree(revision: str | None) -> Iterator[Path | None]:
    """Check out a revision of this repository in a temporary folder, which is removed afterwards."""
    if revision is None:
        yield None
        return
    with tempfile.TemporaryDirectory() as folder:
        checkout = Path(folder, "baseline")
        git("worktree", "add", "--detach", str(checkout), revision)
        try:
            yield checkout
        finally:
            git("worktree", "remove", "--force", str(checkout))


def git(*arguments: str) -> None:
    """Run git in this repository.

    Raises:
        SystemExit: git failed; its message is that of git.
    """
    completed = subprocess.run(["git", "-C", str(ROOT), *arguments], capture_output=True, text=True)
    if completed.returncode:
        raise SystemExit(f"git {' '.join(arguments)}: {completed.stderr.strip()}")


def print_table(columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    """Print a Markdown table. Numbers get three significant digits."""
    print("| " + " | ".join(columns) + " |")
    print("|" + "---|" * len(columns))
    for row in rows:
        print("| " + " | ".join(f"{x:.3g}" if isinstance(x, float) else str(x) for x in row) + " |", flush=True)


def machine(device: str) -> str:
    """Return the name of the processor or GPU, the number of threads and the version of torch."""
    if device == "cuda":
        return f"{torch.cuda.get_device_name()}, torch {torch.__version__}"
    return f"{processor_name()}, {torch.get_num_threads()} threads, torch {torch.__version__}"


def processor_name() -> str:
    if platform.system() == "Linux":
        with open("/proc/cpuinfo") as file:
            for line in file:
                if line.startswith("model name"):
                    return line.split(":")[1].strip()
    return platform.processor() or platform.machine()


def time_action(action: Callable[[], Any], device: str, repeats: int) -> dict[str, float]:
    """Run an action once to warm up, then several times.

    Returns:
        `seconds` and `processor_seconds`, medians including the work of the GPU; and `peak_gib`: allocated memory on a
        GPU, resident memory of the process (libraries and weights included) on a CPU.
    """
    action()
    synchronize(device)
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    wall, processor = [], []
    for _ in range(repeats):
        start, used = time.perf_counter(), time.process_time()
        action()
        synchronize(device)
        wall.append(time.perf_counter() - start)
        processor.append(time.process_time() - used)
    peak = torch.cuda.max_memory_allocated() if device == "cuda" else peak_resident_bytes()
    return {
        "seconds": statistics.median(wall),
        "processor_seconds": statistics.median(processor),
        "peak_gib": peak / 2**30,
    }


def synchronize(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def matmul_rate(device: str, dtype: torch.dtype) -> float:
    """Return the floating-point operations per second of one large matrix product."""
    side = 8192 if device == "cuda" else 2048
    left, right = torch.randn(2, side, side, device=device).to(dtype)
    times = []
    for _ in range(4):  # the first one is slower
        start = time.perf_counter()
        left @ right
        synchronize(device)
        times.append(time.perf_counter() - start)
    return 2 * side**3 / min(times)


def peak_resident_bytes() -> int:
    """Return the peak resident memory of this process in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if platform.system() == "Darwin" else 1024)


def computes_bf16(device: str) -> bool:
    """Return whether a device has instructions for bf16 products."""
    if device == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    capabilities = torch.cpu.get_capabilities()
    return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))
