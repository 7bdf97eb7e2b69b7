"""Removal of the files of visitors: uploads, masks and downloads."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import gradio as gr

from .limits import FILE_LIFETIME


@asynccontextmanager
async def old_files_removed(app: Any) -> AsyncIterator[None]:
    """Remove files of visitors when they are `FILE_LIFETIME` old, and all of them when the server stops.

    It replaces `delete_cache` of `gr.Blocks`, which leaves empty folders, does not know files of components that a
    function returns, and ends silently when a request adds a file meanwhile.

    Args:
        app: the application of Gradio, whose lifespan this is.
    """
    page = app.get_blocks()

    async def repeat() -> None:
        while True:
            await asyncio.sleep(FILE_LIFETIME / 4)
            await asyncio.to_thread(remove_files, page, FILE_LIFETIME)

    task = asyncio.create_task(repeat())
    try:
        yield
    finally:
        task.cancel()
        remove_files(page)


def remove_files(page: gr.Blocks, age: float | None = None) -> None:
    """Remove files of visitors, with the folders that become empty. Example images stay.

    Args:
        page: the page.
        age: remove files that are at least this old, in seconds; None: all.
    """
    kept = {file for block in page.blocks.values() for file in getattr(block, "keep_in_cache", ())}
    limit = float("inf") if age is None else time.time() - age
    for files in page.temp_file_sets:
        for file in [*files]:  # a copy, because requests add files meanwhile
            path = Path(file)
            if file in kept or (path.exists() and path.stat().st_ctime > limit):
                continue
            files.discard(file)
            with suppress(OSError):  # another set has the same file, or the folder has other files
                path.unlink()
                path.parent.rmdir()
