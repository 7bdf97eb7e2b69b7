"""Export of a model to a file: trace it, write the file, and compare the file with the model."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

from ..atomic import atomic_write_file, sync_tree
from ..errors import check_path
from ..modeling import DetrisForReferringSegmentation
from ..outputs import check_output_file
from ..processing_detris import DetrisProcessor
from . import formats
from .checks import check_format, check_image_size, check_model
from .program import largest_difference, trace

# Largest accepted difference of the logits.
TOLERANCES = {"torch_export": 1e-5, "onnx": 1e-4}


@dataclass(frozen=True)
class ExportResult:
    """What `export_model` wrote.

    Attributes:
        files: the file, and the file of the weights if they are separate.
        difference: largest absolute difference of the logits from those of PyTorch, relative to the largest absolute
            logit where that is above 1.
        metadata: what is stored with the program.
        opset: version of the ONNX operators; None for other formats.
    """

    files: tuple[Path, ...]
    difference: float
    metadata: dict[str, Any]
    opset: int | None = None


def export_model(
    model: DetrisForReferringSegmentation,
    processor: DetrisProcessor,
    file: str | os.PathLike,
    format: Literal["torch_export", "onnx"] = "onnx",
    image_size: int | None = None,
    overwrite: bool = False,
) -> ExportResult:
    """Write a program that maps `pixel_values` (B, 3, s, s) and `input_ids` (B, L) to `logits` (B, 1, 4h, 4w).

    B is any batch size; s and L are fixed. The position table is interpolated once. The program computes what the
    model computes in eval mode, with the active adapter. The model itself does not change. The file is compared with
    the model under a temporary name, and appears only if both agree.

    Args:
        model: the model, float32 on the CPU, with at most one adapter per encoder.
        processor: its processor. With `keep_aspect_ratio`, the exported program still takes square images.
        file: file to write, `*.pt2` for `"torch_export"` and `*.onnx` for `"onnx"`. ONNX weights of 2 GB and more are
            written to `FILE.data`.
        format: `"torch_export"` (loaded by `torch.export.load`) or `"onnx"`.
        image_size: s, side of the images in pixels, a multiple of the patch size; default: the processor's.
        overwrite: replace an existing file.

    Raises:
        ValueError: an argument is not accepted, an encoder has several adapters, the model cannot be exported, or the
            file computes other logits than the model.
        TypeError: an argument has another type.
        ImportError: a package for ONNX is not installed.
        OSError: the file cannot be written.
    """
    check_path("file", file)
    check_format(format, file)
    check_model(model, processor)
    image_size = processor.image_size if image_size is None else image_size
    check_image_size(model, image_size)
    file = Path(file)
    data = formats.data_file(file) if format == "onnx" else None
    for path in filter(None, (file, data)):
        check_output_file(path, overwrite, option="file")
    metadata = _metadata(processor, image_size)
    program, sample = trace(model, processor, image_size)
    write, load = (
        (formats.write_onnx, formats.load_onnx)
        if data is not None
        else (formats.write_torch_export, formats.load_torch_export)
    )
    with _atomic_files(file, data) as part:
        write(program, part, metadata)
        difference = largest_difference(load(part), sample)
        if difference > TOLERANCES[format]:
            raise ValueError(
                f"{file}: expected the logits of the model within {TOLERANCES[format]:g}, got a difference of "
                f"{difference:.1e}, so nothing was written; export it in the other format, or report this as a bug."
            )
    files = (file, data) if data is not None and data.exists() else (file,)
    return ExportResult(files, difference, metadata, None if data is None else formats.OPSET)


def _metadata(processor: DetrisProcessor, image_size: int) -> dict[str, Any]:
    """Return what the pre- and post-processing of a program needs."""
    return {
        "image_size": image_size,
        "image_mean": list(processor.image_mean),
        "image_std": list(processor.image_std),
        "mask_threshold": processor.mask_threshold,
        "max_text_length": processor.max_text_length,
        "pad_token_id": processor.pad_token_id,
        "detris_peft_version": version("detris-peft"),
    }


@contextmanager
def _atomic_files(file: Path, data: Path | None) -> Iterator[Path]:
    """Yield a temporary path that replaces `file` on success, together with the data file next to it.

    `file` is renamed last. If the process is killed before, there is no `file`, rather than one next to the data of
    another model.

    Args:
        file: the file.
        data: the data file that belongs to it, if one is written; an older one is removed. None: there is never one.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    moved = False
    try:
        with atomic_write_file(file) as part:
            yield part
            if data is None:
                return
            new = part.with_name(data.name)
            if new.exists() or data.exists():
                sync_tree(part.parent)
                file.unlink(missing_ok=True)
                data.unlink(missing_ok=True)
            if new.exists():
                new.replace(data)
                moved = True
    except BaseException:
        if data is not None and moved:
            data.unlink(missing_ok=True)
        raise
