"""JSON and YAML files that are damaged, hostile or of another kind."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from tests.bad_inputs.case import Case, Prepare, edit_json, steps, write

TRAIN = "train --config options.yaml --output_dir out"
CONVERT = "convert weights.pth --config config.json --output out"
COCO = "data check --dataset coco.json"
REFER = "data convert --dataset refshapes --data_root data --output out"
TABLE = "data check --dataset table --columns columns.yaml"
PREDICT = "predict --checkpoint run/best --image photo.png --text square --output out.png"
INSTANCES = "data/refshapes/instances.json"
DEEP = "[" * 100_000
ALIASES = "\n".join(["a0: &a0 [1, 1]", *(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 14))])


def options(name: str, content: str | bytes, *expected: str) -> Case:
    """Return a case with a YAML file of training options."""
    return Case(f"options: {name}", TRAIN, ("options.yaml", *expected), write("options.yaml", content))


def config(name: str, content: str | bytes | Any, *expected: str) -> Case:
    """Return a case with the config of a released checkpoint."""
    return Case(f"config: {name}", CONVERT, ("config.json", *expected), write("config.json", content))


def changed_config(name: str, changes: dict[str, Any], *expected: str) -> Case:
    """Return a case with an otherwise valid config."""

    def prepare(root: Path) -> None:
        content = json.loads((root / "run/best/config.json").read_text(encoding="utf-8"))
        for key, value in changes.items():
            *parents, leaf = key.split(".")
            node = content
            for parent in parents:
                node = node[parent]
            node[leaf] = value
        (root / "config.json").write_text(json.dumps(content), encoding="utf-8")

    return Case(f"config: {name}", CONVERT, expected, prepare)


def coco(name: str, content: str | bytes | Any, *expected: str) -> Case:
    """Return a case with COCO annotations."""
    return Case(f"coco: {name}", COCO, ("coco.json", *expected), write("coco.json", content))


def instances(name: str, content: str | bytes | Any, *expected: str) -> Case:
    """Return a case with the annotations of REFER."""
    return Case(f"instances: {name}", REFER, ("instances.json", *expected), write(INSTANCES, content))


def table(root: Path) -> None:
    """Write a parquet dataset."""
    (root / "table/data").mkdir(parents=True)
    rows = pa.table({"img": [(root / "photo.png").read_bytes()], "caption": ["the square"]})
    pq.write_table(rows, root / "table/data/train-00000-of-00001.parquet")


def columns(name: str, content: str | bytes, *expected: str) -> Case:
    """Return a case with a column mapping."""
    prepare: Prepare = steps(table, write("columns.yaml", content))
    return Case(f"columns: {name}", TABLE, ("columns.yaml", *expected), prepare)


CASES = [
    # -- options of a training
    Case("options: missing", TRAIN, ("--config", "options.yaml: no such file")),
    Case("options: a folder", TRAIN, ("options.yaml", "got a folder"), lambda root: (root / "options.yaml").mkdir()),
    options("UTF-16", "preset: tiny".encode("utf-16"), "another encoding", "save it as UTF-8"),
    options("Latin-1", "name: caf\xe9".encode("latin-1"), "another encoding", "save it as UTF-8"),
    options("a tab", "preset:\ttiny\n\tseed: 1", "expected YAML", "correct that line"),
    options("not closed", "milestones: [1, 2", "expected YAML", "correct that line"),
    options("a key twice", "preset: tiny\nseed: 1\nseed: 2", "'seed' again in line 3", "remove one"),
    options("aliases", ALIASES, "after expanding aliases", "simplify it"),
    options("an alias of itself", "a: &a [*a]", "after expanding aliases", "simplify it"),
    options("nested lists", DEEP, "nested too deeply", "simplify it"),
    options("a Python tag", "!!python/object/apply:os.system [mkdir ran]", "constructor", "correct that line"),
    options("a long number", f"seed: {'1:' * 2000}1", "numbers and dates of at most", "quote text"),
    options("an impossible date", "seed: 2024-13-45", "its type does not allow", "quote text"),
    options("a boolean with a wrong tag", "seed: !!bool maybe", "its type does not allow", "quote text"),
    options("a list", "- preset: tiny", "expected options such as `batch_size: 32`", "got a list"),
    options("a text", "tiny", "expected options such as `batch_size: 32`", "got a str"),
    options("a number as key", "1: tiny", "expected names of options, got 1", "see --help"),
    options("null as key", "null: tiny", "expected names of options, got None", "see --help"),
    options("an unknown option", "presett: tiny", "got presett", "use preset"),
    options("a binary file", b"\x89PNG\r\n\x1a\n\x00\x00", "another encoding", "save it as UTF-8"),
    options("a null byte", "preset: tiny\x00", "special characters are not allowed", "correct that line"),
    # -- config of a released checkpoint
    Case("config: missing", CONVERT, ("config.json", "found no such file", "check the path")),
    config("empty", b"", "JSON", "download it again"),
    config("not JSON", "{'a': 1}", "expected JSON", "download it again"),
    config("truncated", '{"model_type": "detris",', "expected JSON", "download it again"),
    config("UTF-16", "{}".encode("utf-16"), "another encoding", "save it as UTF-8"),
    config("nested lists", DEEP, "nested too deeply", "download it again"),
    config("nested objects", '{"a":' * 500 + "1" + "}" * 500, "nested too deeply", "download it again"),
    config("a key twice", '{"model_type": "detris", "model_type": "bert"}', "'model_type' twice", "download it again"),
    config("a long number", '{"a": ' + "1" * 5000 + "}", "an integer of more than", "download it again"),
    config("a list", [1], "expected the config of a 'detris' model", "config.json of a DetrisConfig"),
    config("of another model", {"model_type": "bert"}, "'bert'", "config.json of a DetrisConfig"),
    changed_config(
        "many layers",
        {"vision_config.num_hidden_layers": 10_000_000},
        "num_hidden_layers from 1 to",
        "10000000; correct",
    ),
    changed_config(
        "many text layers",
        {"text_config.num_hidden_layers": 10**9},
        "num_hidden_layers from 1 to",
        "1000000000; correct",
    ),
    changed_config("layers as text", {"vision_config.num_hidden_layers": "12"}, "num_hidden_layers", "expected int"),
    changed_config(
        "a negative width", {"text_config.hidden_size": -64}, "hidden_size from 1 to", "got -64; correct it"
    ),
    changed_config("a huge vocabulary", {"text_config.vocab_size": 10**12}, "vocab_size from 1 to", "correct it"),
    changed_config("a width that is a list", {"hidden_dim": [64]}, "hidden_dim=[64]: expected int", "correct it"),
    changed_config("an unknown field", {"hiden_dim": 64}, "hiden_dim: expected a field", "use hidden_dim"),
    changed_config("an unknown backbone", {"vision_config.model_type": "resnet-9000"}, "vision_config", "resnet-9000"),
    changed_config(
        "an unknown adapter field",
        {"vision_adapter.dimm": 3},
        "vision_adapter.dimm: expected a field",
        "correct or remove it",
    ),
    # -- annotations
    coco("not JSON", "images", "expected JSON", "download it again"),
    coco("truncated", '{"images": [', "expected JSON", "download it again"),
    coco("UTF-16", "{}".encode("utf-16"), "another encoding", "save it as UTF-8"),
    coco("nested lists", DEEP, "nested too deeply", "download it again"),
    coco("a key twice", '{"images": [], "images": []}', "'images' twice", "download it again"),
    coco("a list", [1, 2], "the lists 'images' and 'annotations'", "pass another file"),
    coco("without annotations", {"images": []}, "got the fields images", "pass another file"),
    coco("images are numbers", {"images": [1], "annotations": []}, "of objects", "pass another file"),
    instances("not JSON", "{'a': 1}", "expected JSON", "download it again"),
    instances("truncated", '{"images": [', "expected JSON", "download it again"),
    instances("nested lists", DEEP, "nested too deeply", "download it again"),
    instances("a key twice", '{"images": [], "images": []}', "'images' twice", "download it again"),
    instances("a list", [1, 2], "expected 'images' and 'annotations'", "download it again"),
    instances("without annotations", {"images": []}, "expected 'images' and 'annotations'", "download it again"),
    # -- column mappings
    columns("UTF-16", "image: img".encode("utf-16"), "another encoding", "save it as UTF-8"),
    columns("not closed", "image: [img", "expected YAML", "correct that line"),
    columns("a key twice", "image: img\nimage: b", "'image' again in line 2", "remove one"),
    columns("aliases", ALIASES, "after expanding aliases", "simplify it"),
    columns("a Python tag", "!!python/name:os.system", "constructor", "correct that line"),
    columns("a list", "- image", "expected the fields image", "write a mapping"),
    columns("an unknown column", "photo: img", "got photo", "remove or rename"),
    # -- files of a checkpoint
    Case(
        "checkpoint config: nested lists",
        PREDICT,
        ("config.json", "download it again"),
        write("run/best/config.json", DEEP),
    ),
    Case(
        "checkpoint config: another model",
        PREDICT,
        ("config.json", "expected model_type 'detris', got 'bert'", "pass a DETRIS checkpoint"),
        edit_json("run/best/config.json", model_type="bert"),
    ),
]
