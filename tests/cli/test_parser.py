"""The argument parser of all commands."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import pytest

from detris_peft.cli.parser import CommandParser, parse_command


@dataclass
class Options:
    """Options of each kind."""

    text: str
    batch_size: int = 4
    augment: bool = False
    drop_last: bool = field(default_factory=lambda: True)
    splits: list[str] = field(default_factory=list)
    precision: Literal["no", "bf16"] = "no"


def parse(*words: str) -> Options:
    return CommandParser(Options, prog="detris test").parse_args_into_dataclasses([*words])[0]


def usage_error(capsys, *words: str) -> str:
    """Return the line of a usage error."""
    with pytest.raises(SystemExit) as ended:
        parse(*words)
    assert ended.value.code == 2
    printed = capsys.readouterr()
    assert not printed.out
    assert printed.err.count("\n") == 1
    return printed.err


def test_help_shows_what_is_required_and_defaults_once():
    @dataclass
    class Documented:
        """Options with help."""

        output: str = field(metadata={"help": "file to write"})
        seed: int = field(default=0, metadata={"help": "random seed"})
        device: str | None = field(default=None, metadata={"help": "device; default: cpu"})
        report: str | None = field(default=None, metadata={"help": "file for a report"})

    shown = CommandParser(Documented).format_help()
    assert "file to write (required)\n" in shown
    assert "random seed (default: 0)\n" in shown
    assert "device; default: cpu\n" in shown
    assert "file for a report\n" in shown


def test_options_are_parsed_into_the_dataclass():
    assert parse("--text", "a b", "--batch-size=2", "--splits", "a", "b") == Options("a b", 2, splits=["a", "b"])
    assert parse("--text", "-1", "--augment").augment
    assert parse("--text", "- a") == Options("- a")  # starts with a dash, but is no option
    assert parse("--text=--a").text == "--a"


def test_booleans_have_opposites_and_keep_the_default_of_a_factory():
    assert parse("--text", "x").drop_last
    assert not parse("--text", "x", "--no_drop_last").drop_last
    assert not parse("--text", "x", "--no-drop-last").drop_last
    assert not parse("--text", "x", "--augment", "--no_augment").augment
    parser = CommandParser(Options)
    parser.set_defaults(augment=True)
    assert parser.parse_args_into_dataclasses(["--text", "x"])[0].augment
    assert not parser.parse_args_into_dataclasses(["--text", "x", "--no_augment"])[0].augment


def test_abbreviations_are_usage_errors(capsys):
    assert "got --batch; use --batch" in usage_error(capsys, "--text", "x", "--batch", "2")
    assert "got --no_augmen; use --no_augment" in usage_error(capsys, "--text", "x", "--no_augmen")


def test_a_sentence_without_quotes_is_shown_with_them(capsys):
    line = usage_error(capsys, "--text", "the", "red", "circle", "--batch_size", "2")
    assert "--text: expected one value, got 3 words; put them in quotes: 'the red circle'" in line


@pytest.mark.parametrize("first_pass", [["--unknown", "1"], ["word"], []])
def test_the_first_pass_over_unknown_words_is_no_error(first_pass):
    known, unknown = CommandParser(Options).parse_known_args(["--text", "x", *first_pass])
    assert (known.text, unknown) == ("x", first_pass)


def test_options_are_not_read_from_a_file_next_to_the_script(tmp_path, monkeypatch):
    (tmp_path / "script.args").write_text("--batch_size 1")
    monkeypatch.setattr("sys.argv", [str(tmp_path / "script.py"), "--text", "x"])
    assert CommandParser(Options).parse_args_into_dataclasses()[0] == Options("x")


def test_only_the_first_rank_prints_a_usage_error(capsys, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    with pytest.raises(SystemExit):
        parse("--unknown")
    assert not capsys.readouterr().err


def test_help_lists_options_with_opposites_of_defaults_only(capsys):
    with pytest.raises(SystemExit):
        parse("--help")
    printed = capsys.readouterr().out
    assert "--no_drop_last" in printed
    assert "--no_augment" not in printed


def test_the_first_word_is_the_command(capsys):
    commands = {"train": "train a model", "convert": "convert a checkpoint"}
    assert parse_command(["train", "--x"], "detris", commands) == "train"
    with pytest.raises(SystemExit) as ended:
        parse_command(["--version"], "detris", commands, "detris-peft 1.2")
    assert ended.value.code == 0
    assert capsys.readouterr().out == "detris-peft 1.2\n"


@dataclass
class RepeatedOptions:
    """An option that may be given several times, with one value each."""

    text: list[str] = field(default_factory=list, metadata={"repeat": True})
    top_k: int | None = None


def test_a_repeated_option_takes_one_value_each_time(capsys, tmp_path):
    parser = CommandParser(RepeatedOptions, prog="detris test")
    assert parser.parse_args_into_dataclasses(["--text", "a b", "--text=c"])[0] == RepeatedOptions(["a b", "c"])
    assert parser.parse_args_into_dataclasses(["--top-k", "3"])[0] == RepeatedOptions([], 3)  # not the values above
    with pytest.raises(SystemExit):
        parser.parse_args_into_dataclasses(["--text", "a", "--text", "the", "red", "circle"])
    assert "--text: expected one value, got 3 words; put them in quotes: 'the red circle'" in capsys.readouterr().err
    files = [tmp_path / "a.jpg", tmp_path / "b.jpg"]
    for file in files:
        file.touch()
    with pytest.raises(SystemExit):  # what a shell makes of --text *.jpg
        parser.parse_args_into_dataclasses(["--text", *map(str, files)])
    assert "got 2 words; put a pattern such as *.jpg in quotes, or repeat the option" in capsys.readouterr().err


def test_a_field_of_several_types_is_refused():
    @dataclass
    class Mixed:
        value: int | str = 0

    with pytest.raises(TypeError, match=r"expected a field of one type, .* got int \| str"):
        CommandParser(Mixed)
