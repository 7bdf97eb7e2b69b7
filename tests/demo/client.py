"""A client of the page's API, over HTTP."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import httpx

META = {"_type": "gradio.FileData"}


def upload(address: str, file: Path) -> dict[str, Any]:
    """Upload a file; return the value of an image component."""
    response = httpx.post(f"{address}gradio_api/upload", files={"files": (file.name, file.read_bytes())}, timeout=60)
    response.raise_for_status()
    return {"path": response.json()[0], "orig_name": file.name, "meta": META}


def call(address: str, function: str, *inputs: Any) -> tuple[str, Any]:
    """Call a function of the page; return the last event ("complete" or "error") and its data."""
    url = f"{address}gradio_api/call/{function}"
    response = httpx.post(url, json={"data": inputs}, timeout=60)
    response.raise_for_status()
    events = httpx.get(f"{url}/{response.json()['event_id']}", timeout=300).text.strip().split("\n\n")
    event, data = events[-1].split("\n", 1)
    return event.removeprefix("event: "), json.loads(data.removeprefix("data: "))


def download(address: str, value: Any) -> bytes:
    """Download the file of an output."""
    value = value.get("value", value)
    response = httpx.get(f"{address}gradio_api/file={value['path']}", timeout=60)
    response.raise_for_status()
    return response.content
