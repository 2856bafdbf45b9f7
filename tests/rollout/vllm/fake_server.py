"""A server in a thread that answers as vLLM does, writes at random, and fails as it is told to.

`parts()` gives a tokenizer, a stand-in of the model's facts and prompts, `FakeServer` something to send them to.
"""

from __future__ import annotations

import json
import random
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import lru_cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace
from typing import Any
from urllib.parse import urlsplit

from PIL import Image
from twins import qwen_tokenizer

from lcot_plugin.rollout.vllm.client import VllmServer
from lcot_plugin.rollout.vllm.engine import VllmEngine
from lcot_plugin.rollout.vllm.requests import RequestFormat
from lcot_plugin.types import EncodedPrompt, PromptRecord

KEY = "a-secret-key"
IMAGE_TOKENS = 4
"""What every image costs."""
SUCCESS = 200
GENERATE = "/inference/v1/generate"
ROUTES = (
    *(GENERATE, "/health", "/openapi.json", "/v1/models", "/server_info", "/v1/load_lora_adapter"),
    *("/v1/unload_lora_adapter", "/collective_rpc", "/reset_prefix_cache", "/reset_mm_cache", "/update_weight_version"),
    *("/weight_info", "/sleep", "/wake_up"),
)


@lru_cache
def parts() -> SimpleNamespace:
    """Of a Qwen2.5-VL without a model: `tokenizer`, `vlm`, `ends`, `image`."""
    with TemporaryDirectory() as folder:
        tokenizer = qwen_tokenizer(Path(folder))
    ids = tokenizer.get_vocab()
    image = ids["<|image_pad|>"]
    vlm = SimpleNamespace(
        config=SimpleNamespace(model_type="qwen2_5_vl"),
        image_token_id=image,
        vocab_size=len(tokenizer) + 3,
        banned_token_ids=sorted({image, ids["<|video_pad|>"], *range(len(tokenizer), len(tokenizer) + 3)}),
    )
    return SimpleNamespace(
        tokenizer=tokenizer, vlm=vlm, ends=[ids["<|im_end|>"], ids["<|endoftext|>"]], image=image, ids=ids
    )


def prompt(text: str = "how many", num_images: int = 0, **settings: Any) -> EncodedPrompt:
    """With images of one colour each; `settings`: of the EncodedPrompt, and `videos`, `audios` of its record."""
    ids = parts().ids
    image = [ids["<|vision_start|>"], *[ids["<|image_pad|>"]] * IMAGE_TOKENS, ids["<|vision_end|>"]]
    token_ids = [ids["<|im_start|>"], *image * num_images, *parts().tokenizer.encode(text)]
    pictures = [Image.new("RGB", (8, 8), (index, 0, 0)) for index in range(num_images)]
    media = {key: settings.pop(key, []) for key in ("videos", "audios")}
    record = PromptRecord(token_ids, pictures, question=text, gold="3", source="problems", record=0, **media)
    return EncodedPrompt(record, {}, **settings)


def pictures_of(record: PromptRecord) -> list[Any]:
    return record.images


def request_format(**settings: Any) -> RequestFormat:
    values = {"images": pictures_of, "skip_special_tokens": True, **settings}
    return RequestFormat(parts().vlm, parts().tokenizer, parts().ends, **values)


class FakeSync:
    """A WeightSync that remembers what it was asked to do."""

    def __init__(self, servers: list[VllmServer], mode: str = "weights"):
        self.servers, self.mode = servers, mode
        self.version: int | None = None
        self.name = ""
        self.replays: list[VllmServer] = []
        self.unreached: set[VllmServer] = set()
        self.before_send: Callable[[], object] = lambda: None
        self.closed = 0

    def push(self, model: Any, accelerator: Any, version: int) -> None:
        self.version, self.name = version, f"policy-{version}"
        if accelerator.is_main_process:
            for server in self.servers:
                if server not in self.unreached:
                    self._send(server)

    def _send(self, server: VllmServer) -> None:
        self.before_send()
        if self.mode == "adapter":
            server.load_adapter(self.name, "/folder")
        else:
            server.set_weight_version(self.name)

    def is_current(self, server: VllmServer) -> bool:
        return server not in self.unreached

    def has_current(self, server: VllmServer) -> bool:
        if self.version is None:
            return True
        if self.mode == "adapter":
            return self.name in [model.name for model in server.models()]
        return server.weight_version() == self.name

    def replay(self, server: VllmServer) -> None:
        self.replays.append(server)
        self._send(server)

    def close(self) -> None:
        self.closed += 1


