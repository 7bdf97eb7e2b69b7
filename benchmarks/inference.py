"""Time and memory of prediction, by precision, batch size and number of sentences; and of the parts of the model.

    python benchmarks/inference.py                                       # DETRIS-B at 448 pixels
    python benchmarks/inference.py --baseline 4db764f                    # and an earlier revision, in turns
    python benchmarks/inference.py --curves docs/images/performance.png  # against image side, batch and sentences

Weights and images are random. Each row runs in processes of its own, which take turns. `ratio` is images per second
relative to the first row of the same batch; `share` is the rate of multiplications and additions relative to that of
one large matrix product in the same precision. Rows in bf16 are left out on a CPU without instructions for it, unless
`--bf16 yes`: it emulates them, and what it measures says nothing about other machines.
"""

import argparse
import json
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from measure import computes_bf16, machine, matmul_rate, measure_rows, print_table, time_action, worktree
from PIL import Image
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from detris_peft import DetrisConfig, DetrisForReferringSegmentation

# What is run, precision, sentences, images
ROWS = {
    "one image": ("model", "float32", 1, 1),
    "one image, compiled": ("compiled", "float32", 1, 1),
    "one image, int8": ("int8", "float32", 1, 1),
    "one image, bf16 autocast": ("model", "autocast", 1, 1),
    "one image, bf16": ("model", "bfloat16", 1, 1),
    "batch 4": ("model", "float32", 4, 4),
    "batch 4, bf16 autocast": ("model", "autocast", 4, 4),
    "batch 4, bf16": ("model", "bfloat16", 4, 4),
    "8 sentences, image repeated": ("model", "float32", 8, 8),
    "8 sentences on one image": ("model", "float32", 8, 1),
    "JPEG and sentence to mask": ("file", "float32", 1, 1),
    "text encoder": ("text_encoder", "float32", 1, 1),
    "image encoder": ("image_encoder", "float32", 1, 1),
    "neck": ("neck", "float32", 1, 1),
    "decoder": ("decoder", "float32", 1, 1),
    "projector": ("projector", "float32", 1, 1),
    "decoder, batch 4, bf16 autocast": ("decoder", "autocast", 4, 4),
}
BASELINE_ROWS = ("one image", "one image, bf16 autocast", "batch 4", "batch 4, bf16 autocast")
SIDES, BATCHES, SENTENCES = (224, 336, 448, 672, 896), (1, 2, 4, 8), (1, 2, 4, 8, 16)


