"""JSON and YAML files: UTF-8, unique keys, bounded depth and size."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml

from ..errors import one_line
from .limits import MAX_DEPTH, MAX_YAML_NODES


def read_json(file: str | os.PathLike) -> Any:
    """Read a JSON file.

    Raises:
        FileNotFoundError: the file does not exist.
        ValueError: the file is not UTF-8 or not JSON, or its values are nested too deeply.
    """
    text = _read_text(Path(file), "JSON")
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError(f"{file}: expected JSON, got values nested too deeply; copy or download it again.") from None
    except ValueError as error:
        raise ValueError(f"{file}: expected JSON, got {one_line(error)}; copy or download it again.") from None


def read_yaml(file: str | os.PathLike) -> Any:
    """Read a YAML file with the safe loader. Aliases are expanded up to a limit.

    Raises:
        FileNotFoundError: the file does not exist.
        ValueError: the file is not UTF-8 or not YAML, a key occurs twice, or it expands to too many values.
    """
    text = _read_text(Path(file), "YAML")
    try:
        node = yaml.compose(text, Loader=yaml.SafeLoader)
        if node is None:
            return None
        _check_node(node, file)
        return yaml.safe_load(text)
    except RecursionError:
        raise ValueError(f"{file}: expected YAML, got values nested too deeply; simplify it.") from None
    except yaml.YAMLError as error:
        raise ValueError(f"{file}: expected YAML, got {one_line(error)}; correct that line.") from None


def _read_text(file: Path, kind: str) -> str:
    try:
        return file.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise FileNotFoundError(f"{file}: expected a {kind} file, found no such file; check the path.") from None
    except IsADirectoryError:
        raise ValueError(f"{file}: expected a {kind} file, got a folder; pass a file.") from None
    except UnicodeDecodeError:
        raise ValueError(f"{file}: expected a {kind} file in UTF-8, got another encoding; save it as UTF-8.") from None


def _check_node(root: yaml.Node, file: str | os.PathLike) -> None:
    """Raise a ValueError if a mapping has a key twice, or the expanded document is too deep or too large."""
    nodes = 0
    pending = [(root, 1)]
    while pending:
        node, depth = pending.pop()
        nodes += 1
        if depth > MAX_DEPTH or nodes > MAX_YAML_NODES:
            raise ValueError(
                f"{file}: expected at most {MAX_YAML_NODES:,} YAML values in {MAX_DEPTH} levels, got more after "
                "expanding aliases; simplify it."
            )
        children: Iterable[yaml.Node] = ()
        if isinstance(node, yaml.MappingNode):
            keys: set[tuple[str, str]] = set()
            for key, _ in node.value:
                if isinstance(key, yaml.ScalarNode):
                    if (key.tag, key.value) in keys:
                        line = key.start_mark.line + 1
                        raise ValueError(
                            f"{file}: expected every key once, got {key.value!r} again in line {line}; remove one."
                        )
                    keys.add((key.tag, key.value))
            children = [part for pair in node.value for part in pair]
        elif isinstance(node, yaml.SequenceNode):
            children = node.value
        pending.extend((child, depth + 1) for child in children)
