"""Sphinx configuration: pages in Markdown (MyST), API reference from the docstrings."""

import re
from dataclasses import MISSING, fields, is_dataclass

from sphinx.application import Sphinx

from detris_peft import __version__

project = "detris_peft"
author = "The detris_peft contributors"
release = __version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.viewcode"]
html_theme = "furo"
html_title = f"detris_peft {release}"
exclude_patterns = ["_build", "images/README.md"]

highlight_language = "text"  # layouts of folders; blocks of code name their language

myst_heading_anchors = 3  # links such as design.md#parity work on GitHub and here

default_role = "py:obj"  # single backticks in docstrings link to the object, if it is documented
autodoc_member_order = "bysource"
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented"
napoleon_google_docstring = True
napoleon_numpy_docstring = False


def _complete_docstring(app: Sphinx, what: str, name: str, item: object, options: object, lines: list[str]) -> None:
    """Remove the brackets of links such as [`DetrisConfig`], and document options by their help texts."""
    lines[:] = [re.sub(r"\[(`[^`]+`)\]", r"\1", line) for line in lines]
    if what == "class" and is_dataclass(item) and all("help" in field.metadata for field in fields(item)):
        lines += ["", "Args:"]
        for field in fields(item):
            default = field.default if field.default_factory is MISSING else field.default_factory()
            lines.append(f"    {field.name}: {field.metadata['help']}. Default: ``{default!r}``.")


def setup(app: Sphinx) -> None:
    app.connect("autodoc-process-docstring", _complete_docstring, priority=400)  # before napoleon
