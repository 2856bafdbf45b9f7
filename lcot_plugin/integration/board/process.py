"""The training process of LLaMA Board: how it is started, followed, and what is said when it has ended.

In:  `llamafactory.webui.runner`. Out: its `Runner` with another `monitor`, `set_abort` and `_initialize`, its `Popen`
     with one that keeps in a file what the process writes to stderr. Consumers: integration.webui, which is the seam of
     that module, and board.live, which asks `run_of`.

LLaMA-Factory reads stderr through a pipe, as long as a page follows the run. With every page closed nobody reads: the
pipe fills with progress bars and training stands still. A second page (a reload) reads the same pipe, forgets that
Abort was pressed, and fails where the first one has tidied up. Here stderr is a file, and what is said at the end
belongs to the run, however many pages ask.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from types import ModuleType
from typing import Any

from lcot_plugin.integration.board.abort import (
    Abort,
    last_checkpoint,
    read_arguments,
    resume_command,
    step_of,
    stops_with_checkpoint,
)
from lcot_plugin.integration.board.failure import Failure, block_quote, explain, fenced, tail
from lcot_plugin.integration.board.view_texts import text

STDERR_FILE = "board_stderr.log"
RUNNING_LOG = "running_log.txt"
"""LLaMA-Factory's own, of its loggers."""
WORKDIR = "LLAMABOARD_WORKDIR"
"""Environment variable of LLaMA-Factory: the run's output_dir."""
POLL = 2.0
"""Seconds between two looks at a run."""
SHOWN_LOG = 20_000
_STATE = "_lcot_run"


@dataclass
class Ending:
    """What is said of a run that has ended."""

    code: int
    headline: str
    """A sentence."""
    body: str
    """Markdown for the Board's output box."""
    failure: Failure | None = None
    """Where it has failed."""


@dataclass
class BoardRun:
    """The run that this Board has started last."""

    process: Any
    """A Popen."""
    folder: Path
    """Its output_dir."""
    lang: str
    trains: bool
    """Whether it trains; else it evaluates."""
    arguments: dict[str, Any]
    """The YAML file that it was started with."""
    started: float = field(default_factory=time.time)
    """Unix time."""
    abort: Abort = field(default_factory=Abort)
    ending: Ending | None = None
    lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def stops_with_checkpoint(self) -> bool:
        return self.trains and stops_with_checkpoint(self.arguments)

    def abort_text(self, lang: str) -> str:
        """What Abort has asked for so far; empty where it was not pressed, or where the run has ended."""
        if not self.abort.asked or self.ending is not None:
            return ""
        return text("abort_killing" if self.abort.killed else "abort_waiting", lang)


class LoggedProcess(subprocess.Popen[str]):
    """A Popen whose stderr goes to a file in the run's folder, and which any number of threads may wait for."""

    def __init__(
        self, command: list[str], *, env: dict[str, str], stderr: Any = None, text: bool = True, **options: Any
    ):
        """stderr, text: as LLaMA-Factory passes them, without effect."""
        self.folder = Path(env[WORKDIR])
        self.folder.mkdir(parents=True, exist_ok=True)
        self.started = time.time()
        with (self.folder / STDERR_FILE).open("wb") as file:
            super().__init__(command, env=_beside_python(env), stderr=file, **options)

    def communicate(self, input: Any = None, timeout: float | None = None) -> tuple[str, str]:
        """("", the end of stderr) once the process has ended. Raises TimeoutExpired before."""
        self.wait(timeout)
        return "", tail(self.folder / STDERR_FILE)


def _beside_python(env: Mapping[str, str]) -> dict[str, str]:
    """`env` with the programs of the Board's own environment first: it may have been started without being activated,
    and torchrun is looked for by name."""
    folder = str(Path(sys.executable).parent)
    return {**env, "PATH": os.pathsep.join(filter(None, [folder, env.get("PATH", os.defpath)]))}


def run_of(runner: Any) -> BoardRun | None:
    """The run that `runner` has started last; None where it has started none."""
    return getattr(runner, _STATE, None)


def settle_if_ended(runner: Any) -> None:
    """Tidies up after a run that has ended while no page followed it; the others do it themselves."""
    run = run_of(runner)
    if run is not None and run.ending is None and getattr(run.process, "poll", lambda: None)() is not None:
        settle(runner, run, sys.modules["llamafactory.webui.runner"])


