"""Options of `detris demo` that are refused before a model is loaded."""

from __future__ import annotations

import socket
from pathlib import Path

from tests.bad_inputs.case import Case, steps, write

_SERVER = socket.create_server(("127.0.0.1", 0))  # another program
DEMO = "demo --checkpoint run/best"
OTHER = "choose another folder"


def folder(root: Path) -> None:
    (root / "empty").mkdir()


CASES = [
    Case(
        "busy port",
        f"{DEMO} --port {_SERVER.getsockname()[1]}",
        (f"--port {_SERVER.getsockname()[1]}: expected a free port", "stop that program", "--port 0"),
    ),
    Case("port above 65535", f"{DEMO} --port 70000", ("--port: expected 0 to 65535", "got 70000")),
    Case("port is a word", f"{DEMO} --port http", ("--port", "an integer", "'http'"), code=2),
    Case("address of another machine", f"{DEMO} --host 192.0.2.1", ("--host 192.0.2.1", "use 127.0.0.1")),
    Case("host is no address", f"{DEMO} --host http://localhost", ("--host http://localhost", "use 127.0.0.1")),
    Case("empty host", f"{DEMO} --host ' '", ("--host", "got an empty one")),
    Case("relative root path", f"{DEMO} --root_path demo", ("--root_path", "starts with /")),
    Case("unknown precision of demo", f"{DEMO} --precision int8", ("auto, fp32, bf16, fp16", "'int8'"), code=2),
    Case("missing device of demo", f"{DEMO} --port 0 --device cuda:99", ("--device cuda:99", "choose another one")),
    Case("no queue", f"{DEMO} --max_queue 0", ("--max_queue: expected 1 to", "got 0")),
    Case("too many megapixels", f"{DEMO} --max_megapixels 500", ("--max_megapixels", "1 to 178", "got 500")),
    Case("no sentences allowed", f"{DEMO} --max_sentences -1", ("--max_sentences", "got -1")),
    Case("missing second checkpoint", f"{DEMO} --compare ./none", ("--compare ./none", "found no such folder")),
    Case("run as second checkpoint", f"{DEMO} --compare run", ("--compare run", "pass run/best")),
    Case("empty second checkpoint", f"{DEMO} --compare ''", ("--compare", "empty name")),
    Case("missing examples", f"{DEMO} --port 0 --examples none", ("--examples none", "check the path")),
    Case("examples without images", f"{DEMO} --port 0 --examples empty", ("found no image in it",), folder),
    Case(
        "damaged metadata of examples",
        f"{DEMO} --port 0 --examples empty",
        ("metadata.jsonl:1", "expected JSON"),
        steps(folder, write("empty/metadata.jsonl", "x")),
    ),
    Case("Space over other files", f"{DEMO} --export_space data --overwrite", ("with other files", OTHER)),
    Case("Space over a checkpoint", f"{DEMO} --export_space run/best --overwrite", ("of a space", "of a checkpoint")),
    Case("Space is a file", f"{DEMO} --export_space photo.png", ("got a file", "choose another name")),
    Case(
        "Space with missing examples",
        f"{DEMO} --export_space out --examples none",
        ("--examples none", "check the path"),
    ),
    Case(
        "Space of a damaged checkpoint",
        f"{DEMO} --export_space out",
        ("head.safetensors",),
        lambda root: (root / "run/best/head.safetensors").unlink(),
    ),
]
