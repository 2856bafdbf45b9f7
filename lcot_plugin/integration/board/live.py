"""Live view of a run in LLaMA Board, from the files that the run keeps in its folder.

In:  run.json, progress.json, metrics.jsonl, alarms.jsonl of the followed run (board.following); what the Board knows of
     the run that it has started (board.process).
Out: components: the run's state in words, its alarms, its charts. Consumer: board.page, which puts `live_box` directly
     below the buttons.

A page asks every two seconds and is sent what has changed since it asked before. It remembers that itself: a page that
was loaded again, or a second one, is sent everything.
"""

from __future__ import annotations

import os
import signal
import socket
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any, TypeGuard

import gradio as gr

from lcot_plugin.errors import DataError
from lcot_plugin.integration.board.abort import stops_with_checkpoint
from lcot_plugin.integration.board.failure import printable
from lcot_plugin.integration.board.following import FollowedRun, followed_run, is_count
from lcot_plugin.integration.board.panel_texts import translated
from lcot_plugin.integration.board.process import BoardRun, run_of, settle_if_ended
from lcot_plugin.integration.board.view_sentences import SENTENCES
from lcot_plugin.integration.board.view_texts import LOCALES, OWN_RUN, text
from lcot_plugin.report.panels import Panel
from lcot_plugin.report.progress import LIVING as LIVING_RUNS
from lcot_plugin.report.runs import find_runs, seconds_of

SECONDS = 2.0
"""Between two questions of a page."""
LIST_SECONDS = 10.0
"""Between two looks for runs that can be chosen."""
SHOWN_ALARMS = 6
FIRST_CHARTS = 6
"""The others are folded: the log stands below them."""
QUIET_AFTER = 60.0
"""Seconds without a word after which a running run's last one is dated."""
LIVING = ("starting", *LIVING_RUNS)
"""What a page calls a run that goes on: the first before the run says so itself."""
MAX_MESSAGE = 2000
LOG_CLASS = "lcot-log"
"""Of the box with the run's output, whose thousands of lines would make the page as long; it stays at the newest."""
STYLE = """<style>
.lcot-log { max-height: 36rem; overflow: auto; display: flex; flex-direction: column-reverse; }
#lcot_live .lcot-status { display: flex; flex-wrap: wrap; gap: .2rem .9rem; align-items: baseline; }
#lcot_live .lcot-status strong { font-size: 1.05em; }
#lcot_live progress { width: 100%; height: .6rem; }
#lcot_live .lcot-soft { opacity: .7; font-size: .85em; overflow-wrap: anywhere; }
#lcot_live pre { white-space: pre-wrap; overflow-wrap: anywhere; max-height: 18rem; overflow-y: auto; }
#lcot_live .lcot-alarms { border-left: 3px solid #d6546a; padding-left: .7rem; }
#lcot_live .lcot-panels { display: grid; gap: .6rem 1.2rem;
  grid-template-columns: repeat(auto-fill, minmax(min(19rem, 100%), 1fr)); }
#lcot_live figure { margin: 0; }
</style>"""


@dataclass(frozen=True)
class Shown:
    """What a page was sent last."""

    folder: Path | None = None
    status: str = ""
    alarms: str = ""
    panels: Any = None


