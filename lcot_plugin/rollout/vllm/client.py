"""One vLLM server over HTTP.

In: JSON bodies. Out: the server's JSON. Consumed by the engine, which asks several of these from many threads, by the
weight sync and by the checks before the first step. Every failure is one of three: the server is gone (ask again, or
another one), its weights are not those asked for (send them again), or it refuses (the user must change something).
"""

from __future__ import annotations

import contextlib
import re
import socket
import threading
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit
from weakref import WeakSet

import requests
from requests.adapters import HTTPAdapter
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.connectionpool import HTTPConnectionPool, HTTPSConnectionPool

from lcot_plugin.errors import ArgumentError, RolloutError

CONNECT_SECONDS = 10.0
HEALTH_SECONDS = 5.0
INFO_SECONDS = 120.0
"""vLLM collects facts about its machine for /server_info, which takes seconds."""
WEIGHT_SECONDS = 1800.0
"""For a reload from disk of a model of tens of gigabytes."""
MAX_CONNECTIONS = 1024

HINTS = {
    "/inference/v1/generate": "start it with --enable-scale-out; a vLLM that does not know this argument is too old "
    "(docs/vllm.md names the version)",
    "/v1/load_lora_adapter": "start it with VLLM_ALLOW_RUNTIME_LORA_UPDATING=True in its environment and with "
    "--enable-lora --max-lora-rank RANK, or write `grpo_vllm_sync: weights`",
    "/collective_rpc": "start it with VLLM_SERVER_DEV_MODE=1 in its environment, or train a LoRA adapter with "
    "`grpo_vllm_sync: adapter`",
    "/update_weight_version": "start it with VLLM_SERVER_DEV_MODE=1 in its environment; where it has that, install the "
    "vLLM that docs/vllm.md names",
    "/reset_prefix_cache": "start it with VLLM_SERVER_DEV_MODE=1 in its environment",
    "/sleep": "start it with VLLM_SERVER_DEV_MODE=1 in its environment and with --enable-sleep-mode",
    "/wake_up": "start it with VLLM_SERVER_DEV_MODE=1 in its environment and with --enable-sleep-mode",
}
"""What to do where a server does not have a route."""


class ServerGone(RolloutError):
    """No answer, or one that says the server itself failed: asking again, or another server, may help."""

    def __init__(self, message: str, *, answering: bool = False) -> None:
        super().__init__(message)
        self.answering = answering
        """Whether the server answered: it is there, but failed at this."""


class StaleWeights(RolloutError):
    """The server does not have the weights asked for, as after a restart."""


@dataclass(frozen=True)
class ServedModel:
    """One line of /v1/models."""

    name: str
    max_model_len: int | None
    """None for adapters."""
    parent: str | None
    """The base model of an adapter; None for a base model."""


@dataclass(frozen=True)
class Capabilities:
    """What a server offers by its own description."""

    routes: frozenset[str] | None
    """None where the server does not describe itself (--disable-fastapi-docs)."""
    generate_fields: frozenset[str]
    """Fields of a request to /inference/v1/generate; empty where not described."""

    def offers(self, route: str) -> bool:
        """Whether there is this route; True where the server does not say."""
        return self.routes is None or route in self.routes


@dataclass(eq=False)
class OpenConnections:
    """The sockets that threads wait at, so that another thread can wake them: there is no other way to stop waiting for
    an answer."""

    connections: WeakSet[HTTPConnection] = field(default_factory=WeakSet)
    lock: threading.Lock = field(default_factory=threading.Lock)
    aborted: bool = False

    def add(self, connection: HTTPConnection) -> None:
        with self.lock:
            if not self.aborted:
                self.connections.add(connection)
                return
        connection.close()
        raise ConnectionAbortedError("the rollout was stopped")

    def abort(self) -> None:
        """Ends all requests now, and those made from now on, with an error in their threads."""
        with self.lock:
            self.aborted = True
            waiting = [connection.sock for connection in self.connections if connection.sock is not None]
        for sock in waiting:
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)

    def reopen(self) -> None:
        with self.lock:
            self.aborted = False


def tracking_adapter(opened: OpenConnections) -> HTTPAdapter:
    """An adapter whose connections are in `opened`."""

    class Plain(HTTPConnection):
        def connect(self) -> None:
            super().connect()
            opened.add(self)

    class Secure(HTTPSConnection):
        def connect(self) -> None:
            super().connect()
            opened.add(self)

    class PlainPool(HTTPConnectionPool):
        ConnectionCls = Plain

    class SecurePool(HTTPSConnectionPool):
        ConnectionCls = Secure

    adapter = HTTPAdapter(pool_maxsize=MAX_CONNECTIONS)
    adapter.poolmanager.pool_classes_by_scheme = {"http": PlainPool, "https": SecurePool}
    return adapter