def apply(module: ModuleType) -> None:
    """Patches `module`, which is `llamafactory.webui.runner`."""
    module.Popen = LoggedProcess
    runner = module.Runner
    initialize, set_abort = runner._initialize, runner.set_abort

    def _initialize(self: Any, *args: Any, **kwargs: Any) -> str:
        settle_if_ended(self)
        return initialize(self, *args, **kwargs)

    def monitor(self: Any) -> Iterator[dict[Any, Any]]:
        run = follow(self, module)
        yield from watch(self, run, module) if run is not None else ()

    def abort(self: Any) -> None:
        run = run_of(self)
        ours = run is not None and run.ending is None and run.stops_with_checkpoint
        if run is None or not ours:
            set_abort(self)
            return
        self.aborted = True
        run.abort.press(run.process.pid)
        module.gr.Info(escape(run.abort_text(run.lang)))

    runner._initialize, runner.monitor, runner.set_abort = _initialize, monitor, abort


def follow(runner: Any, module: ModuleType) -> BoardRun | None:
    """The run that `runner.trainer` is, made known at the first call; the last one where that has ended already."""
    run = run_of(runner)
    if runner.trainer is None or (run is not None and run.process is runner.trainer):
        return run

    def get(name: str) -> Any:
        return runner.running_data[runner.manager.get_elem_by_id(name)]

    folder = getattr(runner.trainer, "folder", None)
    if folder is None:
        kind = "train" if runner.do_train else "eval"
        folder = module.get_save_dir(get("top.model_name"), get("top.finetuning_type"), get(f"{kind}.output_dir"))
    run = BoardRun(
        process=runner.trainer,
        folder=Path(folder),
        lang=get("top.lang"),
        trains=runner.do_train,
        arguments=read_arguments(Path(folder, "training_args.yaml")),
        started=getattr(runner.trainer, "started", time.time()),
    )
    runner.aborted, runner.running = False, True
    setattr(runner, _STATE, run)
    return run


def watch(runner: Any, run: BoardRun, module: ModuleType) -> Iterator[dict[Any, Any]]:
    """What the Board shows of a run until it has ended, and then how it has ended.

    Yields nothing where nothing has changed: LLaMA-Factory draws its loss curve anew with each.
    """
    kind = "train" if run.trains else "eval"
    names = ["output_box", "progress_bar", *(("loss_viewer", "swanlab_link") if run.trains else ())]
    elems = {name: runner.manager.get_elem_by_id(f"{kind}.{name}") for name in names}
    hidden = module.gr.Slider(visible=False)
    shown: Any = None
    while run.ending is None:
        state = (runner.aborted, run.abort.asked, run.abort.killed, _written(run.folder))
        if state != shown:
            try:
                values = _while_running(run, module, runner.aborted)
            except ValueError:  # a line of the log is being written
                values = {}
            shown = state if values else None
            if values:
                yield {elems[name]: value for name, value in {"progress_bar": hidden, **values}.items()}
        try:
            run.process.communicate(timeout=POLL)
        except subprocess.TimeoutExpired:
            continue
        settle(runner, run, module)
    assert run.ending is not None
    yield {elems["output_box"]: run.ending.body, elems["progress_bar"]: hidden}


def _while_running(run: BoardRun, module: ModuleType, aborted: bool) -> dict[str, Any]:
    """Component name -> value. Raises ValueError where LLaMA-Factory's log ends in half a line."""
    if run.abort.asked:
        return {"output_box": run.abort_text(run.lang)}
    if aborted:
        return {"output_box": module.ALERTS["info_aborting"][run.lang]}
    log = run.folder / RUNNING_LOG
    if log.is_file() and log.stat().st_mtime < run.started - 1.0:  # of an earlier run
        return {"output_box": text("state_starting", run.lang)}
    box, progress, info = module.get_trainer_info(run.lang, str(run.folder), run.trains)
    return {"output_box": box, "progress_bar": progress, **info}


def _written(folder: Path) -> tuple[Any, ...]:
    """Changes when LLaMA-Factory's logs of a run do."""
    found: list[tuple[int, int] | None] = []
    for name in (RUNNING_LOG, "trainer_log.jsonl", "swanlab_public_config.json"):
        try:
            status = os.stat(folder / name)
            found.append((status.st_size, status.st_mtime_ns))
        except OSError:
            found.append(None)
    return tuple(found)


