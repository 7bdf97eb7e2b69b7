"""Wrong options of `detris export`; models that cannot be exported are in tests/export/test_checks.py."""

from __future__ import annotations

from tests.bad_inputs.case import Case, write

EXPORT = "export --checkpoint run/best"

CASES = [
    Case("export without options", "export", ("--checkpoint", "--format", "--output", "add them"), code=2),
    Case(
        "export in an unknown format",
        f"{EXPORT} --format onx --output a.onnx",
        ("--format", "torch_export, onnx", "'onx'", "use onnx"),
        code=2,
    ),
    Case(
        "export to a file of another format",
        f"{EXPORT} --format torch_export --output model.onnx",
        ("--output model.onnx", "ends with .pt2", "change it"),
    ),
    Case(
        "export over an existing file",
        f"{EXPORT} --format torch_export --output model.pt2",
        ("--output model.pt2", "existing one", "--overwrite"),
        write("model.pt2", "mine"),
    ),
    Case("export to a folder", f"{EXPORT} --format onnx --output data", ("--output data", "a folder", "file name")),
    Case(
        "export over the checkpoint",
        f"{EXPORT} --format torch_export --output run/best/config.json --overwrite",
        ("run/best/config.json", "ends with .pt2"),
    ),
    Case(
        "export of images that do not fit the patches",
        f"{EXPORT} --format torch_export --output model.pt2 --image_size 50",
        ("--image_size", "multiple of the patch size", "got 50", "use 48"),
    ),
    Case(
        "export of images without pixels",
        f"{EXPORT} --format torch_export --output model.pt2 --image_size 0",
        ("--image_size", "got 0", "use 8"),
    ),
    Case(
        "export of a missing checkpoint",
        "export --checkpoint ./none --format torch_export --output model.pt2",
        ("./none", "no such folder", "check the path"),
    ),
    Case(
        "export of a run",
        "export --checkpoint run --format torch_export --output model.pt2",
        ("--checkpoint run", "got a run", "pass run/best"),
    ),
]
