"""Edits of the sentences and the flags of a folder with metadata.jsonl; implements `detris data review`."""

from .folder import ChangedLineError, ReviewFolder, ReviewLine
from .line_edits import LineEdit, SentenceEdit, edit_line, sentence_items, sentence_text

__all__ = [
    "ChangedLineError",
    "LineEdit",
    "ReviewFolder",
    "ReviewLine",
    "SentenceEdit",
    "edit_line",
    "sentence_items",
    "sentence_text",
]
