"""Size and speed of exported models: PyTorch, torch.export and ONNX on one image, at several numbers of threads.

    python benchmarks/export_speed.py                              # DETRIS-B at 448 pixels, random weights
    python benchmarks/export_speed.py --checkpoint run/best        # a trained checkpoint

The three are measured in turns in one process, after two warm-up runs each; the table gives medians. `ratio` is the
time relative to PyTorch at the same number of threads. The size of PyTorch is that of its float32 weights. Times from
different machines are not comparable.
"""

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import onnxruntime
import torch

from detris_peft import DetrisForReferringSegmentation, DetrisProcessor, presets
from detris_peft.export import export_model
from detris_peft.modeling import build_backbone
from detris_peft.tokenization_detris import train_tokenizer


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--preset", default="detris-b")
    parser.add_argument("--checkpoint", help="folder of a trained model, instead of a preset")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()
    model, processor = load(arguments)
    sentence = "the red circle on the left"
    pixel_values = torch.randn(1, 3, processor.image_size, processor.image_size)
    input_ids = processor(text=sentence)["input_ids"]
    name = arguments.checkpoint or arguments.preset
    print(
        f"{processor_name()}, torch {torch.__version__}, onnxruntime {onnxruntime.__version__}; {name}, one image of"
    )
    print(f"{processor.image_size}x{processor.image_size} pixels, medians of {arguments.repeats}")
    with tempfile.TemporaryDirectory() as folder:
        program_file, onnx_file = Path(folder, "model.pt2"), Path(folder, "model.onnx")
        export_model(model, processor, program_file, "torch_export")
        files = export_model(model, processor, onnx_file, "onnx").files
        sizes = {
            "PyTorch": sum(p.nbytes for p in (*model.parameters(), *model.buffers())),
            "torch_export": program_file.stat().st_size,
            "onnx": sum(file.stat().st_size for file in files),
        }
        program = torch.export.load(program_file).module()
        print(f"{'':14} {'threads':>8} {'MB':>8} {'ms':>8} {'ratio':>6}")
        for threads in arguments.threads:
            torch.set_num_threads(threads)
            session = onnx_session(onnx_file, threads)
            arrays = {"pixel_values": pixel_values.numpy(), "input_ids": input_ids.numpy()}
            runs = {
                "PyTorch": lambda: model(pixel_values, input_ids).logits,
                "torch_export": lambda: program(pixel_values, input_ids),
                "onnx": lambda session=session, arrays=arrays: session.run(None, arrays),
            }
            medians = measure(runs, arguments.repeats)
            for row, seconds in medians.items():
                print(
                    f"{row:14} {threads:8} {sizes[row] / 1e6:8.1f} {1e3 * seconds:8.1f} "
                    f"{seconds / medians['PyTorch']:6.2f}",
                    flush=True,
                )


def load(arguments: argparse.Namespace) -> tuple[DetrisForReferringSegmentation, DetrisProcessor]:
    """Return a trained model, or one with random weights, with its processor."""
    if arguments.checkpoint:
        model = DetrisForReferringSegmentation.from_pretrained(arguments.checkpoint)
        return model.eval(), DetrisProcessor.from_pretrained(arguments.checkpoint)
    torch.manual_seed(0)
    config = presets.get(arguments.preset)
    backbones = (build_backbone(config.vision_config), build_backbone(config.text_config))
    model = DetrisForReferringSegmentation.from_backbones(*backbones, config).eval()
    tokenizer = train_tokenizer(["the red circle on the left"], config.text_config.vocab_size)
    return model, DetrisProcessor.from_config(model.config, tokenizer)


def onnx_session(file: Path, threads: int) -> onnxruntime.InferenceSession:
    """Return a session whose idle threads do not slow down the other measurements."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])


def measure(runs: dict, repeats: int) -> dict[str, float]:
    """Return the median time of each run in seconds; the runs take turns."""
    times: dict[str, list[float]] = {name: [] for name in runs}
    with torch.no_grad():
        for i in range(2 + repeats):
            for name, run in runs.items():
                start = time.perf_counter()
                run()
                if i >= 2:  # warm-up: allocations and caches
                    times[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in times.items()}


def processor_name() -> str:
    """Return the name of the CPU."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return "CPU"


if __name__ == "__main__":
    main()
