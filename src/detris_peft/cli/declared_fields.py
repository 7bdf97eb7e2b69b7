"""Types and descriptions of the fields of our config classes, read from source: importing them takes seconds."""

from __future__ import annotations

import ast
import inspect
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any, Literal

_PACKAGE = Path(__file__).parents[1]
# Names in the annotations of fields. A field that is a config is a mapping on the command line.
_TYPES = {"Any": Any, "Literal": Literal, "PeftConfig": dict, "BridgerConfig": dict}

Class = tuple[str, str]  # file below the package, and name


def declared_types(*classes: Class) -> dict[str, Any]:
    """Return the types of the fields that classes declare, keyed by name.

    Args:
        classes: a class and its bases in this package, the bases first.
    """
    types = {}
    for source in map(_read_class, classes):
        for statement in source.body:
            if isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name):
                annotation = ast.unparse(statement.annotation)
                if not annotation.startswith("ClassVar"):
                    types[statement.target.id] = eval(annotation, _TYPES.copy())
    return types


def described_fields(*classes: Class) -> dict[str, str]:
    """Return the descriptions of fields in the docstrings of classes, keyed by name; the last one counts.

    Args:
        classes: as for `declared_types`.
    """
    texts: dict[str, str] = {}
    for source in map(_read_class, classes):
        docstring = inspect.cleandoc(ast.get_docstring(source) or "")
        section = re.search(r"^Args:\n(.*?)(?=^\S|\Z)", docstring, re.MULTILINE | re.DOTALL)
        for names, text in _entries(section[1] if section else ""):
            texts |= dict.fromkeys(names, text)
    return texts


@cache
def _read_class(place: Class) -> ast.ClassDef:
    file, name = place
    module = ast.parse((_PACKAGE / file).read_text(encoding="utf-8"))
    return next(part for part in module.body if isinstance(part, ast.ClassDef) and part.name == name)


def _entries(section: str) -> Iterator[tuple[list[str], str]]:
    for names, text in re.findall(r"^    (\w[\w, ]*): (.*(?:\n {8}.*)*)", section, re.MULTILINE):
        yield names.split(", "), " ".join(text.split())
