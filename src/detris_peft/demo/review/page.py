"""The page that shows one object at a time. Its component asks the server for objects and images, and saves edits."""

from __future__ import annotations

import base64
import html
import sys
import traceback
from bisect import bisect_left
from collections.abc import Callable
from functools import wraps
from io import BytesIO
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import gradio as gr

from ...data.tools.review import (
    ChangedLineError,
    ReviewFolder,
    ReviewLine,
    SentenceEdit,
    sentence_items,
    sentence_text,
)
from ...errors import one_line
from ...visualization import overlay_thumbnail
from ..limits import DISPLAY_SIZE
from ..ports import is_loopback

_MIN_SIDE = 720  # longer side of the image that is shown, in pixels
_QUALITY = 90  # of its JPEG


def build_page(folder: ReviewFolder, title: str, host: str = "127.0.0.1") -> gr.Blocks:
    """Return the page.

    Args:
        folder: the objects.
        title: name of the dataset.
        host: address or host name that the page is served on.
    """
    actions = ReviewActions(folder)
    functions = [_answered(action, host) for action in (actions.show, actions.image, actions.save)]
    with gr.Blocks(title="DETRIS: review sentences and masks", analytics_enabled=False, fill_width=True) as page:
        gr.Markdown(
            f"# Review sentences and masks\nDataset: {html.escape(title)}. Every change is saved at once.",
            elem_id="page-title",
        )
        gr.HTML(
            html_template=_read("page.html"),
            css_template=_read("page.css"),
            js_on_load=_read("page.js"),
            apply_default_css=False,
            # Called as `server.show(request)`: these are the only functions of the page.
            server_functions=functions,
            elem_id="review",
        )
    return page


class ReviewActions:
    """What the component asks for. Nothing is kept between requests: they name the object and the text of its line.

    Args:
        folder: the objects.
    """

    def __init__(self, folder: ReviewFolder) -> None:
        self.folder = folder

    def show(self, request: dict[str, Any]) -> dict[str, Any]:
        """Return an object, chosen by position or relative to another one.

        Args:
            request: `split` ("" for all) and `flagged` (only flagged ones) choose among which objects; `position`
                counts from 1; `file`, `number` and `step` go forward or back from an object.

        Returns:
            {"object": see `_as_json`, or None if there is none, "message": str, "splits": list of str}
        """
        split, flagged = request.get("split"), request.get("flagged")
        lines = self.folder.lines()
        chosen = [line for line in lines if line.split == (split or line.split) and (line.bad_mask or not flagged)]
        answer: dict[str, Any] = {"object": None, "message": "", "splits": self.folder.splits}
        if not chosen:
            return {**answer, "message": "No object is flagged." if flagged and lines else "No object was found."}
        files = [*dict.fromkeys(line.file for line in lines)]
        keys = [(files.index(line.file), line.number) for line in chosen]
        position, step = _integer(request, "position"), _integer(request, "step")
        if position:
            target = position - 1
        elif request.get("file") in files:
            here = files.index(request["file"]), _integer(request, "number")
            found = bisect_left(keys, here)
            # An object that the filter hides is between two others.
            hidden = found == len(keys) or keys[found] != here
            target = found + step - (hidden and step > 0)
        else:
            target = 0
        index = min(max(target, 0), len(chosen) - 1)
        if step and target != index:
            answer["message"] = f"This is the {'last' if step > 0 else 'first'} object."
        return {**answer, "object": {**self._as_json(chosen[index]), "position": index + 1, "count": len(chosen)}}

    def image(self, request: dict[str, Any]) -> dict[str, Any]:
        """Return the image of an object as a data URL: {"url": str}.

        Args:
            request: `file` and `number` of the object; `mask`: whether its mask is drawn.
        """
        image, mask = self.folder.image_and_mask(self._line(request))
        side = min(max(*image.size, _MIN_SIDE), DISPLAY_SIZE)
        shown = overlay_thumbnail(image, mask if request.get("mask") and mask.any() else None, (side, side))
        buffer = BytesIO()
        shown.save(buffer, "JPEG", quality=_QUALITY)
        return {"url": f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}"}

    def save(self, request: dict[str, Any]) -> dict[str, Any]:
        """Change an object and save its file.

        Args:
            request: `file`, `number` and `version` of the object, all its `sentences` as pairs (see `edit_line`), and
                `bad_mask`.

        Returns:
            {"number": int, "version": str, "indices": list, "messages": {position: str}}; if another reviewer changed
            the object, {"error": str, "object": the current one}.
        """
        sentences = _sentence_edits(request.get("sentences"))
        name, number = str(request.get("file")), _integer(request, "number")
        try:
            line, edit = self.folder.edit(
                name, number, str(request.get("version")), sentences, request.get("bad_mask") is True
            )
        except ChangedLineError as error:
            return {"error": one_line(error), "object": self._as_json(self._line(request))}
        messages = {str(position): _printable(message) for position, message in edit.messages.items()}
        return {"number": line.number, "version": line.version, "indices": edit.indices, "messages": messages}

    def _line(self, request: dict[str, Any]) -> ReviewLine:
        name, number = request.get("file"), _integer(request, "number")
        for line in self.folder.lines():
            if (line.file, line.number) == (name, number):
                return line
        raise ValueError(f"line {number}: expected a line of the dataset, found none; reload the page.")

    def _as_json(self, line: ReviewLine) -> dict[str, Any]:
        content = self.folder.content(line)
        error = ""
        try:
            sentences = [_printable(sentence_text(item)) for item in sentence_items(content, f"line {line.number}")]
        except ValueError as problem:
            sentences, error = [], one_line(problem)
        return {
            "file": line.file,
            "number": line.number,
            "version": line.version,
            "split": _printable(line.split),
            "name": _printable(str(content.get("file_name"))),
            "category": _printable(category) if isinstance(category := content.get("category"), str) else "",
            "sentences": sentences,
            "bad_mask": line.bad_mask,
            "no_target": content.get("no_target") is True,
            "error": error,
        }