def create_live_view(engine: Any, lang: Any) -> dict[str, Any]:
    """Creates the live view in the current Blocks. lang: the Board's language component.

    The components: `live_box` (the column that holds all others, to be placed), `live_run`, `live_status`,
    `live_alarms`, `live_panels`, `live_more` (the charts that tell less, folded), `live_timer`.
    """
    with gr.Column(elem_id="lcot_live") as live_box:
        live_run = gr.Dropdown(allow_custom_value=True, value=OWN_RUN, choices=[(SENTENCES["live_own"][0], OWN_RUN)])
        live_status = gr.HTML(elem_id="lcot_live_status")
        live_alarms = gr.HTML(elem_id="lcot_live_alarms")
        live_panels = gr.HTML(elem_id="lcot_live_panels")
        with gr.Accordion(
            open=False, visible=False, elem_id="lcot_live_more", **LOCALES["live_more"]["en"]
        ) as live_more:
            live_more_panels = gr.HTML(elem_id="lcot_live_more_panels")
        shown = gr.State(Shown())
        live_timer = gr.Timer(SECONDS)

    def tick(shown: Shown, chosen: str | None, lang: str) -> Any:
        return changes(engine, shown, chosen_folder(chosen), lang)

    outputs = [shown, live_status, live_alarms, live_panels, live_more_panels, live_more]
    asked: dict[str, Any] = dict(inputs=[shown, live_run, lang], outputs=outputs)
    for event in (live_timer.tick, live_run.change):
        event(tick, **asked, queue=False, show_progress="hidden", show_api=False)
    keep_choices(live_run, run_choices, lang)
    return dict(
        live_box=live_box,
        live_run=live_run,
        live_status=live_status,
        live_alarms=live_alarms,
        live_panels=live_panels,
        live_more=live_more,
        live_more_panels=live_more_panels,
        live_timer=live_timer,
    )


def chosen_folder(chosen: str | None) -> str:
    """What is chosen in "Live view of", empty for the Board's own run: gradio sends its name instead of its value where
    the box was left without a choice, in the language that was spoken then."""
    return "" if chosen is None or chosen in (OWN_RUN, *SENTENCES["live_own"]) else chosen


def save_root() -> Path:
    """The folder into which the Board's runs write."""
    from llamafactory.webui.common import DEFAULT_SAVE_DIR

    return Path(DEFAULT_SAVE_DIR)


def run_choices(lang: str) -> list[tuple[str, str]]:
    """The Board's own run and every run that is found, each with its label."""
    return [(text("live_own", lang), OWN_RUN), *((str(folder), str(folder)) for folder in find_runs(save_root()))]


def keep_choices(dropdown: Any, list_choices: Callable[..., Any], *inputs: Any) -> None:
    """Sends a dropdown what `list_choices` of the inputs' values gives, on loading a page and as it changes.

    Not on focus: choices that come while the list is open are filtered by the text that stands in the box.
    """
    known = gr.State(None)

    def look(known: Any, *values: Any) -> Any:
        choices = list_choices(*values)
        return (gr.skip(), gr.skip()) if choices == known else (choices, gr.Dropdown(choices=choices))

    quiet: dict[str, Any] = dict(queue=False, show_progress="hidden", show_api=False)
    for triggers in (None, gr.Timer(LIST_SECONDS).tick):  # None: on loading, and as an input changes
        gr.on(triggers, look, [known, *inputs], [known, dropdown], **quiet)


def written_path(written: str) -> Path:
    """What a user wrote as a path, whether there is anything or not. Raises DataError where it can be none."""
    try:
        path = Path(written.strip()).expanduser()
        with suppress(FileNotFoundError):
            os.stat(path)
    except (OSError, RuntimeError, ValueError) as error:  # closed to us, too long; of no user; no text of a path
        raise DataError(f"{written.strip()}: {error}") from error
    return path


def changes(engine: Any, shown: Shown, chosen: str, lang: str) -> list[Any]:
    """What the page has been sent then; its state, alarms, charts, more charts and their accordion, each skipped where
    it is as before."""
    settle_if_ended(engine.runner)
    own = run_of(engine.runner)
    folder, wrong = None, ""
    try:
        folder = followed_folder(own, shown, chosen)
    except DataError as error:
        wrong = printable(str(error), MAX_MESSAGE)
    drawn: list[Panel] = []
    if folder is None:
        now = Shown(status=f"{STYLE}<p class='lcot-soft'>{escape(wrong or text('live_none', lang))}</p>")
    else:
        run = followed_run(folder)
        run.look()
        key, drawn = run.panels()
        now = Shown(
            folder=folder,
            status=STYLE + status_html(run, own if _is_in(own, folder) else None, lang, time.time()),
            alarms=alarms_html(run.alarms, lang),
            panels=(str(folder), key, lang),
        )
    changed: list[Any] = [gr.skip()] * 6
    if now != shown:
        changed[0] = now
    if now.status != shown.status:
        changed[1] = now.status
    if now.alarms != shown.alarms:
        changed[2] = now.alarms
    if now.panels != shown.panels:
        changed[3] = panels_html(drawn[:FIRST_CHARTS], lang) if folder is not None else ""
        changed[4] = panels_html(drawn[FIRST_CHARTS:], lang) if drawn[FIRST_CHARTS:] else ""
        changed[5] = gr.update(visible=len(drawn) > FIRST_CHARTS)
    return changed


