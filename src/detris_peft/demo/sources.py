"""What the page is started with: checkpoints and example images."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from ..images import open_header
from ..safe_loading.text_files import parse_json
from .limits import MAX_EXAMPLES

METADATA = "metadata.jsonl"
_MAX_PARTS = 100  # of a path


@dataclass(frozen=True)
class CheckpointSource:
    """A checkpoint of the page.

    Attributes:
        name: folder or Hub id.
        revision: branch, tag or commit of the Hub repository.
        subfolder: folder of the checkpoint within it.
        given_title: what the page calls it; default: the last two parts of the name.
    """

    name: str
    revision: str | None = None
    subfolder: str = ""
    given_title: str = ""

    @property
    def title(self) -> str:
        """What the page calls the checkpoint. Visitors do not see the other folders above a local checkpoint."""
        return self.given_title or self.last_parts(2)

    def last_parts(self, count: int) -> str:
        """Return the last parts of the name and subfolder; those of the whole path for a folder such as `.`."""
        path = Path(self.name, self.subfolder)
        return "/".join((Path(os.path.abspath(path)) if path.is_dir() else path).parts[-count:]).strip("/")

    @property
    def is_local(self) -> bool:
        """Whether the checkpoint is a folder of this machine."""
        return Path(self.name).is_dir()


def with_distinct_titles(sources: Sequence[CheckpointSource]) -> list[CheckpointSource]:
    """Return the same checkpoints; those with equal titles get titles with more parts of their names, or numbers."""
    if len({source.title for source in sources}) == len(sources):
        return [*sources]
    for count in range(3, _MAX_PARTS):
        titles = [source.last_parts(count) for source in sources]
        if len({*titles}) == len(titles):
            break
    else:
        titles = [f"{source.title} ({i})" for i, source in enumerate(sources, start=1)]
    return [replace(source, given_title=title) for source, title in zip(sources, titles, strict=True)]


def read_examples(folder: str | Path) -> list[tuple[Path, str]]:
    """Return the example images of a folder, at most `MAX_EXAMPLES`, each with its sentences, one per line.

    The sentences come from `metadata.jsonl` in the folder, if there is one: lines with `file_name` and `sentence` or
    `sentences`, as in datasets of the imagefolder format.

    Raises:
        FileNotFoundError: there is no such folder.
        ValueError: it contains no images, or its metadata is damaged.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"--examples {folder}: expected a folder of images, found none; check the path.")
    sentences = _read_sentences(folder / METADATA)
    examples: list[tuple[Path, str]] = []
    for file in sorted(folder.iterdir()):
        # With a metadata file, only the images that it lists: masks may be next to them.
        if len(examples) < MAX_EXAMPLES and _is_image(file) and (not sentences or file.name in sentences):
            examples.append((file, "\n".join(dict.fromkeys(sentences.get(file.name, [])))))
    if not examples:
        raise ValueError(f"--examples {folder}: expected a folder of images, found no image in it; check the path.")
    return examples


def _read_sentences(metadata: Path) -> dict[str, Sequence[str]]:
    """Return the sentences per file name."""
    found: dict[str, list[str]] = {}
    if not metadata.is_file():
        return {}
    for number, line in enumerate(metadata.read_text(encoding="utf-8", errors="replace").splitlines(), start=1):
        if not line.strip():
            continue
        where = f"{metadata}:{number}"
        row = parse_json(line, where)
        if not isinstance(row, dict) or not isinstance(row.get("file_name"), str):
            raise ValueError(f"{where}: expected an object with 'file_name', got another line; correct it.")
        values = row.get("sentences", row.get("sentence", []))
        values = [values] if isinstance(values, str) else values
        if not isinstance(values, list) or not all(isinstance(value, str) for value in values):
            raise ValueError(f"{where}: expected 'sentences' as a list of texts, got another value; correct it.")
        # Only the first of each line: the sentences of a line describe the same object.
        found.setdefault(row["file_name"], []).extend(values[:1])
    return {name: lines[:4] for name, lines in found.items()}


def _is_image(file: Path) -> bool:
    try:
        if file.is_file():
            open_header(file).close()
            return True
    except (OSError, ValueError):
        pass
    return False
