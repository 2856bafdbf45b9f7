"""The server that the training starts: with a small fake in place of vLLM."""

import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from lcot_plugin.errors import RolloutError
from lcot_plugin.rollout.vllm import process as process_module
from lcot_plugin.rollout.vllm.process import ServerSettings, VllmProcess, served_rank
from lcot_plugin.rollout.vllm.server_side import lcot_launch

FAKE_SERVER = """
import os, signal, subprocess, sys, time
from http.server import BaseHTTPRequestHandler, HTTPServer

mode, arguments = sys.argv[2], sys.argv[3:]
port = int(arguments[arguments.index("--port") + 1])
print("mode", mode, "rank", os.environ.get("RANK"), flush=True)
if mode == "dies":
    print("(EngineCore pid=1) ERROR 01-01 RuntimeError: there is no such model")
    print("a long traceback")
    sys.exit(3)
if mode == "deaf":
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
if mode in ("deaf", "parent"):
    # A grandchild that outlives its parent, and ignores SIGTERM as well.
    code = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('worker'); time.sleep(600)"
    worker = subprocess.Popen([sys.executable, "-u", "-c", code])
if mode == "slow":
    time.sleep(0.4)

class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(503 if mode == "never" else 200)
        self.end_headers()
        if self.path == "/die":
            os._exit(7)
    def log_message(self, *arguments):
        pass

HTTPServer(("127.0.0.1", port), Handler).serve_forever()
"""


@pytest.fixture(scope="session")
def fake_python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Like a Python whose environment holds the fake: runs the launcher as it is, and the fake instead of vLLM."""
    folder = tmp_path_factory.mktemp("fake_vllm")
    (folder / "server.py").write_text(FAKE_SERVER)
    python = folder / "python"
    python.write_text(
        f'#!/bin/sh\ncase "$1" in -I) exec {sys.executable} "$@";; '
        f'*) exec {sys.executable} -u {folder}/server.py "$@";; esac\n'
    )
    python.chmod(0o755)
    return python


@pytest.fixture
def make(fake_python: Path, tmp_path: Path) -> Iterator[Callable[..., VllmProcess]]:
    """`make(mode, **settings)` is a server that is not started yet; what it says is in `said`."""
    made = []

    def process(mode: str, **settings: object) -> VllmProcess:
        settings = {"stop_timeout": 0.5, "start_timeout": 60.0} | settings
        said: list[str] = []
        log = tmp_path / "logs" / "server.log"
        made.append(VllmProcess(fake_python, mode, settings=ServerSettings(**settings), log_path=log, say=said.append))
        made[-1].said = said
        return made[-1]

    yield process
    for server in made:
        server.stop()


def session_of(process: VllmProcess) -> int:
    assert process._process is not None
    return process._process.pid


def eventually(condition: Callable[[], bool]) -> bool:
    """Waits for what must happen; a minute is for a machine with other work."""
    deadline = time.monotonic() + 60
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.05)
    return condition()


def alive(pid: int) -> bool:
    """A zombie, whose parent has not asked for its exit code, is not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_a_slow_server_is_waited_for_and_stopped(make: Callable[..., VllmProcess]) -> None:
    process = make("slow")
    server = process.start()
    session = session_of(process)
    assert server.health() and process.poll() is None
    assert server.url.startswith("http://127.0.0.1:")
    assert len(lcot_launch.members(session)) == 2  # the launcher and the fake
    process.stop()
    assert not lcot_launch.members(session)
    assert not server.health()
    assert process.said[-1].startswith("vLLM is ready after")
    process.stop()  # nothing happens


def test_the_key_stands_neither_in_the_log_nor_on_the_command_line(make: Callable[..., VllmProcess]) -> None:
    process = make("ready")
    process.start()
    lines = [Path(f"/proc/{pid}/cmdline").read_text() for pid in lcot_launch.members(session_of(process))]
    texts = [*lines, process.log_path.read_text(), repr(process), repr(process.server), *process.said]
    assert "--port" in lines[0]
    assert len(process.api_key) > 30
    assert not [text for text in texts if process.api_key in text]


