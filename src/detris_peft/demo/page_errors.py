"""Errors as messages of one line on the page, for visitors and for programs that call its API."""

from __future__ import annotations

import errno
import html
import sys
import traceback
from collections.abc import Callable
from functools import wraps
from typing import Any

import gradio as gr
from gradio.exceptions import ComponentProcessingError

from ..errors import is_out_of_memory, one_line

_DISK_FULL = (errno.ENOSPC, errno.EDQUOT)


def shown(function: Callable[..., Any]) -> Callable[..., Any]:
    """Turn every error of a function into one line on the page."""

    @wraps(function)
    def wrapped(*arguments: Any) -> Any:
        try:
            return function(*arguments)
        except gr.Error:
            raise
        except Exception as error:
            raise _message(error) from None

    return wrapped


def show_errors_of_components(page: gr.Blocks) -> None:
    """Turn errors of a page's components, before and after the functions, into one line on the page.

    Without it, inputs of wrong types (from programs that call the API) write a traceback to the log, with the values
    that the visitor sent, and outputs that cannot be written are an error without text. Files are refused as inputs of
    components other than images: Gradio would download one that is a URL, and check one that is a path of the server.
    """
    preprocess, postprocess = page.preprocess_data, page.postprocess_data

    async def preprocess_data(block_fn: Any, inputs: list[Any], *args: Any, **kwargs: Any) -> Any:
        for block, value in zip(block_fn.inputs, inputs, strict=False):
            if isinstance(value, (dict, list)) and not isinstance(block, gr.Image):
                raise _wrong_inputs()
        try:
            return await preprocess(block_fn, inputs, *args, **kwargs)
        except gr.Error as error:
            error.print_exception = False
            raise
        except Exception as error:
            if is_out_of_memory(error) or isinstance(error, OSError):
                raise _message(error) from None
            raise _wrong_inputs() from None

    async def postprocess_data(*args: Any, **kwargs: Any) -> Any:
        try:
            return await postprocess(*args, **kwargs)
        except Exception as error:
            cause = error.__cause__ if isinstance(error, ComponentProcessingError) else None
            raise _message(cause if isinstance(cause, Exception) else error) from None

    page.preprocess_data = preprocess_data  # type: ignore[method-assign]
    page.postprocess_data = postprocess_data  # type: ignore[method-assign]


def _wrong_inputs() -> gr.Error:
    return gr.Error(
        "Inputs: expected those of the page, got a different number of them or other types; see the API's description "
        "at /gradio_api/info.",
        print_exception=False,
    )


def _message(error: Exception) -> gr.Error:
    """Return what visitors see; the log gets the details of errors that they cannot correct."""
    system = isinstance(error, OSError) and error.errno is not None  # its text could name paths of the server
    if is_out_of_memory(error):
        message = "The server has too little free memory for this image; use a smaller one or fewer sentences."
    elif isinstance(error, OSError) and error.errno in _DISK_FULL:
        print(f"demo: {one_line(error)}", file=sys.stderr)
        message = "The disk of the server is full; try again later."
    elif isinstance(error, (ValueError, OSError, TypeError)) and not system:
        message = one_line(error)
    else:
        traceback.print_exception(error, file=sys.stderr)
        message = "Unexpected error; the log of the server has the details."
    return gr.Error(html.escape(message, quote=False), print_exception=False)  # messages are shown as HTML
