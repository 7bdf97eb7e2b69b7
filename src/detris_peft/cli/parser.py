"""The argument parser of all commands: usage errors are one line and name the nearest option."""

from __future__ import annotations

import argparse
import dataclasses
import difflib
import os
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NoReturn

from ..precision import EARLIER_OPTIONS, describe_replacement
from .option_fields import add_options, parse_boolean, spellings

_TYPE_NAMES: dict[Any, str] = {int: "an integer", float: "a number"}
_LONG_DASHES = "\u2012\u2013\u2014\u2015\u2212"  # that text processors make of --
_NEGATIVE_NUMBER = re.compile(r"-\d+|-\d*\.\d+")
_REQUIRED = "the following arguments are required: "


class _HelpFormatter(argparse.ArgumentDefaultsHelpFormatter):
    """Adds to the help of an option that it is required, or its default, unless the help already names it."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        if action.required and action.option_strings:
            return f"{action.help} (required)" if action.help else "required"
        if action.default in (None, "", []) or "default:" in (action.help or ""):
            return action.help
        return super()._get_help_string(action)


class CommandParser(argparse.ArgumentParser):
    """Parser without abbreviations whose options are the fields of dataclasses, and whose errors are one line.

    Both spellings of an option are accepted, `--batch_size` and `--batch-size`. Every boolean option `--x` has the
    opposite `--no_x`. See `option_fields.add_options` for the types of fields and their metadata.

    Args:
        dataclass_types: dataclasses whose fields are options.
        kwargs: keyword arguments of `argparse.ArgumentParser`.
    """

    def __init__(self, dataclass_types: Iterable[type] | type = (), **kwargs: Any) -> None:
        kwargs.setdefault("formatter_class", _HelpFormatter)
        super().__init__(allow_abbrev=False, exit_on_error=False, **kwargs)
        self.dataclass_types = (dataclass_types,) if isinstance(dataclass_types, type) else (*dataclass_types,)
        for dataclass_type in self.dataclass_types:
            add_options(self, dataclass_type)
            for field in dataclasses.fields(dataclass_type):  # type: ignore[arg-type]
                action = self._option_string_actions.get(f"--{field.name}")
                if action is not None and action.type is parse_boolean:
                    self._add_opposite(field.name, action.default)

    def _add_opposite(self, option: str, default: Any) -> None:
        names = spellings(f"no_{option}")
        if names[0] not in self._option_string_actions:
            help_text = f"opposite of --{option}" if default else argparse.SUPPRESS
            self.add_argument(*names, action="store_false", dest=option, default=default, help=help_text)

    def parse_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Parse all arguments; an unknown one is an error."""
        words = [*(sys.argv[1:] if args is None else args)]
        if "--" not in words:  # which ends the options
            self._check_options(words)
            self._check_values(words)
        parsed, unknown = self.parse_known_args(words, namespace)
        if unknown:
            self.error(f"expected options, got {unknown[0]!r}; remove it, or put text with spaces in quotes")
        return parsed

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Parse the known arguments and return the namespace and the unknown arguments."""
        try:
            return super().parse_known_args(args, namespace)
        except argparse.ArgumentError as error:
            self.error(self._invalid(error))

    def parse_args_into_dataclasses(self, args: Any = None) -> tuple[Any, ...]:
        """Parse all arguments into the dataclasses, followed by a namespace of other arguments, if there are any."""
        values = vars(self.parse_args(args))
        parsed: list[Any] = []
        for dataclass_type in self.dataclass_types:
            names = [field.name for field in dataclasses.fields(dataclass_type) if field.init]  # type: ignore[arg-type]
            parsed.append(dataclass_type(**{name: values.pop(name) for name in names if name in values}))
        return (*parsed, argparse.Namespace(**values)) if values else tuple(parsed)

    def error(self, message: str) -> NoReturn:
        """Print one line and exit with code 2. Only the first rank of a distributed launch prints."""
        if message.startswith(_REQUIRED):
            names = [name.split("/")[0] for name in message.removeprefix(_REQUIRED).split(", ")]
            missing = [name if name.startswith("-") else name.upper() for name in names]
            message = f"expected {' and '.join(missing)}, got none; add {'it' if len(missing) == 1 else 'them'}"
        if os.environ.get("RANK", "0") == "0":
            print(f"error: {' '.join(message.split())} (see {self.prog} --help).", file=sys.stderr)
        sys.exit(2)

    def _check_options(self, words: Sequence[str]) -> None:
        """Report an unknown option before argparse reports what it leads to, such as a missing required option."""
        for word in words:
            name = word.split("=")[0]
            plain = f"--{name.lstrip(_LONG_DASHES)}"
            if name.startswith(tuple(_LONG_DASHES)) and plain in self._option_string_actions:
                self.error(f"expected an option that starts with --, got {name}; use {plain}")
            is_earlier = name.startswith("--") and name[2:].replace("-", "_") in EARLIER_OPTIONS
            if is_earlier and "--precision" in self._option_string_actions:
                self.error(describe_replacement(name, _value_of(word, words)))
            is_option = len(word) > 1 and word.startswith("-") and not _NEGATIVE_NUMBER.fullmatch(word)
            if is_option and " " not in word and name not in self._option_string_actions:
                nearest = difflib.get_close_matches(name.lower(), self._option_string_actions, n=1)
                fix = f"use {nearest[0]}" if nearest else "remove it"
                self.error(f"expected a known option, got {name}; {fix}")

    def _check_values(self, words: Sequence[str]) -> None:
        """Report several words after an option with one value, such as a sentence without quotes."""
        if any(not action.option_strings for action in self._actions):
            return  # the second word may be a positional argument
        groups: list[list[str]] = [[""]]  # an option and the words that follow it
        for word in words:
            is_option = word.split("=")[0] in self._option_string_actions
            groups.append(word.split("=", 1)) if is_option else groups[-1].append(word)
        for option, *values in groups[1:]:
            action = self._option_string_actions[option]
            if len(values) > 1 and action.nargs is None:
                self.error(f"{option}: expected one value, got {len(values)} words; {_fix_of_words(action, values)}")

    def _invalid(self, error: argparse.ArgumentError) -> str:
        """Describe an error of argparse as the option, what it expects, and what it got."""
        if error.argument_name is None:
            return error.message
        name = error.argument_name.split("/")[0]
        action = next((a for a in self._actions if name in (*a.option_strings, a.dest, a.metavar)), None)
        if action is None:
            return f"{name}: {error.message}"
        got = re.match(r"invalid .*?: ('.*?'|\".*?\"|\S+)(?: \(choose from .*\))?$", error.message)
        if action.choices is not None and got:
            choices = [str(choice) for choice in action.choices]
            nearest = difflib.get_close_matches(got[1].strip("'\"").lower(), choices, n=1)
            fix = f"use {nearest[0]}" if nearest else "choose one of them"
            return f"{name}: expected one of {', '.join(choices)}, got {got[1]}; {fix}"
        if got:
            return f"{name}: expected {_TYPE_NAMES.get(action.type, 'another value')}, got {got[1]}; change it"
        if error.message.startswith("ignored explicit argument"):
            return f"{name}: expected no value, got one; remove it"
        if re.fullmatch(r"expected .* arguments?", error.message):
            return f"{name}: expected a value, got none; add one"
        if error.message.startswith("expected"):  # raised by the type of the option
            return f"{name}: {error.message}; change it"
        return f"{name}: {error.message}"


def _value_of(option: str, words: Sequence[str]) -> str | None:
    """Return the value of an option on a command line, after = or as the next word; None if there is none."""
    name, equals, value = option.partition("=")
    following = words[words.index(name) + 1 : words.index(name) + 2] if not equals else [value]
    return following[0] if following else None


def _fix_of_words(action: argparse.Action, words: Sequence[str]) -> str:
    """Return what to do about several words after an option with one value."""
    if action.type in (int, float):
        return f"remove {words[1]!r}"
    if isinstance(action, argparse._AppendAction) and all(map(os.path.exists, words)):  # the shell expanded a pattern
        return "put a pattern such as *.jpg in quotes, or repeat the option for each file"
    return f"put them in quotes: {' '.join(words)!r}"


def parse_command(arguments: Sequence[str], prog: str, commands: Mapping[str, str], version: str | None = None) -> str:
    """Return the command that the first argument names.

    Args:
        arguments: the arguments of the program.
        prog: the program's name.
        commands: description of each command.
        version: what `--version` prints; None: the program has no such option.
    """
    width = max(map(len, commands)) + 2
    parser = CommandParser(
        prog=prog,
        description="\n".join(f"{name:{width}}{description}" for name, description in commands.items()),
        epilog=f"{prog} COMMAND --help lists a command's options.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("command", choices=commands)
    if version is not None:
        parser.add_argument("--version", action="version", version=version)
    first = arguments[0] if arguments else None
    if first is None or (first.startswith("-") and first not in parser._option_string_actions):
        got = "none" if first is None else f"{first}, an option"
        parser.error(f"expected a command ({', '.join(commands)}), got {got}; write the command first")
    return parser.parse_args([first]).command