def test_progress_is_reported(make: Callable[..., VllmProcess], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process_module, "PROGRESS_SECONDS", 0.1)
    process = make("slow")
    process.start()
    assert [line for line in process.said if line.startswith("vLLM is starting, ")]


def test_a_server_that_is_never_ready(make: Callable[..., VllmProcess]) -> None:
    process = make("never", start_timeout=1.0)
    with pytest.raises(RolloutError, match=r"not ready after 1 seconds: raise grpo_vllm_start_timeout[^$]*mode never"):
        process.start()
    assert process._process is None


def test_a_server_that_dies_at_start(make: Callable[..., VllmProcess]) -> None:
    process = make("dies")
    with pytest.raises(RolloutError) as error:
        process.start()
    lines = str(error.value).splitlines()
    assert lines[0].startswith("vLLM ended with exit code 3 before it was ready. The end of ")
    assert "    a long traceback" in lines
    assert lines[-1] == "    RuntimeError: there is no such model"


def test_an_error_shows_only_this_starts_log(make: Callable[..., VllmProcess]) -> None:
    process = make("dies")
    process.log_path.parent.mkdir()
    process.log_path.write_text("ValueError: of an earlier run\n")
    with pytest.raises(RolloutError) as error:
        process.start()
    assert "earlier run" not in str(error.value)
    assert "earlier run" in process.log_path.read_text()


def test_a_server_that_dies_later_is_restarted_in_place(make: Callable[..., VllmProcess]) -> None:
    process = make("parent")
    server = process.start()
    session = session_of(process)
    assert len(lcot_launch.members(session)) == 3
    os.kill(next(pid for pid in lcot_launch.members(session) if "parent" in command(pid)), signal.SIGKILL)
    assert eventually(lambda: process.poll() is not None)
    assert process.poll() == 128 + signal.SIGKILL
    assert not lcot_launch.members(session)  # not its worker either
    assert process.restart() is server
    assert server.health() and process.poll() is None


def test_a_server_that_was_stopped_has_not_died(make: Callable[..., VllmProcess]) -> None:
    process = make("ready")
    process.start()
    process.stop()
    assert process.poll() is None
    with pytest.raises(RolloutError, match="was stopped while it was starting"):
        process.restart()
    assert process._process is None


def test_a_start_ends_when_another_thread_stops_the_server(make: Callable[..., VllmProcess]) -> None:
    process, errors = make("never"), []

    def start() -> None:
        try:
            process.start()
        except RolloutError as error:
            errors.append(str(error))

    starter = threading.Thread(target=start)
    starter.start()
    assert eventually(lambda: process._process is not None)
    session = session_of(process)
    process.stop()
    starter.join(60)
    assert errors == ["The vLLM server was stopped while it was starting."]
    assert not lcot_launch.members(session)


def test_what_looks_meanwhile_may_end_a_start(make: Callable[..., VllmProcess]) -> None:
    process = make("never")

    def look() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        process.start(look)
    assert process._process is None and process.poll() is None


def test_a_health_that_another_server_answers_is_not_this_ones(make: Callable[..., VllmProcess]) -> None:
    process = make("dies")
    process.server.health = lambda: eventually(lambda: process.poll() is not None)  # type: ignore[method-assign]
    with pytest.raises(RolloutError, match="ended with exit code 3 before it was ready"):
        process.start()


def command(pid: int) -> str:
    """Of the fake server only: `server.py`, then the mode."""
    words = Path(f"/proc/{pid}/cmdline").read_text().split("\0")
    return " ".join(words) if any(word.endswith("server.py") for word in words) else ""


def test_a_server_that_ends_by_itself_has_its_exit_code(make: Callable[..., VllmProcess]) -> None:
    process = make("ready")
    server = process.start()
    with pytest.raises(RolloutError):
        server._ask("GET", "/die", seconds=10)
        server._ask("GET", "/health", seconds=10)
    assert eventually(lambda: process.poll() is not None)
    assert process.poll() == 7


def test_a_server_that_ignores_sigterm_is_killed_with_its_workers(make: Callable[..., VllmProcess]) -> None:
    process = make("deaf")
    process.start()
    session = session_of(process)
    assert len(lcot_launch.members(session)) == 3
    process.stop()
    assert not lcot_launch.members(session)


