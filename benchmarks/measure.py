"""What the benchmarks share: rows in separate processes, an earlier revision next to this one, and Markdown tables."""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

ROOT = Path(__file__).parents[1]


def make_parser(description: str, rows: Collection[str]) -> argparse.ArgumentParser:
    """Return a parser with the options that the benchmarks of models share."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--preset", help="preset of the model; default: DETRIS-B")
    parser.add_argument("--image_size", type=int, help="side of the images in pixels; default: that of the model")
    parser.add_argument("--repeats", type=int, default=2, help="processes per row")
    parser.add_argument("--only", nargs="+", choices=rows, metavar="ROW", help="rows to measure: " + "; ".join(rows))
    parser.add_argument("--bf16", choices=("auto", "yes", "no"), default="auto", help="whether to measure bf16 rows")
    parser.add_argument("--baseline", metavar="REVISION", help="also measure a revision of this repository, in turns")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--row", help=argparse.SUPPRESS)
    parser.add_argument("--is_baseline", action="store_true", help=argparse.SUPPRESS)
    return parser


def choose_rows(
    arguments: argparse.Namespace, uses_bf16: Mapping[str, bool], of_baseline: Collection[str]
) -> list[str]:
    """Return the names of the rows to measure, and print the machine and what is left out.

    Args:
        arguments: those of `make_parser`.
        uses_bf16: all rows, and whether they compute in bf16.
        of_baseline: the rows that an earlier revision knows.
    """
    size = f" at {arguments.image_size} pixels" if arguments.image_size else ""
    print(f"{machine(arguments.device)}; {arguments.preset or 'DETRIS-B'}{size}")
    bf16 = arguments.bf16 == "yes" or (arguments.bf16 == "auto" and computes_bf16(arguments.device))
    names = [name for name, lower in uses_bf16.items() if bf16 or not lower] if not arguments.only else arguments.only
    if not arguments.only and not bf16 and arguments.bf16 == "auto":
        print("Rows in bf16 are left out: this device has no instructions for it. `--bf16 yes` measures them.")
    print()
    return [name for name in names if arguments.baseline is None or name in of_baseline]


def measure_rows(
    rows: Sequence[str],
    arguments: argparse.Namespace,
    repeats: int,
    baseline: Path | None = None,
    options: Sequence[str] = (),
) -> dict[tuple[str, bool], dict[str, float]]:
    """Measure rows of the running script, each in a process of its own; return the median of all repeats.

    The script is called again with `--row NAME` and prints one JSON object of numbers. The rows take turns, so that a
    change of the machine's speed affects all of them.

    Args:
        rows: names of the rows.
        arguments: those of `make_parser`.
        repeats: processes per row.
        baseline: checkout of an earlier revision, for which the rows are measured as well, in turns.
        options: further options of the script.

    Returns:
        The medians, keyed by row and whether they are those of the baseline. A row that cannot be measured, for
        example because an extra is not installed, prints nothing and is left out.

    Raises:
        SystemExit: a process failed; its output is printed.
    """
    options = [*options, f"--device={arguments.device}"]
    options += [f"--preset={arguments.preset}"] if arguments.preset else []
    options += [f"--image_size={arguments.image_size}"] if arguments.image_size else []
    results: dict[tuple[str, bool], list[dict[str, float]]] = {}
    for _ in range(repeats):
        for row in rows:
            for is_baseline in (False, True) if baseline else (False,):
                source = baseline if is_baseline and baseline else ROOT
                command = [sys.executable, str(Path(sys.argv[0]).resolve()), *options, "--row", row]
                command += ["--is_baseline"] if is_baseline else []
                completed = subprocess.run(
                    command,
                    capture_output=True,
                    text=True,
                    env={**os.environ, "PYTHONPATH": str(source / "src")},
                    cwd=tempfile.gettempdir(),
                )
                if completed.returncode:
                    raise SystemExit(f"{completed.stderr}\nrow {row!r}: expected numbers, got the error above.")
                if lines := completed.stdout.splitlines():
                    results.setdefault((row, is_baseline), []).append(json.loads(lines[-1]))
    return {
        key: {name: statistics.median(value[name] for value in values) for name in values[0]}
        for key, values in results.items()
    }


@contextmanager
def worktree(revision: str | None, repository: Path = ROOT) -> Iterator[Path | None]:
    """Check out a revision in a temporary folder, which is removed afterwards; yield None if there is no revision."""
    if revision is None:
        yield None
        return
    with tempfile.TemporaryDirectory() as folder:
        checkout = Path(folder, "baseline")
        git(repository, "worktree", "add", "--detach", str(checkout), revision)
        try:
            yield checkout
        finally:
            git(repository, "worktree", "remove", "--force", str(checkout))


def git(repository: Path, *arguments: str) -> None:
    """Run git in a repository.

    Raises:
        SystemExit: git failed; the message is that of git.
    """
    completed = subprocess.run(["git", "-C", str(repository), *arguments], capture_output=True, text=True)
    if completed.returncode:
        raise SystemExit(f"git {' '.join(arguments)}: {completed.stderr.strip()}")


def print_baseline(names: Sequence[str], results: Mapping[tuple[str, bool], dict[str, float]], revision: str) -> None:
    """Print both revisions next to each other. Ratios are old by new: above 1, this revision is faster or smaller."""
    table = []
    for name in names:
        new, old = results[name, False], results[name, True]
        table.append(
            [name, old["seconds"], new["seconds"]]
            + [old[key] / new[key] for key in ("seconds", "processor_seconds")]
            + [old["peak_gib"], new["peak_gib"], old["peak_gib"] / new["peak_gib"]]
        )
    times = (f"{revision}, s", "now, s", "old / new, s", "old / new, processor s")
    print_table(("", *times, f"{revision}, peak GiB", "now, peak GiB", "old / new, peak GiB"), table)


def print_table(columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    """Print a Markdown table. Floats get three significant digits; NaN, where nothing was measured, is left empty."""
    print("| " + " | ".join(columns) + " |")
    print("|" + "---|" * len(columns))
    for row in rows:
        print("| " + " | ".join(map(format_cell, row)) + " |", flush=True)


def format_cell(value: Any) -> str:
    if not isinstance(value, float):
        return str(value)
    if value != value:  # NaN
        return ""
    return f"{value:.0f}" if abs(value) >= 1000 else f"{value:#.3g}".rstrip(".")


def machine(device: str) -> str:
    """Return the name of the processor or GPU, the number of threads and the version of torch."""
    if device == "cuda":
        return f"{torch.cuda.get_device_name()}, torch {torch.__version__}"
    threads = torch.get_num_threads()
    return f"{processor_name()}, {threads} thread{'s' * (threads > 1)}, torch {torch.__version__}"


def processor_name() -> str:
    if platform.system() == "Linux":
        with open("/proc/cpuinfo") as file:
            for line in file:
                if line.startswith("model name"):
                    return line.split(":")[1].strip()
    return platform.processor() or platform.machine()


def make_config(preset: str | None) -> Any:
    """Return the configuration of a preset, or of DETRIS-B. Earlier revisions have these names too."""
    # Here, because the process that starts the others does not need these imports.
    from detris_peft import DetrisConfig, presets

    return presets.get(preset) if preset else DetrisConfig()


def random_inputs(
    config: Any, sentences: int, images: int, side: int, device: str
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return random pixel values (images, 3, side, side) and token ids (sentences, length) without padding."""
    text = config.text_config
    input_ids = torch.randint(1, text.vocab_size - 2, (sentences, config.max_text_length))
    input_ids[:, -1] = text.eos_token_id
    return torch.randn(images, 3, side, side, device=device), input_ids.to(device)