def _is_in(own: BoardRun | None, folder: Path) -> bool:
    return own is not None and own.folder.absolute() == folder.absolute()


def followed_folder(own: BoardRun | None, shown: Shown, chosen: str) -> Path | None:
    """The chosen folder; else that of the Board's run; else of one that was running when the page was loaded, as after
    a restart of the Board. Raises DataError where what was chosen cannot be a folder."""
    if chosen.strip():
        return written_path(chosen)
    if own is not None and own.trains:
        return own.folder
    return _running_elsewhere() if shown == Shown() else shown.folder


def _running_elsewhere() -> Path | None:
    for folder in find_runs(save_root())[:3]:  # the newest are first
        run = followed_run(folder)
        run.look()
        if run.state in LIVING:
            return folder
    return None


# Status


def status_html(run: FollowedRun, own: BoardRun | None, lang: str, now: float) -> str:
    """own: the same run, where this Board has started it. now: Unix time."""
    progress = run.progress or {}
    if own is not None and not _is_of(progress, own):
        progress = {}  # that of an earlier run in this folder
    state = state_of(run, own, progress)
    parts = [f"<strong>{escape(text(f'state_{state}', lang))}</strong>"]
    parts += [f"<span>{escape(fact)}</span>" for fact in facts(run, progress, state, lang, now)]
    lines = [f'<div class="lcot-status" role="status" data-state="{state}">{"".join(parts)}</div>']
    step, total = progress.get("step"), progress.get("max_steps")
    if is_count(step) and is_count(total) and total > 0:
        lines.append(f'<progress value="{min(step, total)}" max="{total}">{step}/{total}</progress>')
    lines += [f"<p>{escape(line)}</p>" for line in notes(run, own, progress, state, lang)]
    if message := message_of(run, own, progress):
        lines.append(f"<pre>{escape(message)}</pre>")
    if run.error:
        lines.append(f"<pre>{escape(text('live_unreadable', lang, error=printable(run.error, MAX_MESSAGE)))}</pre>")
    lines.append(f'<div class="lcot-soft">{escape(printable(str(run.folder), MAX_MESSAGE))}</div>')
    return "".join(lines)


def _is_of(progress: dict[str, Any], own: BoardRun) -> bool:
    """Whether what the file says was written since the Board started the run."""
    updated = seconds_of(progress.get("updated"))
    return updated is None or updated >= own.started - 1.0


def state_of(run: FollowedRun, own: BoardRun | None, progress: dict[str, Any]) -> str:
    """One of the `state_...` sentences."""
    said = run.state if progress else None
    if own is None and run.start_failure:
        return "failed"
    if own is not None and own.ending is None:
        if own.abort.asked:
            return "stopping"
        if said == "killed":
            return "stopping"  # its process has just ended; how is known in a moment
        return said if said is not None and f"state_{said}" in SENTENCES else "starting"
    if own is not None and own.ending is not None:
        if own.ending.failure is not None:
            return "failed"
        if own.abort.killed or own.ending.code == -signal.SIGKILL:
            return "killed"
        return "finished" if own.ending.code == 0 else "stopped"
    return said if said is not None and f"state_{said}" in SENTENCES else "unknown"


