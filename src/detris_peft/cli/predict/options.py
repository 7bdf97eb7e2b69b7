"""Options of `detris predict`, without those of the checkpoint."""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from ...outputs import check_output_file
from ...precision import describe_precision, resolve_precision
from ...text_cleaning import clean_sentence
from ..parser import CommandParser

IMAGE_OUTPUTS = (".png", ".jpg", ".jpeg")
JSON_LINES = ".jsonl"
SAVED = ("overlay", "mask", "probability")


@dataclass
class PredictionArguments:
    """Options of `detris predict`.

    Raises:
        ValueError: a value is not accepted; the message names the option.
    """

    image: list[str] = field(
        default_factory=list,
        metadata={
            "repeat": True,
            "help": "image file, folder, glob in quotes, http(s) URL, or - for one path per line on stdin; repeatable",
        },
    )
    text: list[str] = field(
        default_factory=list,
        metadata={"repeat": True, "help": "referring expression, in quotes; repeatable: every text on every image"},
    )
    pairs: str | None = field(
        default=None,
        metadata={
            "help": "instead of --image and --text: CSV or JSON Lines file with the columns image and text, or - for "
            "JSON Lines on stdin"
        },
    )
    image_root: str | None = field(
        default=None,
        metadata={"help": "folder that relative paths in --pairs start from; default: the folder of the file"},
    )
    output: str | None = field(
        default=None,
        metadata={
            "help": "one image and text: PNG or JPEG file for the overlay (default: prediction.png), next to which "
            "the mask is written to *_mask.png; several: folder (default: predictions) or .jsonl file"
        },
    )
    save: list[str] = field(
        default_factory=list,
        metadata={"help": "images to write for each row, next to predictions.jsonl: overlay, mask, probability"},
    )
    overwrite: bool = field(default=False, metadata={"help": "replace existing files"})
    resume: bool = field(
        default=False,
        metadata={"help": "continue an interrupted job; start one if there is none"},
    )
    threshold: float | None = field(
        default=None, metadata={"help": "probability above which a pixel is foreground; default: the checkpoint's"}
    )
    batch_size: int = field(default=8, metadata={"help": "rows per forward pass"})
    num_workers: int = field(default=1, metadata={"help": "threads per process that load images, at least 1"})
    device: str | None = field(
        default=None, metadata={"help": "cpu, cuda, ...; default: a GPU if available, else cpu"}
    )
    precision: Literal["auto", "fp32", "bf16", "fp16"] = field(
        default="auto",
        metadata={"help": "precision of the weights; auto: bf16 on a CPU with bf16 instructions, else fp32"},
    )
    quantize: Literal["int8"] | None = field(
        default=None, metadata={"help": "int8: frozen linear layers of the encoders in int8, to save memory"}
    )
    compile: bool = field(
        default=False, metadata={"help": "compile the model for several rows; the first batch then takes longer"}
    )

    def __post_init__(self) -> None:
        if self.threshold is not None and not 0 <= self.threshold < 1:
            raise ValueError(
                f"--threshold: expected a probability of at least 0 and below 1, got {self.threshold}; change it."
            )
        for name, high in (("batch_size", 100_000), ("num_workers", 1000)):
            if not 1 <= getattr(self, name) <= high:
                raise ValueError(f"--{name}: expected 1 to {high}, got {getattr(self, name)}; change it.")
        for text in self.text:
            try:
                text.encode()
            except UnicodeEncodeError:
                raise ValueError(
                    f"--text: expected text in UTF-8, got {text!r}; set the terminal's encoding to UTF-8."
                ) from None
            clean_sentence(text, "--text")
        if "" in self.image:
            raise ValueError("--image: expected an image file, got an empty name; pass one.")
        if self.image.count("-") > 1:
            raise ValueError("--image -: expected it once, got it twice; remove one.")
        if self.pairs == "":
            raise ValueError("--pairs: expected a CSV or JSON Lines file, got an empty name; pass one.")
        if self.image_root is not None and not Path(self.image_root).is_dir():
            raise ValueError(
                f"--image_root {self.image_root}: expected a folder, found none with this name; check the path."
            )
        if unknown := [name for name in self.save if name not in SAVED]:
            raise ValueError(f"--save: expected {', '.join(SAVED)}, got {unknown[0]!r}; choose among them.")
        if self.resume and self.overwrite:
            raise ValueError("--resume: expected it without --overwrite, got both; remove one of them.")
        self._set_output()

    def precision_on(self, device: Any) -> tuple[str, str]:
        """Return the precision on a device, and one line that describes it.

        Raises:
            ValueError: the device does not support it.
        """
        precision = resolve_precision(self.precision, device, training=False, option="--precision")
        return precision, describe_precision(precision, device, auto=self.precision == "auto")

    def check_device(self, device: Any) -> None:
        """Raise a ValueError if the device does not support --quantize or --compile."""
        from ...prediction.compilation import check_compiler
        from ...prediction.quantization import check_quantization

        if self.quantize:
            check_quantization(device, "--quantize")
        if self.compile:
            check_compiler(device, "--compile")

    def optimize(self, predictor: Any) -> None:
        """Quantize and compile the model of a `DetrisPredictor`, if that was requested.

        Raises:
            ValueError: the model cannot be quantized or compiled.
        """
        from ...prediction.quantization import quantize_model

        if self.quantize:
            quantize_model(predictor.model, self.quantize)
        if self.compile:
            predictor.compile()

    @property
    def is_single(self) -> bool:
        """Whether one image and one sentence give an overlay and a mask instead of JSON Lines."""
        return Path(str(self.output)).suffix.lower() in IMAGE_OUTPUTS and not str(self.output).endswith(("/", os.sep))

    @property
    def mask_file(self) -> Path:
        """The file of the mask of a single prediction, next to the overlay."""
        output = Path(str(self.output))
        return output.with_name(f"{output.stem}_mask.png")

    def _set_output(self) -> None:
        """Set the default of `output`, and check that it fits the number of predictions."""
        one = self.pairs is None and len(self.text) == 1 and len(self.image) == 1 and not _is_list(self.image[0])
        if self.output is None:
            self.output = "prediction.png" if one else "predictions"
        if not self.output:
            raise ValueError("--output: expected a file or a folder, got an empty name; pass one.")
        suffix = Path(self.output).suffix.lower()
        if self.is_single:
            if not one:
                raise ValueError(
                    f"--output {self.output}: expected a folder or a .jsonl file for several predictions, got the "
                    "name of an image; change it."
                )
            for name in ("save", "resume", "compile"):
                if getattr(self, name):
                    raise ValueError(
                        f"--{name}: expected a folder as --output, got the image {self.output}; pass --output "
                        f"{Path(self.output).stem}/."
                    )
            for file in (self.output, self.mask_file):
                check_output_file(file, self.overwrite, inputs=(self.image[0],))
        elif suffix not in ("", JSON_LINES) and not _is_folder(self.output):
            raise ValueError(
                f"--output {self.output}: expected a name that ends with .png, .jpg or .jsonl, or a folder, got "
                f"another one; change it, or write {self.output}/ for a folder."
            )
        elif suffix == JSON_LINES and self.save and not _is_folder(self.output):
            raise ValueError(f"--save: expected a folder as --output, got the file {self.output}; pass a folder.")


def parse_arguments(parser: CommandParser, argv: Sequence[str] | None) -> tuple[Any, ...]:
    """Parse the command line into the dataclasses of the parser, of which one is `PredictionArguments`.

    Missing options are usage errors, which come before errors in the values of options.
    """
    words = parser.parse_args(argv)
    if words.pairs is None:
        missing = [f"--{name}" for name in ("image", "text") if not getattr(words, name)]
        if missing:
            it = "it" if len(missing) == 1 else "them"
            parser.error(f"expected {' and '.join(missing)}, got none; add {it}, or pass --pairs FILE")
    elif words.image or words.text:
        parser.error("expected --pairs, or --image and --text, got both; remove one of them")
    return parser.parse_args_into_dataclasses(argv)


def _is_folder(output: str) -> bool:
    return output.endswith(("/", os.sep)) or os.path.isdir(output)


def _is_list(image: str) -> bool:
    """Return whether a value of --image can name several images: a folder, a glob or the standard input."""
    if image == "-" or os.path.isdir(image):
        return True
    is_url = re.match(r"[\w+.-]+://", image) is not None
    return glob.has_magic(image) and not is_url and not os.path.lexists(image)
