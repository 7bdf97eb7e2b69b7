"""Experiment files, options and results that `detris compare` refuses before the first arm is trained."""

from __future__ import annotations

import json

from tests.bad_inputs.case import Case, Prepare, steps, write

COMMON = "common: {preset: tiny, dataset: refshapes, data_root: data, num_workers: 0, epochs: 1, batch_size: 4}\n"
ARMS = "arms: {a: {}, b: {text_adapter: null}}\n"
COMPARE = "compare made.yaml --output_dir out"


def experiment(arms: str = ARMS, common: str = COMMON, rest: str = "reference: a\n") -> Prepare:
    """Return a function that writes an experiment."""
    return write("made.yaml", rest + common + arms)


def refused(name: str, expected: tuple[str, ...], prepare: Prepare | None = None, options: str = "") -> Case:
    """Return a case whose experiment is refused."""
    return Case(f"comparison: {name}", f"{COMPARE} {options}", expected, prepare or experiment())


def file(name: str, content: str, *expected: str) -> Case:
    """Return a case with an experiment file of this content."""
    return refused(name, ("made.yaml", *expected), write("made.yaml", content))


def result(**changes: object) -> Prepare:
    """Return a function that writes a result of arm a with seed 0."""
    return write("out/results/a-seed0.json", json.dumps({"arm": "a", "seed": 0, **changes}))


