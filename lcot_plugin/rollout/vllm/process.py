"""A vLLM server that the training starts, watches and stops.

In: the Python of vLLM's environment, a model's folder, settings. Out: a `VllmServer` that answers. The server listens
on the loopback interface only and asks for a key made for it; it is gone when the training is, however that ended.
"""

from __future__ import annotations

import os
import re
import secrets
import shlex
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from lcot_plugin.errors import RolloutError
from lcot_plugin.rollout.vllm.client import VllmServer
from lcot_plugin.rollout.vllm.server_side import lcot_guard, lcot_launch, lcot_serve, lcot_worker

SERVED_NAME = "policy"
"""What the model is called in requests."""

LORA_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)
"""Values that `--max-lora-rank` takes."""

CPU_CACHE_GIB = 4
"""Keys and values of a server on the CPU; vLLM's own default is half of the memory."""

PROGRESS_SECONDS = 15.0
POLL_SECONDS = 0.25
TAIL_LINES = 20
TAIL_BYTES = 64 * 1024
ERROR_LINE = re.compile(r"\b(\w+(?:Error|Exception|Interrupt): .*|.*[Nn]o space left.*|.*out of memory.*)")

LEFT_OUT = re.compile(
    # Of the training's own interpreter.
    r"PYTHON(PATH|HOME|STARTUP|WARNINGS)$"
    # Of torchrun and accelerate: vLLM would take its processes for ranks of the training.
    r"|(LOCAL_|GROUP_|ROLE_)?(RANK|WORLD_SIZE)$|ROLE_NAME$|MASTER_(ADDR|PORT)$|TORCHELASTIC_|ACCELERATE_|TORCH_NCCL_"
    # Expandable segments, which users set against fragmentation in training, do not go with vLLM's sleep mode.
    r"|PYTORCH_(CUDA_)?ALLOC_CONF$"
)
"""Environment variables of the training that the server must not see."""


@dataclass(frozen=True)
class ServerSettings:
    """How a server is started."""

    devices: str | None = None
    """CUDA devices, for example `6,7`; None for those that the training sees."""
    tensor_parallel: int = 1
    memory: float = 0.4
    """Share of a device's memory."""
    max_model_len: int | None = None
    """Tokens of a prompt with its completion; None for the model's own limit."""
    max_lora_rank: int | None = None
    """None: no adapters will be loaded."""
    sleep: bool = False
    """Whether the server will be put to sleep during the update. CUDA only."""
    extra_args: str | None = None
    """Further arguments of `vllm serve`, as on a command line; they come last and so override
    those written here."""
    start_timeout: float = 900.0
    """Seconds until it must be ready."""
    dtype: str = "auto"
    trust_remote_code: bool = False
    request_timeout: float = 600.0
    """Seconds that a request may take."""
    stop_timeout: float = 20.0
    """Seconds until a server that does not end is killed."""

    def arguments(self, port: int) -> list[str]:
        """Those of `vllm serve`, behind the model."""
        arguments = [
            *("--host", "127.0.0.1", "--port", str(port)),
            *("--served-model-name", SERVED_NAME),
            *("--dtype", self.dtype),
            *("--tensor-parallel-size", str(self.tensor_parallel)),
            *("--gpu-memory-utilization", str(self.memory)),
            "--enable-scale-out",  # the route for token ids
            # The distribution that tokens are drawn from, which importance ratios are taken against.
            *("--logprobs-mode", "processed_logprobs"),
            # The model's generation_config.json would fill in what a request leaves out.
            *("--generation-config", "vllm"),
            *("--middleware", f"{Path(lcot_guard.__file__).stem}.{lcot_guard.Guard.__name__}"),
            *("--worker-extension-cls", f"{Path(lcot_worker.__file__).stem}.{lcot_worker.Reloads.__name__}"),
            *("--uvicorn-log-level", "warning"),  # else a line per request
        ]
        if self.max_model_len is not None:
            arguments += ["--max-model-len", str(self.max_model_len)]
        if self.max_lora_rank is not None:
            # Two: the next version is loaded before the one in use is unloaded.
            arguments += ["--enable-lora", "--max-lora-rank", str(served_rank(self.max_lora_rank)), "--max-loras", "2"]
        if self.sleep:
            arguments.append("--enable-sleep-mode")
        if self.trust_remote_code:
            arguments.append("--trust-remote-code")
        return [*arguments, *shlex.split(self.extra_args or "")]

    def environment(self, base: Mapping[str, str], python: Path, api_key: str) -> dict[str, str]:
        """`base`: the training's environment."""
        environment = {name: value for name, value in base.items() if not LEFT_OUT.match(name)}
        environment |= {
            "VLLM_API_KEY": api_key,  # on a command line, every user of the machine could read it
            "VLLM_SERVER_DEV_MODE": "1",
            "VLLM_NO_USAGE_STATS": "1",
            "PYTHONUNBUFFERED": "1",
            # Kernels that are compiled on first use look for their tools here.
            "PATH": os.pathsep.join([str(python.parent), base.get("PATH", os.defpath)]),
        }
        if self.max_lora_rank is not None:
            environment["VLLM_ALLOW_RUNTIME_LORA_UPDATING"] = "True"
        environment.setdefault("VLLM_CPU_KVCACHE_SPACE", str(CPU_CACHE_GIB))
        if self.devices is not None:
            environment["CUDA_VISIBLE_DEVICES"] = self.devices
        return environment


