"""Time and memory of one training step of a preset, by precision and option.

    python benchmarks/train_step.py                       # DETRIS-B at 448 pixels, on a GPU if there is one
    python benchmarks/train_step.py --only float32,bfloat16 --batch_size 4

A step consists of forward, loss, backward and Adam, on random weights and images. Each row is measured in a separate
process, so that its peak memory is not affected by other rows: allocated bytes on a GPU, resident memory of the
process on a CPU (libraries and weights included). `ratio` is samples per second relative to the first row.
`matmul share` is the FLOP rate of the step relative to that of one large matrix product in the same precision,
measured in the same process: 1 means that the step only multiplies matrices at full speed. Times from different
machines are not comparable.
"""

import argparse
import json
import platform
import resource
import statistics
import subprocess
import sys
import time

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from detris_peft import DetrisForReferringSegmentation, presets
from detris_peft.modeling.encoders import build_backbone

# precision, gradient checkpointing, torch.compile, batches per optimizer step
ROWS = {
    "float32": ("float32", False, False, 1),
    "bfloat16": ("bfloat16", False, False, 1),
    "float16": ("float16", False, False, 1),
    "bfloat16 checkpointing": ("bfloat16", True, False, 1),
    "bfloat16 accumulation 2": ("bfloat16", False, False, 2),
    "bfloat16 compile": ("bfloat16", False, True, 1),
    "float32 checkpointing": ("float32", True, False, 1),
    "float32 compile": ("float32", False, True, 1),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--preset", default="detris-b")
    parser.add_argument("--batch_size", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--only", help="comma-separated rows to measure: " + ", ".join(ROWS))
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--row", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.row:
        print(json.dumps(measure(arguments, *ROWS[arguments.row])))
        return
    on_gpu = arguments.device == "cuda"
    names = arguments.only.split(",") if arguments.only else [n for n in ROWS if on_gpu or n != "float16"]
    name = torch.cuda.get_device_name() if on_gpu else f"{processor_name()}, {torch.get_num_threads()} threads"
    print(f"{name}, torch {torch.__version__}; {arguments.preset}, batch {arguments.batch_size}")
    print(
        f"{'':24} {'s/step':>8} {'samples/s':>10} {'ratio':>6} {'peak GiB':>9} {'matmul TFLOP/s':>15} "
        f"{'matmul share':>13}"
    )
    reference = None
    for row in names:
        result = measure_in_subprocess(row)
        reference = reference or result
        ratio = result["samples_per_second"] / reference["samples_per_second"]
        print(
            f"{row:24} {result['seconds']:8.3f} {result['samples_per_second']:10.2f} {ratio:6.2f} "
            f"{result['peak_gib']:9.2f} {result['matmul_tflops']:15.2f} {result['matmul_share']:13.2f}",
            flush=True,
        )


def measure_in_subprocess(row: str) -> dict[str, float]:
    """Measure one row in a new process."""
    completed = subprocess.run(
        [sys.executable, *sys.argv, "--row", row], stdout=subprocess.PIPE, text=True, check=True
    )
    return json.loads(completed.stdout.splitlines()[-1])


def measure(arguments, precision: str, checkpointing: bool, compiled: bool, accumulation: int) -> dict[str, float]:
    """Return time, throughput, peak memory and matmul share of one row."""
    device, dtype = arguments.device, getattr(torch, precision)
    torch.manual_seed(0)
    config = presets.get(arguments.preset)
    backbones = (build_backbone(config.vision_config), build_backbone(config.text_config))
    model = DetrisForReferringSegmentation.from_backbones(*backbones, config).to(device).train()
    if checkpointing:
        model.activation_checkpointing_enable()
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad])
    scaler = torch.amp.GradScaler(device, enabled=dtype == torch.float16)
    side = config.image_size
    batch = {
        "pixel_values": torch.randn(arguments.batch_size, 3, side, side, device=device),
        "input_ids": torch.randint(1, config.text_config.vocab_size, (arguments.batch_size, config.max_text_length)),
        "labels": torch.rand(arguments.batch_size, side, side, device=device).round(),
    }
    batch["input_ids"][:, -1] = config.text_config.eos_token_id
    batch["input_ids"] = batch["input_ids"].to(device)

    def step(forward) -> None:
        for _ in range(accumulation):
            with torch.autocast(device, dtype, enabled=dtype != torch.float32):
                loss = forward(**batch).loss
            scaler.scale(loss / accumulation).backward()
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()

    # The FLOP counter supports only the math attention kernel.
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        step(model)
    forward = torch.compile(model) if compiled else model
    for _ in range(2):  # warm-up: compilation and caches
        step(forward)
    times, rates, peaks = [], [], []
    for _ in range(arguments.repeats):
        rates.append(matmul_rate(device, dtype))
        if device == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
        times.append(seconds(lambda: step(forward), device))
        peaks.append(torch.cuda.max_memory_allocated() if device == "cuda" else peak_resident_bytes())
    duration, rate = statistics.median(times), statistics.median(rates)
    return {
        "seconds": duration,
        "samples_per_second": arguments.batch_size * accumulation / duration,
        "peak_gib": max(peaks) / 2**30,
        "matmul_tflops": rate / 1e12,
        "matmul_share": counter.get_total_flops() / duration / rate,
    }


def seconds(action, device: str) -> float:
    """Return the duration of an action in seconds, including its GPU work."""
    if device == "cuda":
        torch.cuda.synchronize()
    start = time.perf_counter()
    action()
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def matmul_rate(device: str, dtype: torch.dtype) -> float:
    """Return the floating-point operations per second of one large matrix product."""
    side = 8192 if device == "cuda" else 2048
    left, right = torch.randn(2, side, side, device=device).to(dtype)
    left @ right
    return 2 * side**3 / min(seconds(lambda: left @ right, device) for _ in range(3))


def peak_resident_bytes() -> int:
    """Return the peak resident memory of this process in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if platform.system() == "Darwin" else 1024)


def processor_name() -> str:
    if platform.system() == "Linux":
        with open("/proc/cpuinfo") as file:
            for line in file:
                if line.startswith("model name"):
                    return line.split(":")[1].strip()
    return platform.processor() or platform.machine()


if __name__ == "__main__":
    main()