def facts(run: FollowedRun, progress: dict[str, Any], state: str, lang: str, now: float) -> list[str]:
    """Step, phase, pace and time left, each where it is known."""
    found = []
    step, total = progress.get("step"), progress.get("max_steps")
    if step is None and run.metrics and not run.progress:
        step = run.metrics[-1].get("step")
    if is_count(step) and is_count(total) and total > 0:
        found.append(text("step_of", lang, step=step, total=total))
    elif is_count(step):
        found.append(text("step", lang, step=step))
    if state not in LIVING:
        return found
    if phase := progress.get("phase"):
        name = f"phase_{phase}"
        shown = text(name, lang) if name in SENTENCES else printable(str(phase), 60)
        done, of = progress.get("phase_done"), progress.get("phase_total")
        found.append(f"{shown} {done}/{of}" if is_count(done) and is_count(of) and of > 0 else shown)
    if _is_number(pace := progress.get("seconds_per_step")):
        found.append(text("per_step", lang, time=duration(pace)))
    if _is_number(left := progress.get("remaining_seconds")):
        found.append(text("remaining", lang, time=duration(left)))
    updated = seconds_of(progress.get("updated"))
    if updated is not None and now - updated > QUIET_AFTER:
        minutes = (now - updated) // 60 * 60  # so that it changes once a minute
        found.append(text("updated", lang, time=duration(minutes)))
    return found


def notes(run: FollowedRun, own: BoardRun | None, progress: dict[str, Any], state: str, lang: str) -> list[str]:
    """What the user may do now."""
    if own is not None:
        said = own.abort_text(lang)
        if not said and own.ending is not None and own.ending.failure is None and own.ending.code != 0:
            said = own.ending.headline
        return [said] if said else []
    pid, host = progress.get("pid"), progress.get("host")
    if state not in LIVING or not is_count(pid):
        return []
    where = "" if host in (None, socket.gethostname()) else f" ({printable(str(host), 100)})"
    said = "live_elsewhere" if _leaves_checkpoint(run.record) else "live_elsewhere_at_once"
    return [text(said, lang, pid=pid, where=where)]


def _leaves_checkpoint(record: dict[str, Any]) -> bool:
    """Whether the run of this run.json writes a checkpoint when it is asked to end."""
    arguments = record.get("arguments")
    known = arguments if isinstance(arguments, dict) else {}
    return record.get("trains") is not False and stops_with_checkpoint({**known, "stage": record.get("stage")})


def message_of(run: FollowedRun, own: BoardRun | None, progress: dict[str, Any]) -> str:
    """What went wrong, in the words of the run itself."""
    if own is not None and own.ending is not None:
        if own.ending.failure is None:
            return ""  # `notes` says how it has ended
        said = own.ending.failure.reason or str(progress.get("message") or "") or own.ending.headline
    else:
        said = run.start_failure or str(progress.get("message") or "")
    return printable(said, MAX_MESSAGE)


def duration(seconds: float) -> str:
    """`4.2 s`, `45 s`, `3 min 20 s`, `2 h 5 min`."""
    if seconds < 10:
        return f"{max(seconds, 0.0):.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s" if whole < 600 and whole % 60 else f"{round(whole / 60)} min"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def _is_number(value: Any) -> TypeGuard[float]:
    return isinstance(value, int | float) and not isinstance(value, bool) and value == value and abs(value) < 1e12


# Alarms and charts


def alarms_html(alarms: Sequence[dict[str, Any]], lang: str) -> str:
    """The last ones, the newest first; how many more there are."""
    if not alarms:
        return ""
    rows = []
    for alarm in reversed(alarms[-SHOWN_ALARMS:]):
        said = " ".join(str(alarm[key]) for key in ("message", "advice") if alarm.get(key))
        where = text("step", lang, step=alarm.get("step"))
        rows.append(f"<li><b>{escape(where)}</b> {escape(printable(said, MAX_MESSAGE))}</li>")
    more = len(alarms) - SHOWN_ALARMS
    rest = f'<p class="lcot-soft">{escape(text("alarms_more", lang, count=more))}</p>' if more > 0 else ""
    return (
        f'<div class="lcot-alarms" role="log"><b>{escape(text("alarms", lang))}</b><ul>{"".join(rows)}</ul>{rest}</div>'
    )


def panels_html(panels: Sequence[Panel], lang: str) -> str:
    """All charts as a grid, each with what it tells."""
    if not panels:
        return f'<p class="lcot-soft">{escape(text("live_no_metrics", lang))}</p>'
    cells = "".join(
        f'<div>{panel.svg}<div class="lcot-soft">{escape(panel.explanation)}</div></div>'
        for panel in (translated(panel, lang) for panel in panels)
    )
    return f'<div class="lcot-panels">{cells}</div>'