CASES = [
    # -- command line
    Case("comparison without a file", "compare --output_dir out", ("expected an experiment", "table2"), code=2),
    Case("comparison without an output", "compare table3", ("expected --output_dir", "add it"), code=2),
    Case("comparison with a blank output", "compare table3 --output_dir ' '", ("expected --output_dir",), code=2),
    Case("comparison that does not exist", "compare nothing --output_dir out", ("nothing: expected a YAML", "table3")),
    Case("comparison in a folder", "compare folder --output_dir out", ("folder: expected a YAML file, got a folder",)),
    Case("comparison with --seed", "compare table3 --output_dir out --seed 3", ("--seed", "set seeds"), code=2),
    Case("comparison with --resume", f"{COMPARE} --resume latest", ("--resume", "in any case"), code=2),
    Case("comparison with --overwrite", f"{COMPARE} --overwrite", ("--overwrite", "another --output_dir"), code=2),
    Case("comparison with a bad seed", f"{COMPARE} --seeds x", ("--seeds: expected an integer, got 'x'",), code=2),
    Case("comparison without figure rows", f"{COMPARE} --figure_rows 0", ("--figure_rows: expected 1 to",), code=2),
    refused("unknown arm", ("--only: expected some of a, b, got c",), options="--only c"),
    refused("unknown seed", ("--seeds: expected some of 0, got 7",), options="--seeds 7"),
    refused("unknown sample", ("--samples", "such as", "got 9999"), options="--samples 9999"),
    # -- files
    file("empty file", "", "got an empty file"),
    file("list", "- a\n- b\n", "got a list"),
    file("no YAML", "a: b: c\n", "expected YAML"),
    file("arm twice", "reference: a\narms:\n  a: {}\n  a: {}\n", "every key once, got 'a' again in line 4"),
    file("unknown key", f"reference: a\nepochs: 3\n{ARMS}", "got 'epochs'", "move options"),
    file("no arms", "reference: a\n", "arms", "got none"),
    file("empty arms", "reference: a\narms: {}\n", "arms", "add at least one arm"),
    file("list of arms", "reference: a\narms: [a, b]\n", "arms", "got a list"),
    file("no reference", ARMS, "reference: expected one of the arms a, b, got none"),
    file("reference is no arm", f"reference: c\n{ARMS}", "reference: expected one of the arms a, b, got 'c'"),
    file("reference is a number", f"reference: 3\n{ARMS}", "reference: expected one of the arms", "got 3"),
    file("arm name with a slash", "reference: a\narms: {a: {}, ../b: {}}\n", "letters, digits", "got '../b'"),
    file("arm name is a number", "reference: a\narms: {a: {}, 3: {}}\n", "got 3 (int)", "in quotes"),
    file("arm name is a date", "reference: a\narms: {a: {}, 2026-01-31: {}}\n", "got 2026-01-31 (date)", "in quotes"),
    file("arm name too long", f"reference: a\narms: {{a: {{}}, {'b' * 99}: {{}}}}\n", "at most 40 letters", "rename"),
    file("arm names differ in case", "reference: a\narms: {a: {}, A: {}}\n", "differ in more than case"),
    file("seeds are no list", f"reference: a\nseeds: 3\n{ARMS}", "seeds: expected a list of integers", "got 3"),
    file("no seeds", f"reference: a\nseeds: []\n{ARMS}", "seeds: expected a list of integers", "got []"),
    file("seed twice", f"reference: a\nseeds: [1, 1]\n{ARMS}", "seeds: expected different", "got 1 twice"),
    file("seed is a bool", f"reference: a\nseeds: [true]\n{ARMS}", "seeds: expected integers", "got True"),
    file("negative seed", f"reference: a\nseeds: [-1]\n{ARMS}", "seeds: expected integers from 0", "got -1"),
    file("seed is text", f"reference: a\nseeds: [x]\n{ARMS}", "seeds: expected integers", "got 'x'"),
    file("splits are text", f"reference: a\nsplits: val\n{ARMS}", "splits: expected a list", "got 'val'"),
    file("split is a number", f"reference: a\nsplits: [1]\n{ARMS}", "splits: expected names of splits, got 1"),
    # -- options
    file("unknown option", "reference: a\narms: {a: {lr: 3}}\n", "arms.a: expected names of options, got lr"),
    file("option of a wrong type", "reference: a\narms: {a: {epochs: x}}\n", "arms.a: epochs: expected int, got 'x'"),
    file("arm is a number", "reference: a\narms: {a: 3}\n", "arms.a: expected options", "got a int"),
    file("common is a list", f"reference: a\ncommon: [1]\n{ARMS}", "common: expected options", "got a list"),
    file("seed as an option", "reference: a\narms: {a: {seed: 3}}\n", "arms.a", "got seed", "set seeds"),
    file("output_dir as an option", f"reference: a\ncommon: {{output_dir: x}}\n{ARMS}", "common", "got output_dir"),
    file("push as an option", "reference: a\narms: {a: {push_to_hub: me/x}}\n", "arms.a", "got push_to_hub"),
    file("stream", f"reference: a\ncommon: {{streaming: true}}\n{ARMS}", "got streaming", "detris data convert"),
    refused(
        "unknown preset",
        ("arms.b: preset: expected one of", "got 'huge'"),
        experiment("arms: {a: {}, b: {preset: huge}}"),
    ),
    refused(
        "value out of range",
        ("arms.b: epochs: expected at least 1, got 0",),
        experiment("arms: {a: {}, b: {epochs: 0}}"),
    ),
    refused(
        "other dataset in an arm",
        ("arms.b: expected dataset of the reference arm a, 'refshapes', got 'folder'", "set dataset under common"),
        experiment("arms: {a: {}, b: {dataset: folder}}"),
    ),
    refused(
        "other split in an arm",
        ("arms.b: expected val_split of the reference arm a", "cannot be compared"),
        experiment("arms: {a: {}, b: {val_split: testA}}"),
    ),
    refused(
        "other metric in an arm",
        ("arms.b: expected selection_metric of the reference arm a, 'mIoU', got 'oIoU'",),
        experiment("arms: {a: {}, b: {selection_metric: oIoU}}"),
    ),
    refused(
        "adapter that does not fit",
        ("arms.b: vision_adapter", "nothing"),
        experiment("arms: {a: {}, b: {vision_adapter: {peft_type: LORA, target_modules: [nothing]}}}"),
    ),
    refused(
        "adapter of an unknown type",
        ("arms.b: vision_adapter", "NOTHING"),
        experiment("arms: {a: {}, b: {vision_adapter: {peft_type: NOTHING}}}"),
    ),
    refused(
        "last arm does not fit",
        ("arms.b", "extract_layers"),
        experiment("arms: {a: {}, b: {extract_layers: [1, 99]}}"),
    ),
    refused("batch too large", ("arms.b", "batch_size"), experiment("arms: {a: {}, b: {batch_size: 500}}")),
    # -- data
    refused("split that does not exist", ("nowhere",), experiment(rest="reference: a\nsplits: [val, nowhere]\n")),
    refused("dataset that does not exist", ("nothing", "missing"), options="--dataset nothing"),
    # -- output
    refused("output is a file", ("out: expected a folder, got a file",), steps(experiment(), write("out", "mine"))),
    refused(
        "output is a run",
        ("out: expected a new folder or that of a comparison, got that of a run",),
        steps(experiment(), write("out/.detris_peft", "run\n")),
    ),
    refused(
        "output has another report",
        ("out: expected a new folder", "another report.md", "choose another --output_dir"),
        steps(experiment(), write("out/report.md", "mine")),
    ),
    # -- results
    refused(
        "result is a list", ("a-seed0.json", "got list"), steps(experiment(), write("out/results/a-seed0.json", []))
    ),
    refused(
        "result is damaged",
        ("a-seed0.json", "expected JSON"),
        steps(experiment(), write("out/results/a-seed0.json", "{")),
    ),
    refused(
        "result without fields", ("a-seed0.json: expected settings as dict, got none",), steps(experiment(), result())
    ),
    refused("report without results", ("out: expected results", "--report_only"), options="--report_only"),
    refused(
        "report of a damaged result",
        ("a-seed0.json: expected settings",),
        steps(experiment(), result(settings=3)),
        options="--report_only",
    ),
]
