"""The server of the page: limited requests, no network use of its own."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import gradio as gr
import torch
from starlette.middleware import Middleware

from ..prediction import DetrisPredictor
from .cleanup import old_files_removed
from .environment import environment_variables
from .limits import MAX_REQUEST_BYTES, DemoLimits
from .page import build_page
from .page_models import PageModel
from .page_style import CSS, page_theme
from .ports import free_port, unusable_address
from .request_limit import RequestLimit
from .sources import CheckpointSource, read_examples

_SESSIONS = 100  # number of visitors whose state Gradio keeps, about 0.2 MB each
_THREADS = 16


def load_page(
    sources: Sequence[CheckpointSource],
    examples: str | Path | None = None,
    limits: DemoLimits | None = None,
    device: str | None = None,
    dtype: str | torch.dtype | None = None,
) -> gr.Blocks:
    """Load one checkpoint, or two to compare, and return the page.

    Args:
        sources: the checkpoints.
        examples: folder of example images; see `read_examples`.
        limits: what visitors may send.
        device, dtype: see `DetrisPredictor`.

    Raises:
        OSError, ValueError: a checkpoint or the examples cannot be read.
    """
    chosen = read_examples(examples) if examples is not None else []
    models = [
        PageModel(
            source.title,
            DetrisPredictor.from_pretrained(
                source.name, device=device, dtype=dtype, revision=source.revision, subfolder=source.subfolder
            ),
        )
        for source in sources
    ]
    return build_page(models, chosen, limits)


def serve(
    load: Callable[[], gr.Blocks],
    host: str = "127.0.0.1",
    port: int = 7860,
    limits: DemoLimits | None = None,
    root_path: str = "",
    ready: Callable[[str], None] = print,
) -> None:
    """Serve a page until the process is interrupted (KeyboardInterrupt, SystemExit).

    Call it inside `gradio_environment`.

    Args:
        load: returns the page; called after the port was checked.
        host: address of this machine; the default is reachable from this machine only.
        port: the port; 0: any free one.
        limits: what visitors may send.
        root_path: path under which a reverse proxy publishes the page.
        ready: called with the page's address.

    Raises:
        OSError: the port is in use or not allowed, or the host is not an address of this machine.
    """
    free_port(host, port)
    page = load()
    address = start_page(page, host, port, limits, root_path)
    try:
        ready(address)
        threading.Event().wait()
    finally:
        page.close(verbose=False)


def start_page(
    page: gr.Blocks, host: str = "127.0.0.1", port: int = 7860, limits: DemoLimits | None = None, root_path: str = ""
) -> str:
    """Start the server in threads of its own and return the page's address. Stop it with `page.close()`.

    The arguments and errors are those of `serve`.
    """
    port = free_port(host, port)
    with _direct_connections(host):
        try:
            _, address, _ = page.launch(
                server_name=f"[{host}]" if ":" in host else host,  # IPv6
                server_port=port,
                root_path=root_path,
                prevent_thread_lock=True,
                quiet=True,
                **launch_options(limits or DemoLimits()),
            )
        except OSError as error:  # another program took the port meanwhile
            raise unusable_address(host, port, error) from None
    return address


def launch_options(limits: DemoLimits) -> dict[str, Any]:
    """Return the arguments of `gr.Blocks.launch` that do not depend on where the page runs."""
    return {
        "theme": page_theme(),
        "css": CSS,
        "footer_links": [],
        "run_history": False,
        "max_file_size": limits.max_upload_mb * 1_000_000,
        "max_threads": _THREADS,
        "state_session_capacity": _SESSIONS,
        "app_kwargs": {
            "middleware": [Middleware(RequestLimit, max_bytes=MAX_REQUEST_BYTES)],  # type: ignore[arg-type]
            "lifespan": old_files_removed,
            "docs_url": None,  # pages that load scripts from other servers
            "redoc_url": None,
        },
        "share": False,
        "ssr_mode": False,
        "mcp_server": False,
        "pwa": False,
        "enable_monitoring": False,
        "show_error": False,  # errors other than `gr.Error` could name paths of the server
    }


@contextmanager
def _direct_connections(host: str) -> Iterator[None]:
    """Exclude this machine from proxies: Gradio calls its own server once when it starts."""
    hosts = ",".join(filter(None, (os.environ.get("NO_PROXY"), "127.0.0.1", "localhost", "::1", host)))
    with environment_variables(NO_PROXY=hosts, no_proxy=hosts):
        yield
