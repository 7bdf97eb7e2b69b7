"""What the tests change in the commands of the documents, and which commands they do not run.

The documents use datasets and models of published sizes. The tests run the same commands with the files of
`workspace.py`, and with the smallest preset.
"""

from __future__ import annotations

import re

# Commands that are parsed but not run: a pattern, and the reason.
NOT_RUN = [
    (r"^make ", "installs packages or runs the tests; the continuous integration runs these targets"),
    (r"^pip install ", "downloads packages"),
    (r"^hf ", "needs an account on the Hub"),
    (r"--push_to_hub ", "needs an account on the Hub; tests/training/test_push.py pushes to a server on loopback"),
    (r"accelerate/(ddp|fsdp2|deepspeed_zero2|multi_node)\.yaml", "needs several GPUs"),
    (r"\A#!/bin/bash\n#SBATCH", "needs Slurm"),
    (r"^python benchmarks/", "measures models of published sizes, for minutes"),
]

# Patterns in commands, and what replaces them. The first ones complete the abbreviations of the documents.
SUBSTITUTIONS = [
    (
        r"(\btrain\b.*?|train_refcoco\.py.*?)(\.\.\.|SAME OPTIONS|OPTIONS)",
        r"\1 --preset tiny --data_root DATA --output_dir runs/more",
    ),
    (r"(\bcompare) \.\.\.", r"\1 table3-small --output_dir runs/table3-small"),
    (r"(\bdetris (?:demo|predict|export))\b \.\.\.", r"\1 --checkpoint runs/b/best"),
    (r"runs/NAME\b", "runs/b"),
    (r"--dataset D\b", "--dataset refcoco"),
    (r"--split_by S\b", "--split_by unc"),
    (r"--split SPLIT\b", "--split val"),
    (r"\bRANK\b", "0"),
    (r"(?<=\bconvert detris_b_refcoco\.pth )--preset detris-b", "--config official/config.json"),
    (r"(?<=--config official/config.json)", " --vision_model official/vision --text_model official/text"),
    (r"(?<=\btrain )(.*)--preset [\w-]+", r"\1--preset tiny"),
    (r"(?<=train_refcoco\.py )(.*)--preset [\w-]+", r"\1--preset tiny"),
    (r"\bcompare table3\b(?!-)", "compare table3-small"),
    (r"--vision_model facebook/\S+", "--vision_model dinov2-small"),
    (r"--text_model FacebookAI/\S+", "--text_model minilm"),
    (r"--checkpoint user/name", "--checkpoint runs/b/best"),
]

# Options that are added to a command: a pattern, and the options. They make the run short.
ADDED = [
    (
        r"(\bdetris train|-m detris_peft(\.cli)? train|train_refcoco\.py)\b",
        "--epochs 1 --batch_size 2 --num_workers 0",
    ),
    (r"\bcompare (table3-small|table2-small|\S+\.yaml)\b", "--epochs 1 --batch_size 4 --num_workers 0 --seeds 0"),
    (r"\bcompare table3-small\b", "--only none"),
    (r"\bcompare (table2-small|docs/experiments/photos\.yaml)\b", "--only fixed"),
    (r"-m detris_peft\.data\.refshapes\b", "--train 6 --val 3 --test 2 --image_size 48 --overwrite"),
]

# Servers: they are stopped once they print their address.
SERVERS = r"\bdetris (?:demo\b(?!.*--export_space)|data review\b)"
ADDED.append((SERVERS, "--port 0"))

# Options that name a file or a folder which the command writes, and what `detris predict` writes without them.
OUTPUTS = ("--output", "--output_dir", "--preview", "--export_space")
DEFAULT_OUTPUTS = ("prediction.png", "prediction_mask.png", "predictions")

# The errors of a fragment in the running text: an option is missing, or its value.
_FRAGMENT = r"(the following arguments are required: |expected .*, got none; |.*expected a value, got none; add )"


def reason_not_to_run(text: str) -> str | None:
    """Return why a command is not run, or None."""
    return next((reason for pattern, reason in NOT_RUN if re.search(pattern, text)), None)


def is_fragment(message: str) -> bool:
    """Whether a usage error only says that something is missing."""
    return re.match(_FRAGMENT, message) is not None


def substitute(text: str) -> str:
    """Return a command with the files of the tests."""
    for pattern, replacement in SUBSTITUTIONS:
        text = re.sub(pattern, replacement, text)
    return text


def shorten(text: str) -> str:
    """Return a command with the options that make its run short."""
    for pattern, options in ADDED:
        if re.search(pattern, text):
            # Before a comment, a pipe or a redirection.
            text = re.sub(r"(?=\s+[#|>]|\s*$)", f" {options}", text, count=1)
    return text
