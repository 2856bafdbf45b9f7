"""Asks for the API key on every route of a vLLM server: `vllm serve --middleware lcot_guard.Guard`.

vLLM itself asks for it on /v1 and /inference only. The routes of its development mode, which load weights from any
path and call any method of its workers, would be open to every user of the machine.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Awaitable, Callable, MutableMapping
from secrets import compare_digest
from typing import Any

OPEN_PATHS = ("/health",)


class Guard:
    """ASGI middleware."""

    def __init__(self, app: Callable[..., Awaitable[None]]) -> None:
        self.app = app
        self._expected = digest(b"Bearer " + os.environ["VLLM_API_KEY"].encode())

    async def __call__(self, scope: MutableMapping[str, Any], receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan" or scope.get("path") in OPEN_PATHS or self._allows(scope):
            await self.app(scope, receive, send)
        elif scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})
        else:
            headers = [(b"content-type", b"application/json")]
            await send({"type": "http.response.start", "status": 401, "headers": headers})
            await send({"type": "http.response.body", "body": b'{"error": "The API key is missing or wrong."}'})

    def _allows(self, scope: MutableMapping[str, Any]) -> bool:
        given = [value for name, value in scope["headers"] if name.lower() == b"authorization"]
        return len(given) == 1 and compare_digest(digest(given[0]), self._expected)


def digest(text: bytes) -> bytes:
    """Of equal length for every text, so that the time of a comparison tells nothing of it."""
    return hashlib.sha256(text).digest()