class VllmServer:
    """Safe to use from several threads."""

    def __init__(self, url: str, api_key: str | None = None, timeout: float = 600.0) -> None:
        """timeout: seconds that one request for completions may take."""
        parts = urlsplit(url)
        if parts.username or parts.password:
            raise ArgumentError(
                "grpo_vllm_url holds a user or a password: put the server's key into the environment variable that "
                "grpo_vllm_api_key_env names."
            )
        if api_key and not (api_key.isascii() and api_key.isprintable() and " " not in api_key):
            raise ArgumentError(
                "The environment variable that grpo_vllm_api_key_env names holds characters that no API key has, a "
                "line break for instance: it must hold the key alone."
            )
        self.url, self.timeout = url.rstrip("/"), timeout
        self.reload_method = "reload_weights"
        """Of the server's workers; a server that we start has one that does more."""
        self._key = api_key or ""
        self._opened = OpenConnections()
        self._session = requests.Session()
        # A proxy of the environment is for the internet, and .netrc would replace the key.
        self._session.trust_env = False
        for scheme in ("http://", "https://"):
            self._session.mount(scheme, tracking_adapter(self._opened))
        # A kept connection that the server closes at that very moment looks like a server that is gone.
        self._session.headers["Connection"] = "close"
        if self._key:
            self._session.headers["Authorization"] = f"Bearer {self._key}"

    def __repr__(self) -> str:
        return f"VllmServer({self.url!r})"

    def __getstate__(self) -> dict[str, Any]:
        raise TypeError("a VllmServer holds an API key and is not pickled: pass its url, and the key apart from it")

    # --- asking -------------------------------------------------------------------------------------------------------

    def health(self) -> bool:
        """Whether the server answers and its engine lives."""
        try:
            self._ask("GET", "/health", seconds=HEALTH_SECONDS)
        except RolloutError:
            return False
        return True

    def capabilities(self) -> Capabilities:
        """From /openapi.json. Raises ServerGone."""
        try:
            described = self._ask("GET", "/openapi.json", seconds=INFO_SECONDS)
        except ServerGone:
            raise
        except RolloutError:
            return Capabilities(None, frozenset())
        requests_described = described.get("components", {}).get("schemas", {}).get("GenerateRequest", {})
        return Capabilities(frozenset(described.get("paths", ())), frozenset(requests_described.get("properties", ())))

    def models(self) -> list[ServedModel]:
        """The base model first, then its adapters. Raises ServerGone, RolloutError."""
        listed = self._ask("GET", "/v1/models", seconds=INFO_SECONDS)
        try:
            return [ServedModel(card["id"], card.get("max_model_len"), card.get("parent")) for card in listed["data"]]
        except (KeyError, TypeError):
            raise RolloutError(f"{self.url} is no vLLM server: /v1/models gives {str(listed)[:200]}.") from None

    def server_info(self) -> dict[str, Any]:
        """The server's configuration; only where it runs with VLLM_SERVER_DEV_MODE=1. Raises as `models`."""
        return self._ask("GET", "/server_info", params={"config_format": "json"}, seconds=INFO_SECONDS)

    def generate(self, body: dict[str, Any]) -> dict[str, Any]:
        """Completions of one prompt, as /inference/v1/generate gives them. Raises ServerGone, StaleWeights where the
        adapter that `body` names is not there, RolloutError."""
        return self._ask("POST", "/inference/v1/generate", json=body, seconds=self.timeout)

    # --- weights ------------------------------------------------------------------------------------------------------

    def load_adapter(self, name: str, path: str) -> None:
        """path: a folder on the server's machine."""
        body = {"lora_name": name, "lora_path": path}
        self._ask("POST", "/v1/load_lora_adapter", json=body, seconds=WEIGHT_SECONDS)

    def unload_adapter(self, name: str) -> None:
        self._ask("POST", "/v1/unload_lora_adapter", json={"lora_name": name}, seconds=WEIGHT_SECONDS)

    def reload_weights(self, path: str) -> None:
        """path: a folder of safetensors on the server's machine, under the names of the model's checkpoint."""
        body = {"method": self.reload_method, "kwargs": {"weights_path": path}}
        self._ask("POST", "/collective_rpc", json=body, seconds=WEIGHT_SECONDS)

    def set_weight_version(self, version: str) -> None:
        """Every completion from now on is labelled with it."""
        self._ask("POST", "/update_weight_version", json={"new_version": version}, seconds=INFO_SECONDS)

    def weight_version(self) -> str | None:
        """The label of completions; None where the server has none. Raises ServerGone."""
        try:
            version = self._ask("GET", "/weight_info", seconds=INFO_SECONDS).get("weight_version")
        except ServerGone:
            raise
        except RolloutError:
            return None
        return version if isinstance(version, str) else None

    def reset_caches(self) -> None:
        """Forgets what was computed with other weights: prefixes, preprocessed images, image features."""
        done = self._ask("POST", "/reset_prefix_cache", seconds=INFO_SECONDS)
        if done.get("success") is False:
            raise ServerGone(
                f"{self.url} could not empty its prefix cache, since it still writes completions.", answering=True
            )
        self._ask("POST", "/reset_mm_cache", seconds=INFO_SECONDS)
        if self.capabilities().offers("/reset_encoder_cache"):
            self._ask("POST", "/reset_encoder_cache", seconds=INFO_SECONDS)

    def sleep(self) -> None:
        """Gives the device's memory back; weights go to the host's."""
        self._ask("POST", "/sleep", params={"level": "1"}, seconds=WEIGHT_SECONDS)

    def wake(self) -> None:
        self._ask("POST", "/wake_up", seconds=WEIGHT_SECONDS)

    # --- stopping -----------------------------------------------------------------------------------------------------

    def abort(self) -> None:
        """Ends the requests of other threads now, and every further one until `reopen`: they raise ServerGone. vLLM
        drops a request whose connection is closed."""
        self._opened.abort()

    def reopen(self) -> None:
        self._opened.reopen()

    # --- the wire -----------------------------------------------------------------------------------------------------

    def _ask(
        self,
        method: str,
        route: str,
        *,
        seconds: float,
        json: dict[str, Any] | None = None,
        params: dict[str, str] | None = None,
    ) -> dict[str, Any]:
        """The answer's JSON object; empty where it is none."""
        try:
            response = self._session.request(
                method,
                self.url + route,
                json=json,
                params=params,
                timeout=(min(CONNECT_SECONDS, seconds), seconds),
                allow_redirects=False,  # the key must not go elsewhere
            )
        except requests.Timeout:
            raise ServerGone(f"{self.url} did not answer {route} within {seconds:g} s.") from None
        except requests.RequestException as error:
            raise ServerGone(f"{self.url} cannot be reached at {route}: {self._reason(error)}.") from None
        if response.status_code != 200:
            raise self._failure(response, route)
        if not response.content:
            return {}
        try:
            answer = response.json()
        except ValueError:
            answer = None
        return answer if isinstance(answer, dict) else {}

    def _reason(self, error: BaseException) -> str:
        """The innermost error's words: requests and urllib3 wrap it three times, with addresses of objects."""
        seen: BaseException = error
        while (inner := seen.__cause__ or seen.__context__) is not None:
            seen = inner
        return self._without_key(f"{type(seen).__name__} {seen}".strip())

    def _without_key(self, text: str) -> str:
        return text.replace(self._key, "(key)") if self._key else text

    def _failure(self, response: requests.Response, route: str) -> RolloutError:
        """What to raise for an answer other than 200."""
        status, said = response.status_code, self._without_key(_message(response))
        if status >= 500 or status in (408, 425, 429):
            return ServerGone(f"{self.url}{route} failed with HTTP {status}: {said}", answering=True)
        if status == 403 and "--enable-scale-out" in said:  # vLLM's words for a route that is switched off
            return RolloutError(f"{self.url} does not take token ids: start it with --enable-scale-out.")
        if status in (401, 403):
            return RolloutError(
                f"{self.url} refuses the API key (HTTP {status}): the environment variable that grpo_vllm_api_key_env "
                "names (VLLM_API_KEY by default) must hold the key that the server was started with."
            )
        if route == "/inference/v1/generate" and re.search(r"model .* does not exist", said):
            return StaleWeights(f"{self.url} does not have the adapter that was asked for: {said}")
        if status in (404, 405) and not re.search(r"lora|adapter", said, re.IGNORECASE):
            hint = HINTS.get(route, "is it a vLLM server?")
            return RolloutError(f"{self.url} has no route {route} (HTTP {status}): {hint}.")
        if "max_num_seqs" in said:
            return RolloutError(
                f"{self.url} writes fewer completions at once than grpo_num_generations: {said} Start it with "
                "--max-num-seqs of at least grpo_num_generations, or set grpo_rollout_batch_size to its max_num_seqs."
            )
        return RolloutError(f"{self.url} refuses {route} (HTTP {status}): {said}")


def _message(response: requests.Response) -> str:
    """What the server says about an error, at most 2,000 characters."""
    try:
        said = response.json()
    except ValueError:
        said = response.text
    if isinstance(said, dict):
        error = said.get("error", said)
        said = error.get("message", error.get("detail", error)) if isinstance(error, dict) else error
    return str(said).strip()[:2000] or "(no message)"
