"""The commands in README.md and docs/*.md: those of code blocks, and those in the running text."""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass
from pathlib import Path

CHECKOUT = Path(__file__).parents[2]
DOCUMENTS = ["README.md", *sorted(f"docs/{file.name}" for file in (CHECKOUT / "docs").glob("*.md"))]

_BLOCK = re.compile(r"^( *)(```+|~~~+)(.*?)\n(.*?)^\1\2", re.MULTILINE | re.DOTALL)
_SHELLS = ("bash", "sh", "shell", "console")
_INLINE = re.compile(r"`((?:detris|python|accelerate launch)\s[^`]+)`")
# The name of a command without arguments, and options of the launcher without a script.
_NAME = re.compile(r"detris( data)? \w+|python \S+\.py|accelerate launch(?!.* (-m |\S+\.py)).*")
_SEPARATORS = {"|", "||", "&&", ";", "&"}


@dataclass(frozen=True)
class Command:
    """A command in a document.

    Attributes:
        document: path of the document below the checkout.
        line: its line, 1-based.
        text: the command as written, without line continuations.
        inline: it is in the running text, where it may be a fragment such as "detris evaluate --revision".
    """

    document: str
    line: int
    text: str
    inline: bool = False

    def __str__(self) -> str:
        return f"{self.document}:{self.line}: {self.text}"


def read_commands(document: str, root: Path = CHECKOUT) -> list[Command]:
    """Return the commands of a document, in its order."""
    text = (root / document).read_text(encoding="utf-8")
    commands = []

    def line_of(position: int) -> int:
        return text.count("\n", 0, position) + 1

    for block in _BLOCK.finditer(text):
        language = block[3].strip().strip("{}").split(" ")[0]
        if language in _SHELLS:
            first = line_of(block.start()) + 1
            commands += [Command(document, first + offset, command) for offset, command in _lines(block[4], language)]
    outside = _BLOCK.sub(lambda block: re.sub(r"[^\n]", " ", block[0]), text)
    for span in _INLINE.finditer(outside):
        words = " ".join(span[1].replace("\\|", "|").split())
        if not _NAME.fullmatch(words):
            commands.append(Command(document, line_of(span.start()), words, inline=True))
    return sorted(commands, key=lambda command: command.line)


def python_blocks(document: str) -> list[str]:
    """Return the Python code blocks of a document."""
    text = (CHECKOUT / document).read_text(encoding="utf-8")
    return [block[4] for block in _BLOCK.finditer(text) if block[3].strip() in ("python", "py")]


def simple_commands(text: str) -> list[list[str]]:
    """Return the words of each command in a command line, without redirections and assignments of variables."""
    lexer = shlex.shlex(text, posix=True, punctuation_chars="|&;<>")
    lexer.whitespace_split = True
    found: list[list[str]] = [[]]
    words = iter(lexer)
    for word in words:
        if word in _SEPARATORS:
            found.append([])
        elif set(word) <= set("<>&"):
            next(words, None)  # a file
        elif not (not found[-1] and re.fullmatch(r"\w+=.*", word, re.DOTALL)):
            found[-1].append(word)
    return [words for words in found if words]


def _lines(block: str, language: str) -> list[tuple[int, str]]:
    """Return the offset and the text of each command in a block. A script, which starts with #!, is one command."""
    if block.startswith("#!"):
        return [(0, block.strip())]
    found, start, parts = [], 0, ""
    for offset, line in enumerate(block.splitlines()):
        if language == "console":
            line = line[2:] if line.startswith("$ ") else ""  # the others are output
        if not parts and (not line.strip() or line.lstrip().startswith("#")):
            continue
        start, parts = (start, f"{parts}\n{line}") if parts else (offset, line.strip())
        joined = parts.replace("\\\n", " ")
        if not parts.endswith("\\") and _is_complete(joined):
            found.append((start, re.sub(r"  +", " ", joined) if "\n" not in joined else joined))
            parts = ""
    assert not parts, f"unfinished command: {parts}"
    return found


def _is_complete(text: str) -> bool:
    """Whether all quotes are closed, and no here-document is open."""
    marker = re.search(r"<<-?\s*'?(\w+)'?", text)
    if marker and not re.search(rf"^{marker[1]}$", text, re.MULTILINE):
        return False
    try:
        shlex.split(text, comments=True)
    except ValueError:
        return bool(marker)
    return True