def _answered(action: Callable[[dict[str, Any]], dict[str, Any]], host: str) -> Callable[..., dict[str, Any]]:
    """Return a function of the component that answers errors with {"error": message}."""

    @wraps(action)
    def answered(data: Any, request: gr.Request) -> dict[str, Any]:
        try:
            if not isinstance(data, dict) or not _is_from_this_page(request, host):
                raise ValueError(
                    "request: expected one of this page, got another one; open the address that the command printed."
                )
            return action(data)
        except (ValueError, OSError) as error:
            return {"error": _printable(one_line(error))}
        except Exception as error:
            traceback.print_exception(error, file=sys.stderr)
            return {"error": "Unexpected error; the log of the server has the details."}

    # The signature is that of `answered`: Gradio passes the request to functions that ask for it.
    del answered.__wrapped__
    answered.__annotations__ = {"data": Any, "request": gr.Request}
    return answered


def _is_from_this_page(request: gr.Request, host: str) -> bool:
    """Return whether a request does not come from a page of another site that the reviewer has open.

    Such a page has another origin. Its host name may also lead to this machine (DNS rebinding), so that a connection
    within this machine must name `host`, localhost or a loopback address.
    """
    origin, requested = request.headers.get("origin"), request.headers.get("host", "")
    name = urlsplit(f"//{requested}").hostname or ""
    if is_loopback(request.scope["server"][0]) and not (is_loopback(name) or name == host.lower()):
        return False
    return origin is None or urlsplit(origin).netloc == requested


def _sentence_edits(value: Any) -> list[SentenceEdit]:
    edits = []
    for pair in value if isinstance(value, list) else [None]:
        if not isinstance(pair, list) or len(pair) != 2 or not isinstance(pair[1], (str, type(None))):
            raise ValueError("sentences: expected pairs of an index and a text, got something else; reload the page.")
        edits.append((pair[0], pair[1]))
    return edits


def _integer(request: dict[str, Any], name: str) -> int:
    value = request.get(name) or 0
    if type(value) is not int:
        raise ValueError(f"{name}: expected an integer, got something else; reload the page.")
    return value


def _read(name: str) -> str:
    return Path(__file__).with_name(name).read_text(encoding="utf-8")


def _printable(text: str) -> str:
    """Return a text that can be sent: half of a surrogate pair becomes a question mark."""
    return text.encode("utf-8", "replace").decode("utf-8")
