"""Settings of Gradio that are environment variables, and the folder for the files of visitors."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def gradio_environment() -> Iterator[None]:
    """Make Gradio keep the files of visitors in a private temporary folder, which is removed at exit.

    It also turns off Gradio's analytics, and limits the statistics that it keeps in memory.

    Enter it before Gradio is imported: the import already creates a folder for temporary files.
    """
    folder = tempfile.mkdtemp(prefix="detris-demo-")
    try:
        with environment_variables(
            GRADIO_TEMP_DIR=folder, GRADIO_ANALYTICS_ENABLED="False", GRADIO_ANALYTICS_MAX_EVENTS="100"
        ):
            yield
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def environment_variables(**values: str) -> Iterator[None]:
    """Set environment variables, and restore them at exit."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