def settle(runner: Any, run: BoardRun, module: ModuleType) -> None:
    """Once for a run that has ended: what is said of it, and the Board is free for the next one."""
    with run.lock:
        if run.ending is not None:
            return
        written = run.process.communicate(timeout=None)[1]
        ending = describe(run, run.process.returncode, written or "", module, runner.aborted)
        if ending.failure is not None:
            print(ending.failure.log, file=sys.stderr)
        if runner.trainer is run.process:
            runner.aborted = False  # else `_finalize` would say nothing but "Ready."
            runner._finalize(run.lang, escape(ending.headline))
        run.ending = ending


# What is said at the end


def describe(run: BoardRun, code: int, written: str, module: ModuleType, aborted: bool) -> Ending:
    """written: what the process wrote to stderr, the end of it at least."""
    stopped = code in (-signal.SIGTERM, 128 + signal.SIGTERM, 128 + signal.SIGINT, 128 + signal.SIGUSR1)
    if code == 0 or (aborted and not run.abort.asked):
        return _finished(run, code, module)
    if run.abort.killed or (stopped and run.stops_with_checkpoint):
        return _stopped(run, code)
    return _failed(run, code, explain(written))


def _finished(run: BoardRun, code: int, module: ModuleType) -> Ending:
    headline = module.ALERTS["info_finished"][run.lang]
    log = _running_log(run.folder)
    results = run.folder / "all_results.json"
    if not run.trains and results.is_file():
        log = f"{module.load_eval_results(results)}\n\n{log}"
    return Ending(code, headline, f"{headline}\n\n{log}")


def _running_log(folder: Path) -> str:
    log = tail(folder / RUNNING_LOG, SHOWN_LOG)
    return fenced(log) if log else ""


def _stopped(run: BoardRun, code: int) -> Ending:
    checkpoint = last_checkpoint(run.folder)
    how = "end_killed" if run.abort.killed else "end_stopped"
    headline = text(how, run.lang)
    lines = [f"**{headline}**", _where(run, checkpoint)]
    return Ending(code, f"{headline} {_told(run, checkpoint)}", "\n\n".join(lines))


def _told(run: BoardRun, checkpoint: Path | None) -> str:
    if checkpoint is None:
        return text("end_no_checkpoint", run.lang)
    return text("end_checkpoint", run.lang, step=step_of(checkpoint), path=checkpoint)


def _where(run: BoardRun, checkpoint: Path | None) -> str:
    """Markdown: where the checkpoint is, and how to go on from it."""
    if checkpoint is None:
        return text("end_no_checkpoint", run.lang)
    told = text("end_checkpoint", run.lang, step=step_of(checkpoint), path="").rstrip(" .。")
    command = resume_command(run.folder, run.arguments, checkpoint)
    # With overwrite_output_dir, Start would begin anew.
    how = "end_resume_shell" if run.arguments.get("overwrite_output_dir") else "end_resume"
    going_on = text(how, run.lang, name=f"`{run.folder.name}`")
    return "\n\n".join([told, fenced(str(checkpoint)), going_on, fenced(command)])


def _failed(run: BoardRun, code: int, failure: Failure) -> Ending:
    meaning = _meaning(code, run.lang)
    first = failure.reason.partition("\n")[0] or meaning
    headline = f"{text('fail_title', run.lang)} {first[:300]}"
    parts = [f"**{text('fail_title', run.lang)}** {meaning}"]
    if failure.reason:
        parts.append(block_quote(failure.reason))
    checkpoint = last_checkpoint(run.folder) if run.trains else None
    if checkpoint is not None:
        parts.append(_where(run, checkpoint))
    if failure.log:
        summary = escape(text("fail_log", run.lang, path=run.folder / STDERR_FILE))
        parts.append(f"<details><summary>{summary}</summary>\n\n{fenced(failure.log)}\n\n</details>")
    return Ending(code, headline, "\n\n".join(parts), failure)


def _meaning(code: int, lang: str) -> str:
    """An exit code in words."""
    number = -code if code < 0 else code - 128 if code > 128 else 0
    try:
        name = signal.Signals(number).name
    except ValueError:
        return text("fail_code", lang, code=code)
    if name == "SIGKILL":
        return text("fail_memory", lang, signal=name)
    return text("fail_signal", lang, signal=name)
