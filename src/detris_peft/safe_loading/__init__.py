"""Readers for files that other people wrote: no code is executed, and memory, depth and counts are bounded."""

from typing import TYPE_CHECKING

from ..lazy_names import lazy_names

if TYPE_CHECKING:
    from .checkpoints import read_checkpoint
    from .pickle_values import printable
    from .pickles import load_plain_pickle
    from .safetensors_files import check_safetensors, read_safetensors
    from .text_files import parse_json, read_json, read_yaml
    from .xml_files import read_xml
else:
    __getattr__, __dir__ = lazy_names(
        __name__,
        {
            "checkpoints": ("read_checkpoint",),
            "pickle_values": ("printable",),
            "pickles": ("load_plain_pickle",),
            "safetensors_files": ("check_safetensors", "read_safetensors"),
            "text_files": ("parse_json", "read_json", "read_yaml"),
            "xml_files": ("read_xml",),
        },
    )

__all__ = [
    "check_safetensors",
    "load_plain_pickle",
    "parse_json",
    "printable",
    "read_checkpoint",
    "read_json",
    "read_safetensors",
    "read_xml",
    "read_yaml",
]