def served_rank(rank: int) -> int:
    """The smallest `--max-lora-rank` that serves adapters of this rank. Raises RolloutError where none does."""
    found = next((served for served in LORA_RANKS if served >= rank), None)
    if found is None:
        raise RolloutError(
            f"vLLM serves LoRA adapters up to rank {LORA_RANKS[-1]}, this one has {rank}: write "
            "`grpo_vllm_sync: weights`."
        )
    return found


def free_port() -> int:
    """A port of the loopback interface that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def nothing() -> None:
    """Where nobody has to look at anything while a server starts."""


def exit_code(process: subprocess.Popen[bytes]) -> int | None:
    """None while a launcher runs; where it has ended, nothing is left of what it started."""
    code = process.poll()
    if code is not None:
        # Only where somebody killed the launcher itself is there anything left.
        lcot_launch.signal_session(process.pid, signal.SIGKILL)
    return code


class VllmProcess:
    """One server. Methods may be called from any thread."""

    def __init__(
        self,
        python: str | Path,
        model_path: str | Path,
        *,
        settings: ServerSettings,
        log_path: Path,
        say: Callable[[str], None] = print,
    ) -> None:
        """`python`: that of vLLM's environment. `model_path`: a model's folder. `log_path`: the server's output is
        appended to it."""
        self.python = Path(os.path.abspath(os.path.expanduser(python)))  # a link in a virtual environment stays one
        self.model_path = model_path
        self.settings = settings
        self.log_path = log_path
        self._say = say
        self._starting = threading.RLock()
        """Held by a start, which may take minutes."""
        self._lock = threading.Lock()
        """Of the two below; never held for long."""
        self._process: subprocess.Popen[bytes] | None = None
        self._stopped = False
        self._log_start = 0
        self.api_key = secrets.token_urlsafe(32)
        self._port = free_port()
        self.server = VllmServer(f"http://127.0.0.1:{self._port}", self.api_key, settings.request_timeout)
        """The same object after a restart."""
        self.server.reload_method = lcot_worker.Reloads.lcot_reload_weights.__name__
        self._environment = settings.environment(os.environ, self.python, self.api_key)

    def start(self, look: Callable[[], object] = nothing) -> VllmServer:
        """Starts the server and waits until it answers. look: called again and again meanwhile; what it raises ends the
        start.

        Raises RolloutError, with the end of the server's log, where it ends or is not ready in time; also where
        another thread has called `stop`.
        """
        with self._starting:
            assert self._process is None, "started already"
            if not os.access(self.python, os.X_OK):
                raise RolloutError(
                    f"grpo_vllm_python: {self.python} is not an executable file: give the Python of the environment "
                    "that vLLM is installed in, for example DIR/bin/python after `lcot vllm install DIR`."
                )
            process = self._launch()
            try:
                self._wait_until_ready(process, look)
            except BaseException:
                self._end()
                raise
            return self.server

    def _launch(self) -> subprocess.Popen[bytes]:
        serve = [str(self.python), lcot_serve.__file__, str(self.model_path), *self.settings.arguments(self._port)]
        launch = [str(self.python), "-I", lcot_launch.__file__, str(os.getpid()), str(self.settings.stop_timeout)]
        self.log_path.parent.mkdir(parents=True, exist_ok=True)
        with self._lock, self.log_path.open("ab") as log:
            self._check_wanted()
            log.write(f"--- {time.strftime('%Y-%m-%d %H:%M:%S')} {' '.join(serve)}\n".encode())
            log.flush()
            self._log_start = log.tell()
            self._process = subprocess.Popen(
                [*launch, *serve],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=self._environment,
                start_new_session=True,
            )
            return self._process

    def _check_wanted(self) -> None:
        if self._stopped:
            raise RolloutError("The vLLM server was stopped while it was starting.")

    def _wait_until_ready(self, process: subprocess.Popen[bytes], look: Callable[[], object]) -> None:
        begin = said = time.monotonic()
        self._say(f"vLLM is starting on {self.server.url}; its log is {self.log_path}")
        while True:
            healthy = self.server.health()
            code = exit_code(process)  # asked afterwards: another server may have answered at this port
            self._check_wanted()
            if code is not None:
                raise RolloutError(f"vLLM ended with exit code {code} before it was ready.{self._log_excerpt()}")
            if healthy:
                break
            look()
            now = time.monotonic()
            if now - begin > self.settings.start_timeout:
                raise RolloutError(
                    f"vLLM was not ready after {self.settings.start_timeout:g} seconds: raise grpo_vllm_start_timeout "
                    f"if it only needs longer.{self._log_excerpt()}"
                )
            if now - said >= PROGRESS_SECONDS:
                said = now
                self._say(f"vLLM is starting, {now - begin:.0f} s: {self._last_line()}")
            time.sleep(POLL_SECONDS)
        self._say(f"vLLM is ready after {time.monotonic() - begin:.0f} s.")

    def poll(self) -> int | None:
        """The exit code of a server that has ended by itself, 128 + the signal's number of one that was killed; None
        while it runs, and where it was stopped or is not started."""
        with self._lock:
            process = self._process
        return None if process is None else exit_code(process)

    def restart(self, look: Callable[[], object] = nothing) -> VllmServer:
        """Ends what is left of the server and starts it anew, with the model it had at first. As `start`."""
        with self._starting:
            self._end()
            return self.start(look)

    def stop(self) -> None:
        """Ends the server and all that it started, for good; nothing happens where it has ended. A start under way in
        another thread ends with it."""
        with self._lock:
            self._stopped = True
        self._end()

    def _end(self) -> None:
        with self._lock:
            process, self._process = self._process, None
        if process is None:
            return
        process.terminate()
        with suppress(subprocess.TimeoutExpired):
            process.wait(self.settings.stop_timeout + 2 * lcot_launch.KILL_SECONDS)
        process.kill()
        lcot_launch.signal_session(process.pid, signal.SIGKILL)
        process.wait()

    def __enter__(self) -> VllmProcess:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()

    def _log_lines(self) -> list[str]:
        """The last lines since this start."""
        with self.log_path.open("rb") as log:
            end = log.seek(0, os.SEEK_END)
            log.seek(max(self._log_start, end - TAIL_BYTES))
            return [line.rstrip() for line in log.read().decode(errors="replace").splitlines() if line.strip()]

    def _last_line(self) -> str:
        return next(reversed(self._log_lines()), "no output so far")[-200:]

    def _log_excerpt(self) -> str:
        """vLLM reports one failure once per process, the cause first and far from the end."""
        lines = self._log_lines()
        errors = list(dict.fromkeys(match[1].strip() for line in lines if (match := ERROR_LINE.search(line))))
        parts = [f" The end of {self.log_path}:", *(f"    {line}" for line in lines[-TAIL_LINES:])]
        if errors:
            parts += ["Errors in it, the first is usually the cause:", *(f"    {line}" for line in errors[:5])]
        return "\n".join(parts)