class FakeServer:
    """On a free loopback port. What it does is changed by its attributes at any time."""

    def __init__(self) -> None:
        self.bodies: list[dict[str, Any]] = []
        """Of all requests for completions."""
        self.asked: list[str] = []
        """Routes of all other requests, but for /health."""
        self.seconds = 0.0
        """That a request for completions takes."""
        self.waits_for = 0
        """Completions that must be, or have been, in flight at once before one is answered."""
        self.refused: dict[str, int] = {}
        """HTTP status by route."""
        self.failures: deque[int] = deque()
        """HTTP statuses of the next requests for completions."""
        self.message = "no reason"
        """What it says when it fails."""
        self.routes = list(ROUTES)
        self.fields = ["token_ids", "content_parts", "sampling_params"]
        self.vocab_size = parts().vlm.vocab_size
        self.max_model_len = 4096
        self.max_num_seqs = 256
        self.image_tokens = IMAGE_TOKENS
        self.raw_log_probs = False
        self.change: Callable[[dict[str, Any]], object] = lambda answer: None
        """Applied to every answer to a request for completions."""
        self.write: Callable[[dict[str, Any], int], tuple[list[int], str]] = random_text
        self.version, self.adapters = "default", set[str]()
        self.in_flight = self.most_in_flight = 0
        """Completions."""
        self.lock = threading.Lock()
        self._kills = threading.Lock()
        self._stopping = threading.Event()
        self._http: ThreadingHTTPServer | None = None
        self.start()

    def start(self) -> None:
        """Also after `kill`: at the same port, without what it had been told."""
        self._stopping.clear()
        self.version, self.adapters = "default", set()
        port = getattr(self, "port", 0)
        self._http = _Http(("127.0.0.1", port), _handler(self))
        self.port = self._http.server_address[1]
        self._thread = threading.Thread(target=self._http.serve_forever, kwargs={"poll_interval": 0.01})
        self._thread.start()

    def kill(self) -> None:
        """Closes every connection without an answer."""
        with self._kills:
            if self._http is None:
                return
            self._stopping.set()
            self._http.shutdown()
            self._thread.join()
            self._http.server_close()
            self._http = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def client(self, timeout: float = 10.0) -> VllmServer:
        return VllmServer(self.url, KEY, timeout)

    # --- answers ------------------------------------------------------------------------------------------------------

    def answer(self, route: str, body: dict[str, Any]) -> tuple[int, Any]:
        """Status and JSON."""
        if route not in self.routes:
            return 404, {"detail": "Not Found"}
        if route in self.refused:
            return self.refused[route], {"error": {"message": self.message}}
        if route == GENERATE:
            return self._generate(body)
        if route != "/health":
            self.asked.append(route)
        if route == "/v1/load_lora_adapter":
            self.adapters.add(body["lora_name"])
        elif route == "/v1/unload_lora_adapter":
            self.adapters.remove(body["lora_name"])
        elif route == "/update_weight_version":
            self.version = body["new_version"]
        answers: dict[str, Any] = {
            "/openapi.json": {
                "paths": {route: {} for route in self.routes},
                "components": {"schemas": {"GenerateRequest": {"properties": {field: {} for field in self.fields}}}},
            },
            "/v1/models": {"data": self._models()},
            "/server_info": {"vllm_config": {"scheduler_config": {"max_num_seqs": self.max_num_seqs}}},
            "/reset_prefix_cache": {"success": True},
            "/weight_info": {"weight_version": self.version},
        }
        return SUCCESS, answers.get(route, {})

    def _models(self) -> list[dict[str, Any]]:
        base = {"id": "policy", "max_model_len": self.max_model_len, "parent": None}
        return [base, *({"id": name, "max_model_len": None, "parent": "policy"} for name in sorted(self.adapters))]

    def _generate(self, body: dict[str, Any]) -> tuple[int, Any]:
        num = body["sampling_params"]["n"]
        with self.lock:
            self.bodies.append(body)
            self.in_flight += num
            self.most_in_flight = max(self.most_in_flight, self.in_flight)
            failure = self.failures.popleft() if self.failures else None
        version = self.version
        try:
            if self._stopping.wait(self.seconds):
                raise ConnectionAbortedError
            wait_until(lambda: self.most_in_flight >= self.waits_for)
        finally:
            with self.lock:
                self.in_flight -= num
        if failure is not None:
            return failure, {"error": {"message": self.message}}
        refusal = self._refusal(body)
        if refusal is not None:
            return refusal
        answer = self._completions(body, version)
        self.change(answer)
        return SUCCESS, answer

    def _refusal(self, body: dict[str, Any]) -> tuple[int, Any] | None:
        parameters = body["sampling_params"]
        outside = [int(token_id) for token_id in parameters.get("logit_bias", ()) if int(token_id) >= self.vocab_size]
        if outside:
            message = f"token_id(s) {outside} in logit_bias contain out-of-vocab token ids. Vocabulary size: "
            return 400, {"error": {"message": f"{message}{self.vocab_size}"}}
        if parameters["n"] > self.max_num_seqs:
            message = f"sampling_params.n must be at most the server's max_num_seqs ({self.max_num_seqs})"
            return 400, {"error": {"message": message}}
        if parameters["temperature"] == 0 and parameters["n"] > 1:
            return 400, {"error": {"message": "n must be 1 when using greedy sampling"}}
        if body.get("model", "policy") not in {"policy", *self.adapters}:
            return 404, {"error": {"message": f"The model `{body['model']}` does not exist."}}
        return None

    def _completions(self, body: dict[str, Any], version: str) -> dict[str, Any]:
        choices = []
        for index in range(body["sampling_params"]["n"]):
            token_ids, reason = self.write(body, index)
            logp = -3.0 if self.raw_log_probs else 0.0 if body["sampling_params"].get("top_k") == 1 else -0.5
            choices.append(
                {
                    "index": index,
                    "token_ids": token_ids,
                    "finish_reason": reason,
                    "stop_reason": token_ids[-1] if reason == "stop" else None,
                    "logprobs": {"content": [{"token_id": token_id, "logprob": logp} for token_id in token_ids]},
                    "weight_versions": [{"version": version, "start": 0, "end": len(token_ids)}],
                }
            )
        expanded = [
            token_id
            for collapsed in body["token_ids"]
            for token_id in [collapsed] * (self.image_tokens if collapsed == parts().image else 1)
        ]
        # Nothing promises an order.
        return {
            "choices": choices[::-1],
            "prompt_token_ids": expanded if body.get("return_token_ids") else None,
            "model": body.get("model", "policy"),
        }


