"""A limit on the size of requests; Gradio limits only that of uploaded files."""

from __future__ import annotations

from typing import Any

_UPLOADS = ("/upload", "/upload/")


class RequestLimit:
    """ASGI application that answers requests with a body of more than `max_bytes` with status 413.

    Uploads pass: they have a limit of their own.

    Args:
        application: the ASGI application that answers the other requests.
        max_bytes: maximum size of a request's body.
    """

    def __init__(self, application: Any, max_bytes: int) -> None:
        self.application = application
        self.max_bytes = max_bytes

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http" or scope["method"] in ("GET", "HEAD") or scope["path"].endswith(_UPLOADS):
            await self.application(scope, receive, send)
            return
        messages, size = [], 0
        while True:  # the body is read before the application starts, so that it can still be refused
            message = await receive()
            messages.append(message)
            size += len(message.get("body", b""))
            if size > self.max_bytes:
                await send({"type": "http.response.start", "status": 413, "headers": [(b"connection", b"close")]})
                await send({"type": "http.response.body", "body": b"The request is too large."})
                return
            if not message.get("more_body"):
                break

        async def replay() -> Any:
            return messages.pop(0) if messages else await receive()

        await self.application(scope, replay, send)
