"""The argument parser of all commands: usage errors are one line and name the nearest option."""

from __future__ import annotations

import difflib
import sys
from collections.abc import Sequence
from typing import Any, NoReturn

from transformers import HfArgumentParser


class CommandParser(HfArgumentParser):
    """`HfArgumentParser` without abbreviations, whose errors are one line with exit code 2."""

    def __init__(self, dataclass_types: Sequence[type] | type, **kwargs: Any) -> None:
        super().__init__(dataclass_types, allow_abbrev=False, **kwargs)  # type: ignore[arg-type]

    def parse_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Parse all arguments; an unknown one is an error."""
        parsed, unknown = self.parse_known_args(args, namespace)
        if unknown:
            self.error(self._unknown(unknown))
        return parsed

    def _unknown(self, words: list[str]) -> str:
        name = words[0].split("=")[0]
        if not name.startswith("-"):
            return f"expected options, got {name!r}; put text with spaces in quotes"
        nearest = difflib.get_close_matches(name, self._option_string_actions, n=1)
        return f"expected a known option, got {name}" + (f"; use {nearest[0]}" if nearest else "")

    def error(self, message: str) -> NoReturn:
        """Print one line and exit with code 2."""
        print(f"error: {' '.join(message.split())} (see {self.prog} --help)", file=sys.stderr)
        sys.exit(2)