def test_a_killed_launcher_leaves_nothing(make: Callable[..., VllmProcess]) -> None:
    process = make("deaf")
    process.start()
    session = session_of(process)
    os.kill(session, signal.SIGKILL)
    assert eventually(lambda: process.poll() is not None)
    assert eventually(lambda: not any(alive(pid) for pid in lcot_launch.members(session)))


def test_the_server_outlives_the_thread_that_started_it(make: Callable[..., VllmProcess]) -> None:
    process = make("ready")
    thread = threading.Thread(target=process.start)
    thread.start()
    thread.join()
    time.sleep(3 * lcot_launch.POLL_SECONDS)
    assert process.poll() is None and process.server.health()


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_the_server_is_gone_when_the_training_is_killed(fake_python: Path, tmp_path: Path, number: int) -> None:
    script = textwrap.dedent(
        f"""
        import time
        from pathlib import Path
        from lcot_plugin.rollout.vllm.process import ServerSettings, VllmProcess
        settings = ServerSettings(stop_timeout=0.3)
        process = VllmProcess({str(fake_python)!r}, "deaf", settings=settings, log_path=Path({str(tmp_path / "log")!r}))
        process.start()
        print("session", process._process.pid, flush=True)
        time.sleep(600)
        """
    )
    training = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    assert training.stdout is not None
    session = next(int(line.split()[1]) for line in training.stdout if line.startswith("session"))
    assert len(lcot_launch.members(session)) == 3
    training.send_signal(number)
    training.wait()
    training.stdout.close()
    assert eventually(lambda: not any(alive(pid) for pid in lcot_launch.members(session)))


def test_a_python_that_is_none(tmp_path: Path) -> None:
    process = VllmProcess(tmp_path / "python", "model", settings=ServerSettings(), log_path=tmp_path / "log")
    with pytest.raises(RolloutError, match=r"grpo_vllm_python: .* is not an executable file"):
        process.start()


def test_the_command_line() -> None:
    plain = ServerSettings().arguments(8000)
    assert plain[:4] == ["--host", "127.0.0.1", "--port", "8000"]
    assert "--enable-lora" not in plain and "--enable-sleep-mode" not in plain
    settings = ServerSettings(max_lora_rank=20, sleep=True, max_model_len=640, extra_args="--max-num-seqs '8'")
    full = settings.arguments(8000)
    assert full[-2:] == ["--max-num-seqs", "8"]
    assert full[full.index("--max-lora-rank") + 1] == "32"
    assert full[full.index("--max-model-len") + 1] == "640"
    assert "--enable-sleep-mode" in full


def test_the_environment_is_the_trainings_without_its_ranks_and_paths(tmp_path: Path) -> None:
    base = {
        **{"RANK": "0", "LOCAL_WORLD_SIZE": "2", "MASTER_PORT": "1", "TORCHELASTIC_RUN_ID": "x"},
        **{"PYTHONPATH": "/training", "PYTORCH_CUDA_ALLOC_CONF": "expandable_segments:True"},
        **{"HOME": "/home/user", "PATH": "/bin", "CUDA_VISIBLE_DEVICES": "0,1", "RANKED": "kept"},
    }
    environment = ServerSettings(devices="1").environment(base, Path("/env/bin/python"), "key")
    kept = {name: environment[name] for name in environment if name in base}
    assert kept == {"HOME": "/home/user", "PATH": "/env/bin:/bin", "CUDA_VISIBLE_DEVICES": "1", "RANKED": "kept"}
    assert environment["VLLM_API_KEY"] == "key"
    assert "VLLM_ALLOW_RUNTIME_LORA_UPDATING" not in environment
    with_adapters = ServerSettings(max_lora_rank=8).environment({}, Path("/env/bin/python"), "key")
    assert with_adapters["VLLM_ALLOW_RUNTIME_LORA_UPDATING"] == "True"
    assert "CUDA_VISIBLE_DEVICES" not in with_adapters


def test_ranks_are_rounded_up_to_what_vllm_serves() -> None:
    assert [served_rank(rank) for rank in (1, 8, 9, 512)] == [8, 8, 16, 512]
    with pytest.raises(RolloutError, match="grpo_vllm_sync: weights"):
        served_rank(513)