def measure_action(
    action: Callable[[], Any], device: str, dtype: torch.dtype, repeats: int, flops: int | None = None
) -> dict[str, float]:
    """Run an action once to warm up, then several times.

    Args:
        action: what to measure.
        device: cpu or cuda.
        dtype: precision of the matrix product that the action is compared with.
        repeats: number of timed runs.
        flops: floating-point operations of the action, if known; see `count_flops`.

    Returns:
        `seconds` and `processor_seconds`: medians, including the work of the GPU. `peak_gib`: peak of the timed runs,
        allocated memory on a GPU, resident memory of the process (libraries and weights included) on a CPU. `gflop`,
        and `share`: operations per second relative to one large matrix product. Unknown numbers are NaN.
    """
    action()
    synchronize(device)
    reset_peak_memory(device)
    wall, processor = [], []
    for _ in range(repeats):
        start, used = time.perf_counter(), time.process_time()
        action()
        synchronize(device)
        wall.append(time.perf_counter() - start)
        processor.append(time.process_time() - used)
    seconds, peak = statistics.median(wall), peak_memory(device)
    return {
        "seconds": seconds,
        "processor_seconds": statistics.median(processor),
        "peak_gib": peak / 2**30,
        "gflop": flops / 1e9 if flops else float("nan"),
        "share": flops / seconds / matmul_rate(device, dtype) if flops else float("nan"),
    }


def count_flops(action: Callable[[], Any]) -> int:
    """Return the floating-point operations of an action in eager mode."""
    # The FLOP counter supports only the math attention kernel.
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        action()
    return counter.get_total_flops()


def synchronize(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def matmul_rate(device: str, dtype: torch.dtype) -> float:
    """Return the floating-point operations per second of one large matrix product."""
    side = 8192 if device == "cuda" else 2048
    if dtype == torch.bfloat16 and not computes_bf16(device):
        side = 256  # emulation is a hundred times slower
    left, right = torch.randn(2, side, side, device=device).to(dtype)
    times = []
    for _ in range(4):  # the first one is slower
        start = time.perf_counter()
        _ = left @ right
        synchronize(device)
        times.append(time.perf_counter() - start)
    return 2 * side**3 / min(times)


def reset_peak_memory(device: str) -> None:
    """Start a new measurement of the peak; on systems other than Linux, a process keeps its peak from its start."""
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    else:
        with suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5")


def peak_memory(device: str) -> int:
    """Return the peak memory in bytes since `reset_peak_memory`."""
    if device == "cuda":
        return torch.cuda.max_memory_allocated()
    if platform.system() == "Linux":
        status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
        return 1024 * int(status["VmHWM"].split()[0])
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if platform.system() == "Darwin" else 1024)


def computes_bf16(device: str) -> bool:
    """Return whether a device has instructions for bf16 products."""
    if device == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    capabilities = torch.cpu.get_capabilities()
    return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))
