"""JSON and YAML files: UTF-8, unique keys, bounded depth and size."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from ..errors import one_line
from .limits import MAX_DEPTH, MAX_LARGE_INTEGERS, MAX_NUMBER_CHARACTERS, MAX_YAML_CHARACTERS, MAX_YAML_NODES

_TEXT_TAGS = ("tag:yaml.org,2002:str", "tag:yaml.org,2002:binary")

_INT64_DIGITS = 20  # of the smallest integer of 64 bits, with its sign


def read_json(file: str | os.PathLike) -> Any:
    """Read a JSON file.

    Raises:
        FileNotFoundError: the file does not exist.
        ValueError: the file is not UTF-8 or not JSON, a key occurs twice in an object, or its values are nested more
            than `MAX_DEPTH` levels deep.
    """
    return parse_json(_read_text(Path(file), "JSON"), str(file))


def parse_json(text: str, where: str) -> Any:
    """Parse JSON text with the checks of `read_json`.

    Args:
        text: the JSON.
        where: file, line or field that it comes from; prefix of error messages.
    """
    try:
        content = json.loads(text, object_pairs_hook=_unique_keys, parse_int=_IntegerParser())
        _check_depth(content)
    except RecursionError:
        raise ValueError(
            f"{where}: expected JSON with at most {MAX_DEPTH} levels, got values nested too deeply; "
            "copy or download it again."
        ) from None
    except ValueError as error:
        problem = one_line(error)
        if problem.startswith("Exceeds the limit"):  # Python's message advises to raise its limit
            problem = f"an integer of more than {sys.get_int_max_str_digits():,} digits"
        raise ValueError(f"{where}: expected JSON, got {problem}; copy or download it again.") from None
    return content


def read_yaml(file: str | os.PathLike) -> Any:
    """Read a YAML file with the safe loader. Aliases are expanded up to a limit.

    Raises:
        FileNotFoundError: the file does not exist.
        ValueError: the file is not UTF-8 or not YAML, a key occurs twice, or it expands to too many values.
    """
    text = _read_text(Path(file), "YAML")
    if len(text) > MAX_YAML_CHARACTERS:
        raise ValueError(
            f"{file}: expected at most {MAX_YAML_CHARACTERS:,} characters of YAML, got {len(text):,}; pass another "
            "file."
        )
    try:
        node = yaml.compose(text, Loader=yaml.SafeLoader)
        if node is None:
            return None
    except RecursionError:
        raise ValueError(f"{file}: expected YAML, got values nested too deeply; simplify it.") from None
    except yaml.YAMLError as error:
        raise ValueError(f"{file}: expected YAML, got {one_line(error)}; correct that line.") from None
    _check_node(node, file)
    try:
        return yaml.constructor.SafeConstructor().construct_document(node)
    except yaml.YAMLError as error:
        raise ValueError(f"{file}: expected YAML, got {one_line(error)}; correct that line.") from None
    # Invalid dates, and values that do not fit an explicit tag, raise any of these.
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        raise ValueError(
            f"{file}: expected YAML, got a value that its type does not allow ({one_line(error)}); quote text."
        ) from None


def _read_text(file: Path, kind: str) -> str:
    try:
        return file.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise FileNotFoundError(f"{file}: expected a {kind} file, found no such file; check the path.") from None
    except IsADirectoryError:
        raise ValueError(f"{file}: expected a {kind} file, got a folder; pass a file.") from None
    except UnicodeDecodeError:
        raise ValueError(f"{file}: expected a {kind} file in UTF-8, got another encoding; save it as UTF-8.") from None


class _IntegerParser:
    """Parses integers, of which only some may need more than 64 bits.

    Python hashes these modulo 2**61 - 1, so a dict of many whose hashes are chosen to collide takes quadratic time.
    """

    def __init__(self) -> None:
        self._large = 0

    def __call__(self, digits: str) -> int:
        value = int(digits)
        if len(digits) > _INT64_DIGITS:
            self._large += 1
            if self._large > MAX_LARGE_INTEGERS:
                raise ValueError(f"more than {MAX_LARGE_INTEGERS:,} integers of more than 64 bits")
        return value


def _unique_keys(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    """Return a JSON object as a dict; of a repeated key, `json` would keep the last value without a message."""
    result = dict(pairs)
    if len(result) < len(pairs):
        keys = [key for key, _ in pairs]
        repeated = next(key for key in keys if keys.count(key) > 1)
        raise ValueError(f"the key {repeated[:80]!r} twice in one object")
    return result


def _check_depth(content: Any) -> None:
    """Raise a RecursionError if containers are nested deeper than the limit, level by level, without recursion."""
    level = [content]
    for _ in range(MAX_DEPTH + 1):
        level = [
            child
            for container in level
            if isinstance(container, (dict, list))
            for child in (container.values() if isinstance(container, dict) else container)
            if isinstance(child, (dict, list))
        ]
        if not level:
            return
    raise RecursionError


def _check_node(root: yaml.Node, file: str | os.PathLike) -> None:
    """Raise a ValueError if a mapping has a key twice, or the expanded document is too deep or too large."""
    nodes, characters = 1, 0
    pending = [(root, 1)]
    while pending:
        node, depth = pending.pop()
        children: Sequence[yaml.Node] = ()
        if isinstance(node, yaml.MappingNode):
            _check_unique_keys(node, file)
            children = [part for pair in node.value for part in pair]
        elif isinstance(node, yaml.SequenceNode):
            children = node.value
        elif isinstance(node, yaml.ScalarNode):
            characters += len(node.value)
            if node.tag not in _TEXT_TAGS and len(node.value) > MAX_NUMBER_CHARACTERS:
                raise ValueError(
                    f"{file}: expected numbers and dates of at most {MAX_NUMBER_CHARACTERS} characters, got one of "
                    f"{len(node.value):,} in line {node.start_mark.line + 1}; quote text."
                )
        nodes += len(children)
        if depth > MAX_DEPTH or nodes > MAX_YAML_NODES or characters > MAX_YAML_CHARACTERS:
            raise ValueError(
                f"{file}: expected at most {MAX_YAML_NODES:,} YAML values in {MAX_DEPTH} levels, got more after "
                "expanding aliases; simplify it."
            )
        pending.extend((child, depth + 1) for child in children)


def _check_unique_keys(node: yaml.MappingNode, file: str | os.PathLike) -> None:
    keys: set[tuple[str, str]] = set()
    for key, _ in node.value:
        if isinstance(key, yaml.ScalarNode):
            if (key.tag, key.value) in keys:
                line = key.start_mark.line + 1
                raise ValueError(
                    f"{file}: expected every key once, got {key.value[:80]!r} again in line {line}; remove one."
                )
            keys.add((key.tag, key.value))
