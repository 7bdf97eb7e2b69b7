"""Overhead of Dense Aligners: DINOv2-B with six of them compared with the plain encoder.

    python benchmarks/adapter_overhead.py                 # on a GPU if there is one
    python benchmarks/adapter_overhead.py --dtype bfloat16 --compile

The two encoders run alternately, and the medians are reported as ratios within this run: times from different
machines, or from different days on one machine, are not comparable. `FLOPs ratio` is the overhead that would result if
every floating-point operation took the same time. Peak memory is measured only on a GPU.
"""

import argparse
import copy
import platform
import statistics
import time

import torch
from peft import get_peft_model
from torch.utils.flop_counter import FlopCounterMode
from transformers import Dinov2WithRegistersConfig, Dinov2WithRegistersModel

from detris_peft import DenseAlignerConfig


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch_size", type=int, default=2)
    parser.add_argument("--image_size", type=int, default=448, help="image side in pixels, a multiple of 14")
    parser.add_argument("--repeats", type=int, default=7, help="timed runs of each encoder")
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16", "float16"])
    parser.add_argument("--compile", action="store_true", help="torch.compile both encoders")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    arguments = parser.parse_args()

    torch.manual_seed(0)
    config = Dinov2WithRegistersConfig(image_size=518, patch_size=14)
    backbone = Dinov2WithRegistersModel(config).to(arguments.device, getattr(torch, arguments.dtype))
    backbone.requires_grad_(False)
    adapted = get_peft_model(copy.deepcopy(backbone), DenseAlignerConfig(), autocast_adapter_dtype=False)
    pixel_values = torch.randn(arguments.batch_size, 3, arguments.image_size, arguments.image_size)
    pixel_values = pixel_values.to(arguments.device, backbone.dtype)
    text_states = torch.randn(arguments.batch_size, 17, 512).to(pixel_values)
    encoders = {
        "plain": (torch.compile(backbone) if arguments.compile else backbone, {}),
        "adapted": (torch.compile(adapted) if arguments.compile else adapted, {"text_states": text_states}),
    }

    name = torch.cuda.get_device_name() if arguments.device == "cuda" else f"CPU, {torch.get_num_threads()} threads"
    print(f"{name}, {platform.machine()}, torch {torch.__version__}")
    print(f"DINOv2-B/14 with registers, {arguments.image_size}px, batch {arguments.batch_size}, {arguments.dtype}")
    flops = {key: count_flops(encoder, pixel_values, keywords) for key, (encoder, keywords) in encoders.items()}
    for title, backward in (("forward", False), ("forward + backward", True)):
        times, memory = measure(encoders, pixel_values, backward, arguments.repeats)
        ratio = times["adapted"] / times["plain"]
        line = f"{title:19} {times['plain']:.4f} s → {times['adapted']:.4f} s  ratio {ratio:.3f}"
        if memory:
            line += f"  peak memory ratio {memory['adapted'] / memory['plain']:.3f}"
        print(f"{line}  FLOPs ratio {flops['adapted'] / flops['plain']:.3f}")


def run(encoder, pixel_values, keywords, backward: bool) -> None:
    """Run one forward, and optionally a backward, of an encoder."""
    if not backward:
        with torch.no_grad():
            encoder(pixel_values=pixel_values, **keywords)
        return
    # Gradients flow back to the image in both encoders, so that they differ only in the adapters' work.
    pixel_values = pixel_values.detach().requires_grad_()
    encoder(pixel_values=pixel_values, **keywords).last_hidden_state.float().sum().backward()


def count_flops(encoder, pixel_values, keywords) -> int:
    """Count the floating-point operations of one forward."""
    plain = getattr(encoder, "_orig_mod", encoder)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        plain(pixel_values=pixel_values, **keywords)
    return counter.get_total_flops()


def measure(encoders, pixel_values, backward: bool, repeats: int) -> tuple[dict[str, float], dict[str, int]]:
    """Return median seconds per encoder and, on a GPU, peak allocated bytes. The first round is a warm-up."""
    times = {key: [] for key in encoders}
    memory = dict.fromkeys(encoders, 0)
    on_gpu = pixel_values.device.type == "cuda"
    for repeat in range(repeats + 1):
        for key, (encoder, keywords) in encoders.items():
            if on_gpu:
                torch.cuda.reset_peak_memory_stats()
                torch.cuda.synchronize()
            start = time.perf_counter()
            run(encoder, pixel_values, keywords, backward)
            if on_gpu:
                torch.cuda.synchronize()
                memory[key] = max(memory[key], torch.cuda.max_memory_allocated())
            if repeat:
                times[key].append(time.perf_counter() - start)
    return {key: statistics.median(values) for key, values in times.items()}, memory if on_gpu else {}


if __name__ == "__main__":
    main()
