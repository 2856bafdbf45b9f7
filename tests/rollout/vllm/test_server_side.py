"""What runs with the Python of vLLM's environment."""

import asyncio
import sys
from typing import Any

import pytest

from lcot_plugin.rollout.vllm.server_side import lcot_serve
from lcot_plugin.rollout.vllm.server_side.lcot_guard import Guard


@pytest.fixture
def guard(monkeypatch: pytest.MonkeyPatch) -> Guard:
    monkeypatch.setenv("VLLM_API_KEY", "secret")

    async def app(scope: dict[str, Any], receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})

    return Guard(app)


def ask(guard: Guard, path: str, *authorization: bytes, kind: str = "http") -> list[dict[str, Any]]:
    """What is sent back."""
    sent: list[dict[str, Any]] = []

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    headers = [(b"authorization", value) for value in authorization]
    asyncio.run(guard({"type": kind, "path": path, "headers": headers}, None, send))
    return sent


@pytest.mark.parametrize("path", ["/collective_rpc", "/sleep", "/v1/models", "/metrics", "/health/", "//health"])
def test_every_route_asks_for_the_key(guard: Guard, path: str) -> None:
    assert ask(guard, path, b"Bearer secret")[0]["status"] == 200
    for wrong in [(), (b"Bearer other",), (b"secret",), (b"Bearer secret", b"Bearer secret"), (b"",)]:
        assert ask(guard, path, *wrong)[0]["status"] == 401


def test_health_is_open(guard: Guard) -> None:
    assert ask(guard, "/health")[0]["status"] == 200


def test_a_websocket_without_the_key_is_closed(guard: Guard) -> None:
    assert ask(guard, "/v1/realtime", kind="websocket") == [{"type": "websocket.close", "code": 1008}]


def test_starting_and_ending_need_no_key(guard: Guard) -> None:
    async def send(message: dict[str, Any]) -> None:
        assert message["status"] == 200

    asyncio.run(guard({"type": "lifespan"}, None, send))


def test_a_distribution_called_vllm_is_started_by_its_command(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[list[str]] = []
    main = type(sys)("vllm.entrypoints.cli.main")
    main.main = lambda: seen.append(list(sys.argv))
    for name in ("vllm", "vllm.entrypoints", "vllm.entrypoints.cli"):
        monkeypatch.setitem(sys.modules, name, type(sys)(name))
    monkeypatch.setitem(sys.modules, "vllm.entrypoints.cli.main", main)
    monkeypatch.setattr(sys, "argv", ["lcot_serve.py"])
    monkeypatch.setattr(lcot_serve, "distribution", lambda name: name)
    lcot_serve.main(["model", "--port", "1"])
    assert seen == [["vllm", "serve", "model", "--port", "1"]]


def test_another_distribution_is_started_by_its_module(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[str, list[str]]] = []
    monkeypatch.setattr(sys, "argv", ["lcot_serve.py"])
    monkeypatch.setattr(lcot_serve.runpy, "run_module", lambda name, **settings: seen.append((name, sys.argv)))
    lcot_serve.main(["model", "--port", "1"])
    assert seen == [("vllm.entrypoints.openai.api_server", ["vllm", "--model", "model", "--port", "1"])]
