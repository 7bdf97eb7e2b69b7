"""Time and memory of one training step, by precision and option.

    python benchmarks/train_step.py                                         # DETRIS-B, on a GPU if there is one
    python benchmarks/train_step.py --only float32 bfloat16 --batch_size 4
    python benchmarks/train_step.py --baseline 4db764f                      # and an earlier revision, in turns

A step consists of forward, loss, backward and Adam, on random weights and images. Each row runs in processes of its
own, which take turns. `ratio` is samples per second relative to the first row. `share` is the rate of multiplications
and additions relative to that of one large matrix product in the same precision: 1 means that the step only multiplies
matrices at full speed. In bf16 and fp16 the frozen weights have that precision, as in `detris train`, except in the
rows "autocast" and in the baseline. Rows in bf16 are left out on a CPU without instructions for it, which emulates
them, unless `--bf16 yes`.
"""

from __future__ import annotations

import argparse
import json

import torch
from measure import (
    choose_rows,
    count_flops,
    make_config,
    make_parser,
    measure_action,
    measure_rows,
    print_baseline,
    print_table,
    random_inputs,
    worktree,
)

# precision, frozen weights in it, gradient checkpointing, torch.compile, batches per optimizer step
ROWS = {
    "float32": ("float32", False, False, False, 1),
    "bfloat16": ("bfloat16", True, False, False, 1),
    "bfloat16 autocast": ("bfloat16", False, False, False, 1),
    "float16": ("float16", True, False, False, 1),
    "float32 checkpointing": ("float32", False, True, False, 1),
    "float32 compile": ("float32", False, False, True, 1),
    "bfloat16 checkpointing": ("bfloat16", True, True, False, 1),
    "bfloat16 accumulation 2": ("bfloat16", True, False, False, 2),
    "bfloat16 compile": ("bfloat16", True, False, True, 1),
}
BASELINE_ROWS = ("float32", "bfloat16", "float16")


def main() -> None:
    parser = make_parser(str(__doc__).splitlines()[0], ROWS)
    parser.add_argument("--batch_size", type=int, default=1)
    arguments = parser.parse_args()
    if arguments.row:
        print(json.dumps(measure(arguments, *ROWS[arguments.row])))
        return
    rows = {name: row[0] == "bfloat16" for name, row in ROWS.items() if row[0] != "float16"}
    if arguments.device == "cuda":
        rows["float16"] = False
    names = choose_rows(arguments, rows, BASELINE_ROWS)
    with worktree(arguments.baseline) as checkout:
        options = [f"--batch_size={arguments.batch_size}"]
        results = measure_rows(names, arguments, arguments.repeats, checkout, options)
    print(f"Batch of {arguments.batch_size}\n")
    if arguments.baseline:
        print_baseline(names, results, arguments.baseline)
        return
    table = []
    first = results[names[0], False]
    rate = ROWS[names[0]][-1] / first["seconds"]
    for name in names:
        result = results[name, False]
        seconds, batches = result["seconds"], ROWS[name][-1]
        throughput = arguments.batch_size * batches / seconds
        numbers = [seconds, result["processor_seconds"], throughput, batches / seconds / rate, result["peak_gib"]]
        table.append((name, *numbers, result["gflop"] / seconds / 1000, result["share"]))
    print_table(("", "s/step", "processor s", "samples/s", "ratio", "peak GiB", "TFLOP/s", "share"), table)


def measure(
    arguments: argparse.Namespace, precision: str, cast: bool, checkpointing: bool, compiled: bool, accumulation: int
) -> dict[str, float]:
    """Measure one row in this process.

    Only names that earlier revisions have may be used here if `arguments.is_baseline`.
    """
    from detris_peft import DetrisForReferringSegmentation

    device, dtype = arguments.device, getattr(torch, precision)
    torch.manual_seed(0)
    config = make_config(arguments.preset)
    model = DetrisForReferringSegmentation(config).to(device).train()
    if cast and not arguments.is_baseline:
        from detris_peft.modeling.casting import cast_model

        cast_model(model, dtype, trained_dtype=torch.float32)
    if checkpointing:
        model.activation_checkpointing_enable()
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    scaler = torch.amp.GradScaler(device, enabled=dtype == torch.float16)
    fused = not arguments.is_baseline and dtype != torch.float16  # as in training/preparation.py
    optimizer = torch.optim.Adam(trained, fused=fused)
    side = arguments.image_size or config.image_size
    batch = arguments.batch_size
    pixel_values, input_ids = random_inputs(config, batch, batch, side, device)
    labels = torch.rand(batch, side, side, device=device).round()

    def step() -> None:
        for _ in range(accumulation):
            with torch.autocast(device, dtype, enabled=dtype != torch.float32):
                loss = model(pixel_values=pixel_values, input_ids=input_ids, labels=labels).loss
            scaler.scale(loss / accumulation).backward()
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()

    flops = count_flops(step)
    if compiled:
        model.compile()
        step()
    return measure_action(step, device, dtype, 2, flops)


if __name__ == "__main__":
    main()
