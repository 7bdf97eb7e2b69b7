"""Wrong commands, options and outputs of the command line; all of them fail before a model is loaded."""

from __future__ import annotations

import os
from pathlib import Path

from PIL import Image

from tests.bad_inputs.case import Case, Prepare, steps, write

PREDICT = "predict --checkpoint run/best --image photo.png --text square"
EVALUATE = "evaluate --checkpoint run/best --data_root data --dataset refshapes --num_workers 0"
CONVERT = "convert tests.pth --preset detris-b"
TO_OFFICIAL = "convert run/best --to-official"


def folder(name: str) -> Prepare:
    """Return a function that creates a folder."""
    return lambda root: (root / name).mkdir(parents=True)


def image(name: str) -> Prepare:
    """Return a function that writes an image."""
    return lambda root: Image.new("RGB", (20, 20)).save(root / name)


def link(name: str, target: str) -> Prepare:
    """Return a function that creates a symbolic link."""
    return lambda root: (root / name).symlink_to(target)


def pipe(root: Path) -> None:
    os.mkfifo(root / "pipe.png")


CASES = [
    # -- commands
    Case(
        "no command", "", ("expected a command", "train, evaluate, predict", "got none", "write the command"), code=2
    ),
    Case("mistyped command", "conver x", ("got 'conver'", "use convert"), code=2),
    Case("command in capitals", "TRAIN", ("got 'TRAIN'", "use train"), code=2),
    Case("unknown command", "xyz", ("expected one of train, evaluate", "choose one"), code=2),
    Case("options before the command", "--checkpoint run/best predict", ("--checkpoint", "command first"), code=2),
    Case("unknown option before the command", "-v", ("expected a command", "got -v", "command first"), code=2),
    Case(
        "no data command",
        "data",
        ("expected a command (check, convert, describe, review, split)", "write the command first"),
        code=2,
    ),
    Case("mistyped data command", "data chekc", ("got 'chekc'", "use check"), code=2),
    # -- options
    Case("mistyped training option", "train --lerning_rate 1", ("--lerning_rate", "use --learning_rate"), code=2),
    Case("abbreviated training option", "train --learning 1", ("expected a known option", "got --learning"), code=2),
    Case("training option without number", "train --epochs many", ("--epochs", "an integer", "'many'"), code=2),
    Case("option of data check without number", "data check --seed x", ("--seed", "an integer", "'x'"), code=2),
    Case(
        "text missing",
        "predict --checkpoint x --image photo.png",
        ("expected --text", "add it"),
        code=2,
        subprocess=True,
    ),
    Case("options missing", "predict", ("expected --checkpoint", "add it"), code=2),
    Case("text without quotes", f"{PREDICT} red circle", ("--text", "quotes", "'square red circle'"), code=2),
    Case(
        "text without quotes, then options",
        "predict --text the red --device cpu",
        ("--text", "2 words", "quotes: 'the red'"),
        code=2,
    ),
    Case("path without quotes", "predict --image my photo.png", ("--image", "quotes: 'my photo.png'"), code=2),
    Case("mistyped option", "predict --checkpont x", ("got --checkpont", "use --checkpoint"), code=2),
    Case("mistyped option with a value", "evaluate --batchsize=3", ("got --batchsize", "use --batch_size"), code=2),
    Case("abbreviated option", "predict --check x", ("expected a known option", "use --checkpoint"), code=2),
    Case("option of another command", f"{PREDICT} --split val", ("expected a known option", "got --split"), code=2),
    Case("long dash", "predict \u2014text square", ("got \u2014text", "use --text"), code=2),
    Case("second number", f"{EVALUATE} --batch_size 2 3", ("--batch_size: expected one value", "remove '3'"), code=2),
    Case("one dash", "predict -text square", ("got -text", "use --text"), code=2),
    Case("option without its value", "predict --text", ("--text: expected a value", "add one"), code=2),
    Case("option instead of a value", "predict --text --image x", ("--text: expected a value", "add one"), code=2),
    Case(
        "superfluous word",
        "predict square --checkpoint x --image x --text x",
        ("got 'square'", "remove it", "quotes"),
        code=2,
    ),
    Case("two files to convert", f"{CONVERT} b.pth --output x", ("got 'b.pth'", "remove it"), code=2),
    Case("number expected", f"{PREDICT} --threshold high", ("--threshold", "a number", "'high'"), code=2),
    Case("boolean expected", f"{PREDICT} --overwrite maybe", ("--overwrite", "true or false", "'maybe'"), code=2),
    Case("opposite with a value", f"{PREDICT} --no_overwrite=1", ("--no_overwrite", "no value", "remove it"), code=2),
    Case("integer expected", f"{EVALUATE} --batch_size 1.5", ("--batch_size", "an integer", "'1.5'"), code=2),
    Case("unknown precision", f"{EVALUATE} --precision fp8", ("auto, fp32, bf16", "'fp8'", "choose one"), code=2),
    Case("earlier precision", f"{EVALUATE} --mixed_precision no", ("--mixed_precision", "--precision fp32"), code=2),
    Case("earlier dtype", f"{PREDICT} --dtype=bfloat16", ("--dtype", "use --precision bf16"), code=2),
    Case("fp16 on a CPU", f"{PREDICT} --device cpu --precision fp16", ("--precision: expected auto", "'fp16'")),
    Case("mistyped choice", f"{EVALUATE} --sentences frist", ("first, all", "use first"), code=2),
    Case("mistyped dataset option", f"{EVALUATE} --data-rot data", ("got --data-rot", "use --data-root"), code=2),
    # -- values
    Case("threshold is nan", f"{PREDICT} --threshold nan", ("--threshold", "at least 0 and below 1", "nan")),
    Case("threshold is infinite", f"{PREDICT} --threshold inf", ("--threshold", "at least 0 and below 1", "inf")),
    Case("threshold is negative", f"{PREDICT} --threshold -0.1", ("--threshold", "at least 0 and below 1", "-0.1")),
    Case("threshold is 1", f"{PREDICT} --threshold 1", ("--threshold", "at least 0 and below 1", "1.0")),
    Case("missing GPU", f"{PREDICT} --device cuda:99", ("--device cuda:99", "choose another one")),
    Case(
        "device without values", f"{PREDICT} --device meta", ("--device meta", "not available", "choose another one")
    ),
    Case("unknown device", f"{PREDICT} --device gpu", ("--device gpu", "choose another one")),
    Case("device of another platform", f"{PREDICT} --device xla", ("--device xla", "choose another one")),
    Case("empty device", f"{PREDICT} --device ''", ("--device", "expected cpu", "choose another one")),
    Case("empty output", f"{PREDICT} --output ''", ("--output", "got an empty name", "pass one")),
    Case("empty image", "predict --checkpoint x --image '' --text x", ("--image", "got an empty name", "pass one")),
    Case("empty dataset name", f"{EVALUATE} --dataset ''", ("--dataset", "got an empty name", "pass one")),
    Case("empty text", "predict --checkpoint x --image x --text ''", ("--text: expected a sentence", "pass a")),
    Case(
        "blank text", "predict --checkpoint x --image x --text ' &nbsp; '", ("--text: expected a sentence", "pass a")
    ),
    Case("text is not UTF-8", "predict --checkpoint x --image x --text a\udcff", ("--text", "in UTF-8", "terminal")),
    Case("batch size 0", f"{EVALUATE} --batch_size 0", ("--batch_size", "expected 1 to", "got 0")),
    Case("batch size -1", f"{EVALUATE} --batch_size -1", ("--batch_size", "expected 1 to", "got -1")),
    Case("workers -1", f"{EVALUATE} --num_workers -1", ("--num_workers", "expected 0 to", "got -1")),
    Case("too many workers", f"{EVALUATE} --num_workers 100000", ("--num_workers", "to 1000", "got 100000")),
    Case("seed -1", f"{EVALUATE} --seed -1", ("--seed", "expected 0 to", "got -1")),
    Case("seed above 32 bits", f"{EVALUATE} --seed 4294967296", ("--seed", "to 4294967295", "got 4294967296")),
    Case(
        "no-target pairs without category ids",
        "evaluate --checkpoint run/best --dataset folder --num_workers 0 --no_target_pairs",
        ("val split: category_id", "got 0 in 2 references", "omit no_target_ratio and no_target_pairs"),
    ),
    Case("evaluation of a stream", f"{EVALUATE} --streaming", ("--streaming", "training only", "omit it")),
    # -- checkpoints
    Case("run instead of its best", "predict --checkpoint run --image x --text x", ("got a run", "pass run/best")),
    Case("run in a folder above", f"{PREDICT} --checkpoint . --subfolder run", ("--subfolder run", "run/best")),
    Case("run with only last", f"{PREDICT} --checkpoint r", ("pass r/last",), write("r/last/config.json", {})),
    Case("run without checkpoint", f"{PREDICT} --checkpoint r", ("got a run without",), write("r/run.json", {})),
    Case("adapter folder", f"{PREDICT} --checkpoint run/best/vision_adapter", ("another folder", "run/best.")),
    Case(
        "training state",
        f"{PREDICT} --checkpoint run/checkpoints/step-1",
        ("run/best.",),
        folder("run/checkpoints/step-1"),
    ),
    Case("folder without checkpoint", f"{PREDICT} --checkpoint data", ("found no config.json", "check the path")),
    Case("missing checkpoint", f"{PREDICT} --checkpoint ./none", ("no such folder", "check the path")),
    Case("missing absolute checkpoint", f"{PREDICT} --checkpoint /none/none", ("no such folder", "check the path")),
    Case("missing nested checkpoint", f"{EVALUATE} --checkpoint run/b/best", ("no such folder", "check the path")),
    Case("home is not expanded", f"{PREDICT} --checkpoint '~/run'", ("no such folder", "check the path")),
    Case("image as checkpoint", f"{PREDICT} --checkpoint photo.png", ("got a file", "pass its folder")),
    Case("released file as checkpoint", f"{PREDICT} --checkpoint a.pth", ("detris convert",), write("a.pth", b"x")),
    Case("empty checkpoint", f"{PREDICT} --checkpoint ''", ("--checkpoint", "empty name", "pass one")),
    Case("revision of a folder", f"{PREDICT} --revision v1", ("--revision", "expected a Hub id", "omit it")),
    Case("missing subfolder", f"{PREDICT} --subfolder none", ("--subfolder", "no such folder", "check the path")),
    # -- outputs of predict
    Case("GIF output", f"{PREDICT} --output x.gif", ("--output x.gif", "ends with .png")),
    Case("JSON output of predict", f"{PREDICT} --output x.json", ("--output x.json", "ends with .png")),
    Case("folder as output", f"{PREDICT} --output data", ("data", "with other files", "another folder")),
    Case("folder with a suffix", f"{PREDICT} --output d.png", ("got a folder", "add a file name"), folder("d.png")),
    Case("existing output", f"{PREDICT} --output o.png", ("existing one", "--overwrite"), image("o.png")),
    Case("existing default output", PREDICT, ("prediction.png", "--overwrite"), image("prediction.png")),
    Case("existing mask", f"{PREDICT} --output o.png", ("o_mask.png", "--overwrite"), image("o_mask.png")),
    Case("output is the image", f"{PREDICT} --output photo.png --overwrite", ("than the input", "choose another")),
    Case(
        "output is a link to the image",
        f"{PREDICT} --output l.png --overwrite",
        ("than the input", "choose another"),
        link("l.png", "photo.png"),
    ),
    Case(
        "output is a broken link", f"{PREDICT} --output l.png", ("existing one", "--overwrite"), link("l.png", "none")
    ),
    Case(
        "mask is the image",
        "predict --checkpoint run/best --image a_mask.png --text x --output a.png --overwrite",
        ("a_mask.png", "than the input"),
        image("a_mask.png"),
    ),
    Case(
        "output is a pipe", f"{PREDICT} --output pipe.png --overwrite", ("a device or a pipe", "choose another"), pipe
    ),
    Case("overlay below a file", f"{PREDICT} --output photo.png/o.png", ("is a file", "change the path")),
    Case("split mistyped", f"{EVALUATE} --split tset", ("expected", "val", "tset")),
    Case(
        "field of an option file mistyped",
        "train --config bad.yaml",
        ("bad.yaml", "got learning_rat;"),
        write("bad.yaml", "learning_rat: 1\n"),
    ),
    # -- outputs of evaluate
    Case("folder as JSON output", f"{EVALUATE} --output data", ("got a folder", "add a file name")),
    Case("existing JSON output", f"{EVALUATE} --output o.json", ("existing one", "--overwrite"), write("o.json", {})),
    Case(
        "output is a config",
        f"{EVALUATE} --output run/best/config.json --overwrite",
        ("than the input", "choose another"),
    ),
    Case(
        "scores over the dataset",
        f"{EVALUATE} --dataset c.json --output c.json --overwrite",
        ("than the input", "choose another"),
        write("c.json", {}),
    ),
    # -- convert
    Case("no output", CONVERT, ("expected --output", "add it"), code=2),
    Case("no architecture", "convert tests.pth --output x", ("--preset or as --config", "pass one")),
    Case("two architectures", f"{CONVERT} --config c.json --output x", ("got both", "pass one")),
    Case("unknown preset", "convert tests.pth --preset huge --output x", ("huge", "detris-b")),
    Case(
        "config is text", "convert a.pth --config c.json --output x", ("c.json", "expected JSON"), write("c.json", "x")
    ),
    Case(
        "config of BERT",
        "convert a.pth --config c.json --output x",
        ("'bert'", "pass the config"),
        write("c.json", {"model_type": "bert"}),
    ),
    Case("missing config", "convert a.pth --config c.json --output x", ("c.json", "no such file", "check the path")),
    Case("missing released file", f"{CONVERT} --output x", ("tests.pth", "no such file")),
    Case(
        "conversion to the working directory",
        f"{CONVERT} --output . --overwrite",
        ("with other files", "choose another"),
    ),
    Case(
        "conversion to another folder", f"{CONVERT} --output data --overwrite", ("with other files", "choose another")
    ),
    Case("output is an existing checkpoint", f"{CONVERT} --output run/best", ("existing one", "--overwrite")),
    Case(
        "output is a run",
        f"{CONVERT} --output run --overwrite",
        ("of a checkpoint", "of a run"),
        steps(write("run/run.json", {}), folder("run/checkpoints")),
    ),
    Case("conversion to a file", f"{CONVERT} --output photo.png --overwrite", ("got a file", "choose another")),
    Case("output folder below a file", f"{CONVERT} --output photo.png/x", ("is a file", "change the path")),
    Case(
        "existing released output",
        f"{TO_OFFICIAL} --output o.pth",
        ("existing one", "--overwrite"),
        write("o.pth", b"x"),
    ),
    Case("released output is a folder", f"{TO_OFFICIAL} --output data --overwrite", ("got a folder", "file name")),
    Case(
        "released output over its input",
        f"{TO_OFFICIAL} --output run/best/head.safetensors --overwrite",
        ("than the input", "choose another"),
    ),
    Case(
        "architecture with to-official", f"{TO_OFFICIAL} --preset tiny --output x", ("--to-official", "omit --preset")
    ),
    Case("run to released layout", "convert run --to-official --output x", ("got a run", "pass run/best")),
    Case(
        "missing folder to released layout",
        "convert none --to-official --output x",
        ("no such folder", "check the path"),
    ),
    Case(
        "backbone folder with other files",
        f"{CONVERT} --dino a.pth --output x --overwrite",
        ("--dino", "x-backbones/dino", "other files", "choose another"),
        write("x-backbones/dino/notes.txt", "x"),
    ),
]