def main() -> None:
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--preset", help="preset of the model; default: DETRIS-B")
    parser.add_argument("--image_size", type=int, default=448)
    parser.add_argument("--repeats", type=int, default=2, help="processes per row")
    parser.add_argument("--only", help="rows to measure, separated by semicolons: " + "; ".join(ROWS))
    parser.add_argument("--bf16", choices=("auto", "yes", "no"), default="auto")
    parser.add_argument("--baseline", metavar="REVISION", help="also measure a revision of this repository")
    parser.add_argument("--curves", metavar="FILE", help="draw time and memory against side, batch and sentences")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--row", help=argparse.SUPPRESS)
    parser.add_argument("--is_baseline", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.row:
        measure(arguments)
        return
    options = [f"--device={arguments.device}", f"--image_size={arguments.image_size}"]
    options += [f"--preset={arguments.preset}"] if arguments.preset else []
    print(f"{machine(arguments.device)}; {arguments.preset or 'DETRIS-B'} at {arguments.image_size} pixels\n")
    if arguments.curves:
        draw_curves(arguments, options)
        return
    lower = arguments.bf16 == "yes" or (arguments.bf16 == "auto" and computes_bf16(arguments.device))
    names = (
        arguments.only.split(";") if arguments.only else [n for n, row in ROWS.items() if lower or "b" not in row[1]]
    )
    names = [name.strip() for name in names if arguments.baseline is None or name.strip() in BASELINE_ROWS]
    with worktree(arguments.baseline) as checkout:
        results = measure_rows(names, options, arguments.repeats, checkout)
    if arguments.baseline:
        print_baseline(names, results, arguments.baseline)
        return
    references: dict[int, float] = {}
    table = []
    for name in names:
        if (result := results.get((name, False))) is None:  # its extra is not installed
            continue
        batch = ROWS[name][2]
        reference = references.setdefault(batch, result["seconds"])
        table.append((name, *(result[key] for key in RESULTS), reference / result["seconds"], result["share"]))
    print_table(("", "s", "processor s", "peak GiB", "ratio", "share"), table)


RESULTS = ("seconds", "processor_seconds", "peak_gib")


def print_baseline(names, results, revision: str) -> None:
    """Print both revisions next to each other; a ratio above 1 means that this revision is faster."""
    table = []
    for name in names:
        new, old = results[name, False], results[name, True]
        ratios = (old["seconds"] / new["seconds"], old["processor_seconds"] / new["processor_seconds"])
        table.append((name, old["seconds"], new["seconds"], *ratios, new["peak_gib"] / old["peak_gib"]))
    print_table(("", f"{revision}, s", "now, s", "times as fast", "by processor time", "peak memory, ratio"), table)


def measure(arguments) -> None:
    """Measure one row in this process and print the result; print nothing if what it needs is not installed."""
    if "=" in arguments.row:  # a point of a curve: side=448,images=1,sentences=1
        point = dict(part.split("=") for part in arguments.row.split(","))
        arguments.image_size = int(point["side"])
        row = ("model", "float32", int(point["sentences"]), int(point["images"]))
    else:
        row = ROWS[arguments.row]
    kind, precision, sentences, images = row
    action = make_action(arguments, kind, precision, sentences, images)
    if action is None:
        return
    dtype = torch.float32 if precision == "float32" else torch.bfloat16
    result = time_action(action, arguments.device, repeats=3)
    if kind not in ("compiled", "int8"):
        # The FLOP counter supports only the math attention kernel.
        with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
            action()
        rate = matmul_rate(arguments.device, dtype)
        result["share"] = counter.get_total_flops() / result["seconds"] / rate
    else:
        result["share"] = float("nan")
    print(json.dumps(result))


def make_action(arguments, kind: str, precision: str, sentences: int, images: int):
    """Return the function to measure."""
    torch.manual_seed(0)
    if arguments.preset:
        from detris_peft import presets

        config = presets.get(arguments.preset)
    else:
        config = DetrisConfig()  # DETRIS-B
    device, side = arguments.device, arguments.image_size
    model = DetrisForReferringSegmentation(config).eval().to(device)
    pixel_values = torch.randn(images, 3, side, side, device=device)
    length, end = config.max_text_length, config.text_config.eos_token_id
    input_ids = torch.randint(1, config.text_config.vocab_size - 2, (sentences, length))
    input_ids[:, -1] = end
    input_ids = input_ids.to(device)
    if precision == "bfloat16":
        model = model.to(torch.bfloat16)
    if kind == "int8":
        try:
            from detris_peft.prediction.quantization import quantize_model

            quantize_model(model, "int8")
        except (ImportError, ValueError) as error:
            print(f"int8 is left out: {error}", file=sys.stderr)
            return None
    if kind == "compiled":
        model.compile()
    if kind == "file":
        return file_to_mask(model, config)
    keywords = {}
    if images < sentences:
        keywords["image_indices"] = torch.zeros(sentences, dtype=torch.long, device=device)
    inputs = part_inputs(model, kind, pixel_values, input_ids)

    def action() -> None:
        with torch.no_grad(), torch.autocast(device, torch.bfloat16, enabled=precision == "autocast"):
            if inputs is None:
                model(pixel_values, input_ids, **keywords)
            else:
                inputs()

    return action


def part_inputs(model, kind: str, pixel_values: torch.Tensor, input_ids: torch.Tensor):
    """Return a function that runs one part of a model on what the parts before it compute; None for all of it."""
    if kind in ("model", "compiled", "int8"):
        return None
    with torch.no_grad():
        text_states, sentence = model.encode_text(input_ids)
        if kind == "text_encoder":
            return lambda: model.encode_text(input_ids)
        if kind == "image_encoder":
            return lambda: model.encode_image(pixel_values, text_states)
        feature_maps = model.encode_image(pixel_values, text_states)
        if kind == "neck":
            return lambda: model.neck(feature_maps, sentence)
        features = model.neck(feature_maps, sentence)
        padding_mask = torch.zeros_like(input_ids, dtype=torch.bool)
        if kind == "decoder":
            return lambda: model.decoder(features, text_states, padding_mask=padding_mask)
        features = model.decoder(features, text_states, padding_mask=padding_mask)
        return lambda: model.projector(features, sentence)


def file_to_mask(model, config):
    """Return a function that predicts the mask of a sentence in a JPEG file of 640×480 pixels."""
    from detris_peft import DetrisPredictor, DetrisProcessor
    from detris_peft.tokenization_detris import train_tokenizer

    text = "the red circle on the left"
    processor = DetrisProcessor.from_config(config, train_tokenizer([text], config.text_config.vocab_size))
    predictor = DetrisPredictor(model, processor)
    file = Path(tempfile.mkdtemp(), "image.jpg")
    noise = np.random.default_rng(0).integers(0, 256, (12, 16, 3), dtype=np.uint8)
    Image.fromarray(noise).resize((640, 480), Image.Resampling.BICUBIC).save(file)
    return lambda: predictor(file, text).mask


def draw_curves(arguments, options: list[str]) -> None:
    """Measure time and peak memory along three axes and draw them."""
    from matplotlib import pyplot

    axes = {
        "image side in pixels": [(side, f"side={side},images=1,sentences=1") for side in SIDES],
        "batch size": [(n, f"side={arguments.image_size},images={n},sentences={n}") for n in BATCHES],
        "sentences on one image": [(n, f"side={arguments.image_size},images=1,sentences={n}") for n in SENTENCES],
    }
    rows = [*dict.fromkeys(row for points in axes.values() for _, row in points)]
    results = measure_rows(rows, options, 1)
    figure, panels = pyplot.subplots(1, 3, figsize=(12, 3.6), layout="constrained")
    table = []
    for panel, (label, points) in zip(panels, axes.items(), strict=True):
        values = [(n, results[row, False]["seconds"], results[row, False]["peak_gib"]) for n, row in points]
        table += [(label, *value) for value in values]
        positions, seconds, memory = zip(*values, strict=True)
        panel.plot(positions, seconds, "o-", color="tab:blue")
        panel.set(xlabel=label, xticks=positions, ylim=(0, None))
        panel.set_ylabel("seconds", color="tab:blue")
        right = panel.twinx()
        right.plot(positions, memory, "s--", color="tab:orange")
        right.set_ylabel("peak memory in GiB", color="tab:orange")
        right.set_ylim(0, None)
    figure.suptitle(f"Prediction in float32, {machine(arguments.device)}", fontsize=10)
    figure.savefig(arguments.curves, dpi=110)
    print_table(("", "value", "s", "peak GiB"), table)


if __name__ == "__main__":
    main()
