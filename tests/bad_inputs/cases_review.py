"""Datasets and options that `detris data review` refuses before the page is served."""

from __future__ import annotations

import os
import socket

from tests.bad_inputs.case import Case, Prepare, steps, write
from tests.bad_inputs.dataset_files import LINES, coco, lines

_SERVER = socket.create_server(("127.0.0.1", 0))  # another program
REVIEW = "data review --dataset folder --port 0"
FORMAT = ("expected a folder with metadata.jsonl", "`detris data describe`", "`detris data split`")


def arrays(text: str) -> Prepare:
    """Return a function that writes the training lines as a metadata.json instead."""

    def prepare(root):
        os.remove(root / LINES)
        write("folder/train/metadata.json", text)(root)

    return prepare


def _case(name: str, command: str, *expected: str, prepare: Prepare | None = None, code: int = 1) -> Case:
    return Case(f"review: {name}", command, expected, prepare, code)


CASES = [
    _case("COCO file", "data review --dataset coco.json", *FORMAT, prepare=coco()),
    _case("REFER dataset", "data review --dataset refshapes", "--dataset refshapes", *FORMAT),
    _case(
        "table",
        "data review --dataset set",
        "set/metadata.csv: expected metadata.jsonl, got CSV",
        "write one JSON object per line",
        prepare=write("set/metadata.csv", "file_name,text\na.png,x\n"),
    ),
    _case("missing folder", "data review --dataset ./none", "none", "--dataset"),
    _case("empty folder", "data review --dataset empty", "empty", prepare=lambda root: (root / "empty").mkdir()),
    _case("unknown split", f"{REVIEW} --splits test", "--splits test: expected splits", "(train, val)", "fix it"),
    _case("empty split", f"{REVIEW} --splits ''", "--splits", "omit --splits for all"),
    _case("port above 65535", "data review --dataset folder --port 70000", "--port: expected 0 to 65535", "70000"),
    _case("port is a word", "data review --dataset folder --port http", "--port", "'http'", code=2),
    _case("empty host", f"{REVIEW} --host ' '", "--host", "use 127.0.0.1"),
    _case("address of another machine", f"{REVIEW} --host 192.0.2.1", "--host 192.0.2.1", "use 127.0.0.1"),
    _case(
        "busy port",
        f"data review --dataset folder --port {_SERVER.getsockname()[1]}",
        "expected a free port",
        "--port 0",
    ),
    _case(
        "file in another encoding", REVIEW, "expected UTF-8 text", "save it as UTF-8", prepare=write(LINES, b"\xff")
    ),
    _case("array with an error", REVIEW, "metadata.json", "expected JSON", prepare=arrays('[{"a": 1},,{}]')),
    _case(
        "option of another format",
        f"{REVIEW} --leak keep --dataset_config x",
        "--dataset_config",
        "omit the option",
    ),
    _case(
        "flag is a word",
        "data convert --dataset folder --output out",
        "metadata.jsonl line 1: 'bad_mask'",
        "expected true or false, got 'yes'",
        prepare=lines({"file_name": "0.png", "mask": "0_mask.png", "sentence": "x", "bad_mask": "yes"}),
    ),
    _case(
        "only flagged lines are no valid rows",
        "data convert --dataset folder --output out --splits train",
        "expected at least one",
        prepare=steps(lines({"file_name": "0.png", "mask": "0_mask.png", "sentence": "x", "bad_mask": True})),
    ),
]
