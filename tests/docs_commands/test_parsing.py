"""Every command of README.md and docs/*.md is accepted by its parser, without running it."""

from __future__ import annotations

import re
from importlib.util import find_spec

import pytest

from .extraction import CHECKOUT, DOCUMENTS, Command, read_commands, simple_commands
from .parsing import detris_arguments, parse
from .table import NOT_RUN, is_fragment, reason_not_to_run, substitute

COMMANDS = {document: read_commands(document) for document in DOCUMENTS}
# Other programs that a command line may use; they are part of every Linux.
_SYSTEM = {
    "cat",
    "cd",
    "cp",
    "curl",
    "echo",
    "eval",
    "export",
    "find",
    "head",
    "jq",
    "ls",
    "mkdir",
    "sort",
    "split",
    "tail",
}


def is_script(words: list[str]) -> bool:
    """Whether a command runs a script or module of this repository that has a parser of its own."""
    match words:
        case ["python", "-m", module, *_]:
            return find_spec(module) is not None and module.startswith("detris_peft.")
        case ["python", script, *_]:
            return script.startswith("examples/") and (CHECKOUT / script).is_file()
    return False


def usage_errors(command: Command) -> list[str]:
    """Return the usage errors of a command, and its programs that no test runs."""
    errors = []
    for words in simple_commands(substitute(command.text)):
        arguments = detris_arguments(words)
        if arguments is None:
            if words[0] not in _SYSTEM and not is_script(words) and reason_not_to_run(command.text) is None:
                errors.append(f"{command}: add {words[0]!r} to what the tests run, or to NOT_RUN")
            continue
        message = parse(arguments)
        if message and not (command.inline and is_fragment(message)):
            errors.append(f"{command}: {message}")
    return errors


@pytest.mark.parametrize("document", [document for document, commands in COMMANDS.items() if commands])
def test_every_command_is_accepted_by_its_parser(document):
    commands = [command for command in COMMANDS[document] if not command.text.startswith("#!")]
    assert [error for command in commands for error in usage_errors(command)] == []


def test_no_row_of_the_commands_that_are_not_run_is_stale():
    texts = [command.text for commands in COMMANDS.values() for command in commands]
    assert [pattern for pattern, _ in NOT_RUN if not any(re.search(pattern, text) for text in texts)] == []


def test_commands_are_found_with_their_lines_and_wrong_ones_are_reported(tmp_path):
    page = [
        "Run `detris params --all` or",
        "`detris evaluate --wrong`, and `detris predict`.",
        "```bash",
        "# a comment",
        "detris train --preset tiny \\",
        "    --epoch 3   # typo",
        "cat a.txt | detris predict --checkpoint x --image photo.jpg --text two words > out.txt",
        "```",
        "```python",
        "detris = 'no command'",
        "```",
    ]
    (tmp_path / "page.md").write_text("\n".join(page))
    commands = read_commands("page.md", tmp_path)
    assert [(command.line, command.inline) for command in commands] == [(1, True), (2, True), (5, False), (7, False)]
    assert simple_commands(commands[3].text)[0] == ["cat", "a.txt"]
    params, wrong, typo, words = map(usage_errors, commands)
    assert params == []
    assert "--wrong" in wrong[0]
    assert "use --epochs" in typo[0]
    assert "--text: expected one value" in words[0]