def random_text(body: dict[str, Any], index: int) -> tuple[list[int], str]:
    """Decided by the request's seed: some words, and an end token where there is room."""
    parameters = body["sampling_params"]
    generator = random.Random(parameters.get("seed", 0) + index)
    words = parts().tokenizer.encode("the shape is a red circle so the answer equals three")
    token_ids = generator.choices(words, k=min(parameters["max_tokens"], generator.randint(1, 12)))
    if len(token_ids) < parameters["max_tokens"] and parameters.get("stop_token_ids"):
        return [*token_ids, parameters["stop_token_ids"][0]], "stop"
    return token_ids, "length"


class _Http(ThreadingHTTPServer):
    daemon_threads = False
    block_on_close = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Clients that go away are part of the tests."""


def _handler(server: FakeServer) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self._answer({})

        def do_POST(self) -> None:
            content = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            self._answer(json.loads(content) if content else {})

        def _answer(self, body: dict[str, Any]) -> None:
            route = urlsplit(self.path).path
            if route != "/health" and self.headers.get("Authorization") != f"Bearer {KEY}":
                status, answer = 401, {"error": "Unauthorized"}
            else:
                status, answer = server.answer(route, body)
            content = json.dumps(answer).encode()
            with suppress(OSError):
                self.send_response(status)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

        def log_message(self, format: str, *args: Any) -> None:
            pass

    return Handler


@contextmanager
def fake_servers(num: int = 1) -> Iterator[list[FakeServer]]:
    servers = [FakeServer() for _ in range(num)]
    try:
        yield servers
    finally:
        for server in servers:
            server.kill()


def make_engine(servers: list[FakeServer], *, timeout: float = 10.0, mode: str = "weights", **settings: Any) -> Any:
    """A VllmEngine of these; `warnings` is the list of what it said."""
    clients = [server.client(timeout) for server in servers]
    warnings: list[str] = []
    values = {"timeout": timeout, "say": warnings.append, "warn": warnings.append, **settings}
    engine = VllmEngine(
        clients, parts().vlm, parts().tokenizer, parts().ends, pictures_of, FakeSync(clients, mode), **values
    )
    return SimpleNamespace(engine=engine, clients=clients, warnings=warnings, sync=engine.sync)


class FakeProcess:
    """A VllmProcess of a FakeServer."""

    log_path = "vllm.log"

    def __init__(self, fake, client):
        self.fake, self.server, self.ended = fake, client, None
        self.restarts = self.stops = 0

    def poll(self):
        return self.ended

    def restart(self, look=lambda: None):
        look()
        self.restarts += 1
        self.fake.kill()
        self.fake.start()
        self.fake.seconds = 0.0
        self.ended = None
        return self.server

    def stop(self):
        self.stops += 1


def with_process(server, **settings):
    made = make_engine([server], **settings)
    made.process = made.engine.process = FakeProcess(server, made.clients[0])
    return made


MAIN_PROCESS = SimpleNamespace(is_main_process=True, num_processes=1, wait_for_everyone=lambda: None)


def wait_until(condition: Callable[[], bool], seconds: float = 20.0) -> None:
    """Fails where it does not come true; no test depends on how long it takes."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.005)
