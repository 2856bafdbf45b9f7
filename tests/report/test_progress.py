import threading

import pytest

from lcot_plugin.report.progress import WINDOW, Progress


class Clock:
    def __init__(self):
        self.now = 1000.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def written():
    return []


@pytest.fixture
def progress(clock, written):
    """Writes by itself only when asked to: its thread waits for ever."""
    progress = Progress(written.append, clock=clock, interval=3600.0)
    yield progress
    progress.close("finished")


def test_states_are_written_at_once(progress, written):
    progress.state("loading")
    progress.state("failed", "ValueError: no")
    assert [(values["state"], values["message"]) for values in written] == [
        ("loading", None),
        ("failed", "ValueError: no"),
    ]
    assert {"pid", "host", "started", "updated"} <= written[0].keys()


def test_phases_of_loading_are_written_at_once(progress, written):
    progress.phase("model")
    assert (written[-1]["state"], written[-1]["phase"]) == ("loading", "model")


def test_steps_tell_the_time_that_is_left(progress, written, clock):
    progress.begin_steps(10, 40)
    progress.state("running")
    assert written[-1]["seconds_per_step"] is None and written[-1]["remaining_seconds"] is None
    for step in (11, 12):
        clock.now += 6.0
        progress.end_step(step)
    clock.now += 4.0  # in the middle of the next one
    progress.state("running")
    assert (written[-1]["step"], written[-1]["max_steps"]) == (12, 40)
    assert written[-1]["seconds_per_step"] == 6.0
    assert written[-1]["remaining_seconds"] == 28 * 6.0 - 4.0
    clock.now += 1e6
    progress.state("running")
    assert written[-1]["remaining_seconds"] == 0.0, "a step that takes long does not give less than nothing"


def test_only_the_last_steps_count(progress, written, clock):
    progress.begin_steps(0, 1000)
    for step in range(1, 100):
        clock.now += 100.0 if step < 50 else 2.0
        progress.end_step(step)
    progress.state("running")
    assert WINDOW < 49 and written[-1]["seconds_per_step"] == 2.0


def test_what_an_ended_run_says(progress, written, clock):
    progress.begin_steps(0, 4)
    progress.phase("rollout", 8)
    clock.now += 2.0
    progress.end_step(1)
    progress.close("stopped", "SIGTERM")
    last = written[-1]
    assert (last["state"], last["message"], last["phase"], last["phase_done"]) == ("stopped", "SIGTERM", None, None)
    assert last["remaining_seconds"] is None and last["seconds_per_step"] == 2.0


def test_a_phase_counts_what_is_done(progress, written):
    progress.phase("rollout", 8)
    progress.advance(3)
    progress.advance(2)
    progress.state("running")
    assert (written[-1]["phase_done"], written[-1]["phase_total"]) == (5, 8)
    progress.phase("update")
    progress.advance(1)
    progress.state("running")
    assert (written[-1]["phase_done"], written[-1]["phase_total"]) == (None, None)


def test_changes_are_written_by_a_thread_and_only_then(clock):
    """A hundred phases between two looks make one write."""
    written, looked = [], threading.Semaphore(0)

    def write(values):
        written.append(values)
        looked.release()

    progress = Progress(write, clock=clock, interval=0.01)
    progress.begin_steps(0, 4)
    with progress._lock:  # the thread waits
        for number in range(100):
            progress.values["phase"] = str(number)
        progress._changed = True
    assert looked.acquire(timeout=60)
    assert [values["phase"] for values in written] == ["99"]
    progress.close("finished")
    assert not progress._thread.is_alive()
    assert [values["state"] for values in written] == ["loading", "finished"], "nothing changed: nothing was written"


def test_a_run_that_was_asked_to_end_says_so(clock):
    written, looked = [], threading.Event()

    def write(values):
        written.append(values)
        if values["state"] == "stopping":
            looked.set()

    asked = threading.Event()
    progress = Progress(write, is_stopping=asked.is_set, clock=clock, interval=0.01)
    progress.begin_steps(0, 4)
    progress.state("running")
    asked.set()
    assert looked.wait(timeout=60)
    progress.close("stopped")
    assert [values["state"] for values in written] == ["running", "stopping", "stopped"]
