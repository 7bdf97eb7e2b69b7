"""Time and memory of prediction, by precision, batch size and number of sentences; and of the parts of the model.

    python benchmarks/inference.py                                       # DETRIS-B, on a GPU if there is one
    python benchmarks/inference.py --only "one image" "batch 4"
    python benchmarks/inference.py --baseline 4db764f                    # and an earlier revision, in turns
    python benchmarks/inference.py --curves docs/images/performance.png  # against image side, batch and sentences

Weights and images are random. Each row runs in processes of its own, which take turns. `ratio` is images per second
relative to the first row of the same batch size. `share` is the rate of multiplications and additions relative to that
of one large matrix product in the same precision. Rows in bf16 are left out on a CPU without bf16 instructions, which
emulates them, unless `--bf16 yes`.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from measure import (
    choose_rows,
    count_flops,
    machine,
    make_config,
    make_parser,
    measure_action,
    measure_rows,
    print_baseline,
    print_table,
    random_inputs,
    worktree,
)
from PIL import Image

if TYPE_CHECKING:
    from detris_peft import DetrisConfig, DetrisForReferringSegmentation

# What is run, precision, sentences, images
ROWS = {
    "one image": ("model", "float32", 1, 1),
    "one image, compiled": ("compiled", "float32", 1, 1),
    "one image, int8": ("int8", "float32", 1, 1),
    "one image, bf16": ("model", "bfloat16", 1, 1),
    "one image, bf16 autocast": ("model", "autocast", 1, 1),
    "one image, bf16 compiled": ("compiled", "bfloat16", 1, 1),
    "JPEG and sentence to mask": ("file", "float32", 1, 1),
    "JPEG and sentence to mask, bf16": ("file", "bfloat16", 1, 1),
    "batch 4": ("model", "float32", 4, 4),
    "batch 4, bf16": ("model", "bfloat16", 4, 4),
    "batch 4, bf16 autocast": ("model", "autocast", 4, 4),
    "8 sentences, each with its image": ("model", "float32", 8, 8),
    "8 sentences on one image": ("model", "float32", 8, 1),
}
PARTS = {
    "text encoder": ("text_encoder", "float32", 1, 1),
    "image encoder": ("image_encoder", "float32", 1, 1),
    "neck": ("neck", "float32", 1, 1),
    "decoder": ("decoder", "float32", 1, 1),
    "projector": ("projector", "float32", 1, 1),
    "decoder, batch 4": ("decoder", "float32", 4, 4),
    "decoder, batch 4, bf16 autocast": ("decoder", "autocast", 4, 4),
}
BASELINE_ROWS = ("one image", "one image, bf16 autocast", "batch 4", "batch 4, bf16 autocast")
SIDES, BATCHES, SENTENCES = (224, 336, 448, 672, 896), (1, 2, 4, 8), (1, 2, 4, 8, 16)


def main() -> None:
    parser = make_parser(str(__doc__).splitlines()[0], [*ROWS, *PARTS])
    parser.add_argument("--curves", metavar="FILE", help="draw time and memory against side, batch and sentences")
    arguments = parser.parse_args()
    if arguments.row:
        if (result := measure(arguments)) is not None:
            print(json.dumps(result))
        return
    names = choose_rows(arguments, {n: row[1] != "float32" for n, row in (ROWS | PARTS).items()}, BASELINE_ROWS)
    if arguments.curves:
        draw_curves(arguments)
        return
    with worktree(arguments.baseline) as checkout:
        results = measure_rows(names, arguments, arguments.repeats, checkout)
    if arguments.baseline:
        print_baseline(names, results, arguments.baseline)
        return
    references: dict[int, float] = {}  # by batch size
    tables: dict[bool, list[tuple]] = {False: [], True: []}
    for name in names:
        if (result := results.get((name, False))) is None:  # its extra is not installed
            continue
        reference = references.setdefault((ROWS | PARTS)[name][2], result["seconds"])
        ratio = reference / result["seconds"] if name in ROWS else result["seconds"] / reference
        numbers = [result[key] for key in ("seconds", "processor_seconds", "peak_gib", "gflop", "share")]
        tables[name in PARTS].append((name, *numbers, ratio))
    for is_part, table in tables.items():
        if table:
            last = "share of the model's time in float32" if is_part else "ratio"
            print_table(("", "s", "processor s", "peak GiB", "GFLOP", "share", last), table)
            print()


def measure(arguments: argparse.Namespace) -> dict[str, float] | None:
    """Measure one row in this process; return None if what it needs is not installed."""
    if is_point := "=" in arguments.row:  # of a curve: side=448,images=1,sentences=1
        point = dict(part.split("=") for part in arguments.row.split(","))
        arguments.image_size = int(point["side"])
        kind, precision, sentences, images = "model", "float32", int(point["sentences"]), int(point["images"])
    else:
        kind, precision, sentences, images = (ROWS | PARTS)[arguments.row]
    model, config = make_model(arguments, precision)
    flops = None
    if kind == "int8" and not quantize(model):
        return None
    if kind == "file":
        action = file_to_mask(model, config)
    else:
        side = arguments.image_size or config.image_size
        inputs = random_inputs(config, sentences, images, side, arguments.device)
        action = run_model(model, kind, precision, *inputs)
        if not is_point and kind != "int8":
            flops = count_flops(action)
        if kind == "compiled":
            model.compile()
    dtype = torch.float32 if precision == "float32" else torch.bfloat16
    # A point of a curve is measured in one process only.
    return measure_action(action, arguments.device, dtype, 3 if is_point else 2, flops)


def make_model(arguments: argparse.Namespace, precision: str) -> tuple[DetrisForReferringSegmentation, DetrisConfig]:
    from detris_peft import DetrisForReferringSegmentation

    torch.manual_seed(0)
    config = make_config(arguments.preset)
    model = DetrisForReferringSegmentation(config).eval().to(arguments.device)
    if precision == "bfloat16":
        from detris_peft.modeling.casting import cast_model

        cast_model(model, torch.bfloat16)
    return model, config


def quantize(model: DetrisForReferringSegmentation) -> bool:
    """Quantize a model; return whether the package for it is installed."""
    from detris_peft.prediction.quantization import quantize_model

    try:
        quantize_model(model, "int8")
    except ValueError as error:
        print(error, file=sys.stderr)
        return False
    return True


def run_model(
    model: DetrisForReferringSegmentation,
    kind: str,
    precision: str,
    pixel_values: torch.Tensor,
    input_ids: torch.Tensor,
) -> Callable[[], Any]:
    """Return the function that runs a model, or a part of it on what the parts before it compute."""

    def with_precision(function: Callable[[], Any]) -> Callable[[], Any]:
        def action() -> Any:
            with torch.no_grad(), torch.autocast(device, torch.bfloat16, enabled=precision == "autocast"):
                return function()

        return action

    device = pixel_values.device.type
    if kind in ("model", "compiled", "int8"):
        # Earlier revisions take no `image_indices`.
        keywords = {}
        if len(pixel_values) < len(input_ids):
            keywords["image_indices"] = torch.zeros(len(input_ids), dtype=torch.long, device=device)
        dtype = next(model.parameters()).dtype
        return with_precision(lambda: model(pixel_values=pixel_values.to(dtype), input_ids=input_ids, **keywords))
    parts: dict[str, Callable[[], Any]] = {}
    parts["text_encoder"] = with_precision(lambda: model.encode_text(input_ids))
    text_states, sentence = parts["text_encoder"]()
    parts["image_encoder"] = with_precision(lambda: model.encode_image(pixel_values, text_states))
    if kind in parts:
        return parts[kind]
    feature_maps = parts["image_encoder"]()
    parts["neck"] = with_precision(lambda: model.neck(feature_maps, sentence))
    fused = parts["neck"]()
    padding_mask = torch.zeros_like(input_ids, dtype=torch.bool)
    parts["decoder"] = with_precision(lambda: model.decoder(fused, text_states, padding_mask=padding_mask))
    decoded = parts["decoder"]()
    parts["projector"] = with_precision(lambda: model.projector(decoded, sentence))
    return parts[kind]


def file_to_mask(model: DetrisForReferringSegmentation, config: DetrisConfig) -> Callable[[], Any]:
    """Return a function that predicts the mask of a sentence in a JPEG file of 640×480 pixels."""
    from detris_peft import DetrisPredictor, DetrisProcessor
    from detris_peft.tokenization_detris import train_tokenizer

    text = "the red circle on the left"
    processor = DetrisProcessor.from_config(config, train_tokenizer([text], config.text_config.vocab_size))
    predictor = DetrisPredictor(model, processor)
    folder = tempfile.TemporaryDirectory()  # kept by the function
    file = Path(folder.name, "image.jpg")
    noise = np.random.default_rng(0).integers(0, 256, (12, 16, 3), dtype=np.uint8)
    Image.fromarray(noise).resize((640, 480), Image.Resampling.BICUBIC).save(file)
    return lambda: predictor(Path(folder.name, file.name), text).mask


def draw_curves(arguments: argparse.Namespace) -> None:
    """Measure time and peak memory along three axes and draw them."""
    from matplotlib import pyplot

    side = arguments.image_size or make_config(arguments.preset).image_size
    axes = {
        "image side in pixels": [(value, f"side={value},images=1,sentences=1") for value in SIDES],
        "batch size": [(n, f"side={side},images={n},sentences={n}") for n in BATCHES],
        "sentences on one image": [(n, f"side={side},images=1,sentences={n}") for n in SENTENCES],
    }
    rows = [*dict.fromkeys(row for points in axes.values() for _, row in points)]
    results = measure_rows(rows, arguments, 1)
    figure, panels = pyplot.subplots(1, 3, figsize=(12, 3.6), layout="constrained")
    table = []
    for panel, (label, points) in zip(panels, axes.items(), strict=True):
        values = [(n, results[row, False]["seconds"], results[row, False]["peak_gib"]) for n, row in points]
        table += [(label, *value) for value in values]
        positions, seconds, memory = zip(*values, strict=True)
        panel.plot(positions, seconds, "o-", color="tab:blue")
        panel.set(xlabel=label, xticks=positions, ylim=(0, 1.05 * max(seconds)))
        panel.set_ylabel("time in s (solid)", color="tab:blue")
        right = panel.twinx()
        right.plot(positions, memory, "s--", color="tab:orange")
        right.set_ylim(0, 1.05 * max(memory))
        right.set_ylabel("peak memory in GiB (dashed)", color="tab:orange")
    model = arguments.preset or "DETRIS-B"
    figure.suptitle(
        f"Prediction with {model} in float32, {side} pixels unless shown otherwise; {machine(arguments.device)}",
        fontsize=10,
    )
    figure.savefig(arguments.curves, dpi=110)
    print_table(("", "value", "s", "peak GiB"), table)


if __name__ == "__main__":
    main()
