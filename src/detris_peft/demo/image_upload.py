"""An image input that accepts uploaded files only, and returns their path without decoding them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gradio as gr
from gradio.data_classes import ImageData
from gradio.utils import is_in_or_equal

from ..images import is_url
from .limits import FILE_LIFETIME


def image_upload(**options: Any) -> gr.Image:
    """Return an image input whose value is the path of the uploaded file and its name.

    Unlike `gr.Image` it does not decode the file, and it refuses URLs, which `gr.Image` would download.

    Args:
        options: keyword arguments of `gr.Image`.
    """
    component = gr.Image(type="filepath", image_mode=None, **options)
    move_to_cache = component.async_move_resource_to_block_cache

    def preprocess(payload: ImageData | None) -> tuple[str, str] | None:
        if payload is None:
            return None
        if payload.path is None or not is_in_or_equal(payload.path, component.GRADIO_CACHE):
            raise _refused("got something else")
        return payload.path, Path(payload.orig_name or payload.path).name[:100]

    async def move_file_to_cache(url_or_file_path: str | Path | None) -> str | None:
        if url_or_file_path is not None and is_url(str(url_or_file_path)):
            raise _refused("got a URL")
        if url_or_file_path is not None and not Path(url_or_file_path).is_file():
            raise _refused(f"got one that the server has removed (after {FILE_LIFETIME // 60} minutes)")
        return await move_to_cache(url_or_file_path)

    # Not a subclass, because Gradio writes a .pyi file next to the module of every subclass of a component.
    component.preprocess = preprocess  # type: ignore[method-assign]
    component.async_move_resource_to_block_cache = move_file_to_cache  # type: ignore[method-assign]
    return component


def _refused(got: str) -> gr.Error:
    return gr.Error(f"Image: expected an uploaded file, {got}; upload the image.", print_exception=False)
