"""Writing the files of exported programs, and loading them for the check."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import torch
from torch.export import ExportedProgram

from ..errors import one_line
from .program import Run, quiet

METADATA = "metadata.json"  # in a .pt2 file
OPSET = 18  # of ONNX: the one that PyTorch's exporter writes without a conversion
MAX_SINGLE_FILE = 2_000_000_000  # bytes of weights in an .onnx file, whose size is limited to 2 GiB


def data_file(file: Path) -> Path:
    """Return the file of the weights of an ONNX model that are too large for one file."""
    return file.with_name(f"{file.name}.data")


def write_torch_export(program: ExportedProgram, file: Path, metadata: dict[str, Any]) -> None:
    """Write a `.pt2` file, whose metadata are JSON in the extra file `metadata.json`.

    Raises:
        OSError: the file cannot be written.
    """
    buffer = io.BytesIO()  # because on a full disk, PyTorch's own writer aborts the process
    with quiet():
        torch.export.save(program, buffer, extra_files={METADATA: json.dumps(metadata)})
    file.write_bytes(buffer.getbuffer())


def load_torch_export(file: Path) -> Run:
    """Return the program of a `.pt2` file."""
    with quiet():
        return torch.export.load(file).module()


def write_onnx(program: ExportedProgram, file: Path, metadata: dict[str, Any]) -> None:
    """Write an `.onnx` file, with one entry of `metadata_props` per field, as JSON.

    Weights of 2 GB and more are written to `data_file(file)`.

    Raises:
        ValueError: PyTorch's exporter cannot convert the program.
        OSError: the file cannot be written.
    """
    from torch.onnx import OnnxExporterError

    values = (*program.state_dict.values(), *program.constants.values())
    size = sum(value.nbytes for value in values if isinstance(value, torch.Tensor))
    with quiet():
        try:
            converted: Any = torch.onnx.export(
                program,
                dynamo=True,
                verbose=False,
                opset_version=OPSET,
                input_names=["pixel_values", "input_ids"],
                output_names=["logits"],
                dynamic_shapes={"pixel_values": {0: "batch"}, "input_ids": {0: "batch"}},
            )
        except OnnxExporterError as error:
            raise ValueError(
                f"format onnx: expected a model that PyTorch converts to ONNX, got an error ({_reason(error)}); "
                "export it as torch_export."
            ) from error
        for node in converted.model.graph:  # stack traces, with the paths of this machine
            node.metadata_props.clear()
        converted.model.metadata_props.update({name: json.dumps(value) for name, value in metadata.items()})
        converted.save(file, external_data=size >= MAX_SINGLE_FILE)


def load_onnx(file: Path) -> Run:
    """Return a function that runs an `.onnx` file in onnxruntime, on the CPU."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])

    def run(pixel_values: torch.Tensor, input_ids: torch.Tensor) -> torch.Tensor:
        inputs = {"pixel_values": pixel_values.numpy(), "input_ids": input_ids.numpy()}
        return torch.from_numpy(session.run(["logits"], inputs)[0])

    return run


def _reason(error: BaseException) -> str:
    """Return the first line of the innermost cause of an error, without terminal colors."""
    while error.__cause__ is not None:
        error = error.__cause__
    return one_line(error, first_line=True).replace("\x1b", "")[:300]
