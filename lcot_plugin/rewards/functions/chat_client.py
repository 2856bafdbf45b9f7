"""A chat request in, the reply's text out, over an OpenAI-compatible URL; the judge model consumes it.

The standard library is enough for this, and is the same on every version of transformers.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import math
import os
import random
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from email.message import Message
from email.utils import parsedate_to_datetime
from typing import IO, Any

from lcot_plugin.errors import RewardError

_DEFAULT_KEY = "OPENAI_API_KEY"
_MAX_REPLY_BYTES = 4_000_000
_MAX_WAIT_SECONDS = 120.0
_ONE_REQUEST_ONLY = (400, 413, 422)
"""Refusals of what was sent, not of who sent it."""


class RequestFailed(RewardError):
    """No reply, after all retries."""

    def __init__(self, message: str, concerns_all: bool) -> None:
        super().__init__(message)
        self.concerns_all = concerns_all
        """Whether the next request would fail in the same way: no server, no right to use it."""


class ChatClient:
    """Makes chat requests, one at a time per calling thread.

    api_key_env: the environment variable that holds the key. timeout: seconds for one request. retries: further
    attempts. spend: called before each request with whether it is one made again; what it raises ends the attempt.
    """

    def __init__(
        self, url: str, api_key_env: str, timeout: float, retries: int, spend: Callable[[bool], None] = lambda _: None
    ) -> None:
        if not url.startswith(("http://", "https://")):
            raise RewardError(f"llm_judge: url={url!r} must begin with http:// or https://")
        if timeout <= 0:
            raise RewardError(f"llm_judge: timeout={timeout} must be more than 0 seconds")
        if retries < 0:
            raise RewardError(f"llm_judge: retries={retries} must not be negative")
        if "@" in url.partition("://")[2].partition("/")[0]:
            raise RewardError("llm_judge: url holds a user or a password; put the key into what api_key_env names")
        url = url.rstrip("/")
        self.url = url if url.endswith("/chat/completions") else f"{url}/chat/completions"
        key = os.environ.get(api_key_env, "").strip()
        if not key and api_key_env != _DEFAULT_KEY:
            raise RewardError(f"llm_judge: the environment variable {api_key_env} is not set; it must hold the API key")
        if not (key.isascii() and key.isprintable()) or " " in key:
            raise RewardError(
                f"llm_judge: the environment variable {api_key_env} holds characters that no API key has, a line break "
                "for instance; it must hold the key alone"
            )
        self._headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {key}"} if key else {})
        self._timeout, self._retries, self._spend = timeout, retries, spend
        self._opener = urllib.request.build_opener(_NoRedirects)

    def reply(self, body: Mapping[str, Any]) -> str:
        """The text of the first choice; fields of `body` that are None are not sent. Raises RequestFailed."""
        data = json.dumps({name: value for name, value in body.items() if value is not None}).encode()
        attempt = 0
        while True:
            self._spend(attempt > 0)
            try:
                return _text(self._post(data))
            except urllib.error.HTTPError as error:
                problem, wait = _refusal(error), _retry_after(error.headers)
                may_pass = error.code in (408, 409, 425, 429) or error.code >= 500
                if not may_pass or attempt >= self._retries:
                    raise RequestFailed(self._said(problem, attempt), error.code not in _ONE_REQUEST_ONLY) from None
            except (
                OSError,
                http.client.HTTPException,
                ValueError,
                RecursionError,
            ) as error:  # URLError and time-outs are OSErrors
                problem, wait = f"{type(error).__name__}: {error}", None
                if attempt >= self._retries:
                    # A reply that cannot be read is that of one answer; no connection is everybody's.
                    raise RequestFailed(self._said(problem, attempt), isinstance(error, OSError)) from None
            attempt += 1
            # Full jitter keeps the waiting requests of all processes from coming back at the same moment.
            backoff = random.uniform(0.0, min(_MAX_WAIT_SECONDS / 2, 0.5 * 2**attempt))
            time.sleep(backoff if wait is None else min(_MAX_WAIT_SECONDS, wait + 0.1 * backoff))

    def _post(self, data: bytes) -> bytes:
        deadline = time.monotonic() + self._timeout
        request = urllib.request.Request(self.url, data, self._headers)
        with self._opener.open(request, timeout=self._timeout) as response:
            # The socket's timeout begins anew with every byte.
            parts: list[bytes] = []
            while part := response.read1(65536):
                parts.append(part)
                if time.monotonic() > deadline:
                    raise TimeoutError(f"the reply was not complete after {self._timeout:g} s")
                if sum(map(len, parts)) > _MAX_REPLY_BYTES:
                    raise ValueError(f"the reply is longer than {_MAX_REPLY_BYTES} bytes")
        return b"".join(parts)

    def _said(self, problem: str, attempt: int) -> str:
        tries = "" if attempt == 0 else f", {attempt + 1} times"
        return f"the judge at {self.url} failed{tries}: {problem}"


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    """urllib would send the API key along to wherever a redirect points."""

    def redirect_request(
        self, req: urllib.request.Request, fp: IO[bytes], code: int, msg: str, headers: Message, newurl: str
    ) -> None:
        return None


def _refusal(error: urllib.error.HTTPError) -> str:
    said = b""
    with error, contextlib.suppress(OSError, http.client.HTTPException):
        said = error.read(500)
    return f"HTTP {error.code} {error.reason}: {said.decode(errors='replace')}"


def _text(reply: bytes) -> str:
    value = json.loads(reply)
    try:
        content = value["choices"][0]["message"]["content"]
    except (KeyError, IndexError, TypeError):
        raise ValueError(f"no choices[0].message.content in the reply {reply[:200]!r}") from None
    return content if isinstance(content, str) else ""


def _retry_after(headers: Message) -> float | None:
    """Seconds that the server asks to wait for, as a number or as a date."""
    value = headers.get("Retry-After")
    if value is None:
        return None
    try:
        seconds = float(value)
    except ValueError:
        try:
            seconds = parsedate_to_datetime(value).timestamp() - time.time()
        except (ValueError, OverflowError):
            return None
    return max(0.0, seconds) if math.isfinite(seconds) else None
