"""Serve a web page that segments images by sentence, or write it as a Space for the Hugging Face Hub."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from ..demo.limits import DemoLimits
from ..demo.ports import check_address
from ..outputs import check_output_folder
from .checkpoint_options import CheckpointArguments
from .parser import CommandParser


@dataclass
class DemoArguments:
    """Options of `detris demo`.

    Raises:
        ValueError, FileNotFoundError: a value is not accepted; the message names the option.
    """

    compare: str | None = field(
        default=None, metadata={"help": "folder or Hub id of a second model, to compare with --checkpoint"}
    )
    examples: str | None = field(
        default=None,
        metadata={"help": "folder of example images, with sentences from its metadata.jsonl if there is one"},
    )
    host: str = field(
        default="127.0.0.1", metadata={"help": "address to listen on; the default is reachable from this machine only"}
    )
    port: int = field(default=7860, metadata={"help": "port to listen on; 0: any free one"})
    root_path: str = field(
        default="", metadata={"help": "URL path under which a reverse proxy publishes the page, such as /demo"}
    )
    device: str | None = field(
        default=None, metadata={"help": "cpu, cuda, ...; default: a GPU if available, else cpu"}
    )
    precision: Literal["auto", "fp32", "bf16", "fp16"] = field(
        default="auto",
        metadata={"help": "precision of the weights; auto: bf16 on a CPU with bf16 instructions, else fp32"},
    )
    export_space: str | None = field(
        default=None, metadata={"help": "write the page to this folder as a Hugging Face Space, instead of serving it"}
    )
    overwrite: bool = field(default=False, metadata={"help": "replace an existing folder of --export_space"})

    def __post_init__(self) -> None:
        check_address(self.host, self.port)
        if self.root_path and not self.root_path.startswith("/"):
            raise ValueError(f"--root_path: expected a path that starts with /, got {self.root_path}; change it.")
        if self.export_space is not None:
            check_output_folder(self.export_space, self.overwrite, option="--export_space", kind="space")
        if self.compare is not None:
            try:
                CheckpointArguments(self.compare)
            except (OSError, ValueError) as error:
                raise type(error)(str(error).replace("--checkpoint", "--compare")) from None


def create_parser(prog: str | None = None) -> CommandParser:
    """Return the parser of the command's options."""
    return CommandParser((CheckpointArguments, DemoArguments, DemoLimits), prog=prog, description=__doc__)


def main(argv: Sequence[str] | None = None, prog: str | None = None) -> None:
    """Run `detris demo` with these arguments; default: those of the command line."""
    parser = create_parser(prog)
    checkpoint, arguments, limits = parser.parse_args_into_dataclasses(argv)

    from ..demo.gradio_version import gradio_version
    from ..demo.ports import free_port
    from ..demo.sources import CheckpointSource, read_examples, with_distinct_titles

    gradio_version()
    sources = [CheckpointSource(checkpoint.checkpoint, checkpoint.revision, checkpoint.subfolder)]
    if arguments.compare is not None:
        sources = with_distinct_titles([*sources, CheckpointSource(arguments.compare)])
    if arguments.export_space is not None:
        from ..demo.space import write_space

        write_space(arguments.export_space, sources, arguments.examples, limits, arguments.overwrite)
        print(f"wrote {arguments.export_space}; its README.md says how to publish it")
        return
    free_port(arguments.host, arguments.port)  # before PyTorch is imported, which takes seconds
    if arguments.examples is not None:
        read_examples(arguments.examples)
    from ..demo.environment import gradio_environment

    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # also removes temporary files
    with gradio_environment():
        _serve(sources, arguments, limits)


def _serve(sources: Sequence[Any], arguments: DemoArguments, limits: DemoLimits) -> None:
    from ..demo.ports import is_loopback
    from ..demo.server import load_page, serve
    from ..precision import describe_precision, precision_dtype, resolve_precision
    from ..prediction import usable_device

    device = usable_device(arguments.device, "--device")
    precision = resolve_precision(arguments.precision, device, training=False, option="--precision")

    def load() -> Any:
        return load_page(sources, arguments.examples, limits, str(device), precision_dtype(precision))

    def ready(address: str) -> None:
        print(
            f"Serving {' and '.join(source.title for source in sources)} on {address} (stop with Ctrl-C)", flush=True
        )
        print(describe_precision(precision, device, arguments.precision == "auto"), flush=True)
        if not is_loopback(arguments.host):
            print("Everyone who can reach this machine over the network can use the page.", flush=True)

    serve(load, arguments.host, arguments.port, limits, arguments.root_path, ready)
