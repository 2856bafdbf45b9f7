"""The worker processes, with a solver that hangs, dies or swells when told to."""

from __future__ import annotations

import os
import pickle
import signal
import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from lcot_plugin.errors import RewardError
from lcot_plugin.rewards import Verifier, pool, worker
from lcot_plugin.rewards.extraction import Found, Place
from lcot_plugin.rewards.pool import Comparison, Pool, Ruling
from lcot_plugin.types import MatchSettings, Outcome, ScoringRequest

HERE = Path(__file__).parent
GOLD = r"\sqrt{x}"
SLEEP, SPIN, EXIT, RAISE, PRINT, ALLOCATE, GROW, ONCE = (f"x+{number}" for number in range(901, 909))
"""The faults of faulty_worker.py, in its order."""


@pytest.fixture
def faulty(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., Pool]:
    """Makes pools of faulty workers."""
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(HERE), os.environ.get("PYTHONPATH", "")]))
    monkeypatch.setenv("FAULTY_WORKER_MARKER", str(tmp_path / "marker"))
    return lambda num_workers=1: Pool(num_workers, "faulty_worker")


@pytest.fixture
def one(faulty: Callable[..., Pool]) -> Iterator[Pool]:
    """A pool of one faulty worker."""
    workers = faulty()
    yield workers
    workers.close()


def comparison(answer: str, gold: str = GOLD) -> Comparison:
    return Comparison(Found(answer, Place.BOXED), gold, "expression", MatchSettings())


def outcome(workers: Pool, answer: str, gold: str = GOLD, seconds: float = 60.0) -> Outcome:
    return workers.judge(comparison(answer, gold), seconds).outcome


def idle_pid(workers: Pool) -> int:
    (seat,) = workers._seats.queue
    assert seat is not None
    return seat.pid


def gone(pid: int, zombies: bool = True) -> bool:
    """Whether `pid` ends by itself within the test's time.

    zombies: count as running; where the parent has died, it is init's affair to reap them.
    """
    pause = threading.Event()
    while runs(pid, zombies):
        pause.wait(0.05)
    return True


def runs(pid: int, zombies: bool = True) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    stat = Path(f"/proc/{pid}/stat")
    try:
        return zombies or not stat.exists() or stat.read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_it_judges_and_keeps_its_worker(one: Pool) -> None:
    assert outcome(one, r"\sqrt{y}") is Outcome.MISMATCHED
    first = idle_pid(one)
    assert outcome(one, r"\sqrt{x}\,+0") is Outcome.MISMATCHED
    assert idle_pid(one) == first


@pytest.mark.parametrize("fault", [SLEEP, SPIN])
def test_an_overrun_is_killed_and_reaped_and_the_next_is_judged(one: Pool, fault: str) -> None:
    assert outcome(one, r"\sqrt{y}") is Outcome.MISMATCHED
    before = idle_pid(one)
    assert one.judge(comparison(fault), 0.3) == Ruling(Outcome.TIMED_OUT, overran=True)
    assert gone(before)
    assert outcome(one, r"\sqrt{y}") is Outcome.MISMATCHED
    assert idle_pid(one) != before


def test_a_gold_answer_that_overruns_is_its_own_fault(one: Pool) -> None:
    assert one.judge(comparison("x + 1", SLEEP), 0.3) == Ruling(Outcome.GOLD_UNPARSABLE, overran=True)


def test_a_worker_that_dies_is_tried_once_more(one: Pool) -> None:
    assert outcome(one, ONCE) is Outcome.MISMATCHED
    assert one.judge(comparison(EXIT), 60.0) == Ruling(Outcome.TIMED_OUT)
    # Two deaths are most likely the system's, and nothing against the gold answer.
    assert one.judge(comparison("x + 1", EXIT), 60.0) == Ruling(Outcome.TIMED_OUT)
    assert outcome(one, r"\sqrt{y}") is Outcome.MISMATCHED


def test_a_worker_killed_while_it_waits_is_replaced(one: Pool) -> None:
    assert outcome(one, r"\sqrt{y}") is Outcome.MISMATCHED
    before = idle_pid(one)
    os.kill(before, signal.SIGKILL)
    assert outcome(one, r"\sqrt{y}") is Outcome.MISMATCHED
    assert gone(before)


def test_what_a_solver_raises_or_prints_harms_nothing(one: Pool) -> None:
    assert outcome(one, RAISE) is Outcome.UNPARSABLE
    assert outcome(one, "x + 1", RAISE) is Outcome.GOLD_UNPARSABLE
    assert outcome(one, PRINT) is Outcome.MISMATCHED


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux keeps to a limit of the address space")
def test_memory_is_capped(one: Pool) -> None:
    assert outcome(one, ALLOCATE) is Outcome.UNPARSABLE


def test_a_worker_that_grew_is_replaced(one: Pool) -> None:
    assert outcome(one, r"\sqrt{y}") is Outcome.MISMATCHED
    before = idle_pid(one)
    assert outcome(one, GROW) is Outcome.MISMATCHED
    assert gone(before)
    assert outcome(one, r"\sqrt{y}") is Outcome.MISMATCHED


def test_a_worker_is_replaced_after_many_items(one: Pool) -> None:
    pids = set()
    for _ in range(worker.MAX_ITEMS + 1):
        assert outcome(one, r"\sqrt{y}") is Outcome.MISMATCHED
        pids |= {seat.pid for seat in one._seats.queue if seat}
    assert len(pids) == 2


def test_a_zygote_that_is_killed_is_replaced(one: Pool) -> None:
    assert outcome(one, r"\sqrt{y}") is Outcome.MISMATCHED
    zygote, orphan = one._zygote, idle_pid(one)
    assert zygote is not None
    os.kill(zygote.pid, signal.SIGKILL)
    assert outcome(one, r"\sqrt{y}") is Outcome.MISMATCHED  # the worker lives on
    assert idle_pid(one) == orphan
    assert outcome(one, EXIT) is Outcome.TIMED_OUT
    assert outcome(one, r"\sqrt{y}") is Outcome.MISMATCHED
    assert one._zygote is not zygote


def test_a_signal_while_it_starts_is_no_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, faulty: Callable[..., Pool]
) -> None:
    """A scheduler ends a run by a signal to every process; one that still imports cannot ignore it yet."""
    (tmp_path / "signalled_worker.py").write_text(
        textwrap.dedent(
            f"""
            import os, pathlib, signal
            marker = pathlib.Path({str(tmp_path / "started")!r})
            if not marker.exists():
                marker.touch()
                os.kill(os.getpid(), signal.SIGTERM)
            import runpy
            runpy.run_module("faulty_worker", run_name="__main__")
            """
        )
    )
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), os.environ["PYTHONPATH"]]))
    workers = Pool(1, "signalled_worker")
    assert outcome(workers, GOLD) is Outcome.MATCHED
    assert (tmp_path / "started").exists()
    workers.close()


def test_a_signal_to_the_group_does_not_reach_it(one: Pool) -> None:
    assert outcome(one, GOLD) is Outcome.MATCHED
    assert one._zygote is not None
    assert os.getpgid(one._zygote.pid) == one._zygote.pid != os.getpgid(0)


def test_zygotes_that_die_again_and_again_are_an_error(one: Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    def dies(module: str) -> pool.Zygote:
        zygote = start(module)
        zygote._process.kill()
        return zygote

    start = pool.Zygote
    monkeypatch.setattr(pool, "Zygote", dies)
    with pytest.raises(RewardError, match="ended or failed"):
        one.judge(comparison("x + 1"), 1.0)
    monkeypatch.undo()


def test_without_fork_it_says_where_there_is_one(one: Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "fork")
    with pytest.raises(RewardError, match="Linux, macOS or WSL"):
        one.judge(comparison("x + 1"), 1.0)


def test_ctrl_c_is_not_the_next_items_reply(one: Pool) -> None:
    assert outcome(one, r"\sqrt{y}") is Outcome.MISMATCHED
    interrupt = threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGINT))
    handler = signal.signal(signal.SIGINT, signal.default_int_handler)  # a test run in the background ignores it
    try:
        with pytest.raises(KeyboardInterrupt):
            interrupt.start()
            one.judge(comparison(SLEEP), 60.0)
    finally:
        signal.signal(signal.SIGINT, handler)
    assert outcome(one, r"\sqrt{y}") is Outcome.MISMATCHED


def test_closed_it_leaves_no_process_and_starts_again(one: Pool) -> None:
    assert outcome(one, r"\sqrt{y}") is Outcome.MISMATCHED
    assert one._zygote is not None
    pids = [one._zygote.pid, idle_pid(one)]
    one.close()
    assert all(map(gone, pids))
    assert outcome(one, r"\sqrt{y}") is Outcome.MISMATCHED


def test_dropped_it_leaves_no_process(faulty: Callable[..., Pool]) -> None:
    workers = faulty()
    assert outcome(workers, r"\sqrt{y}") is Outcome.MISMATCHED
    assert workers._zygote is not None
    pids = [workers._zygote.pid, idle_pid(workers)]
    del workers
    assert all(map(gone, pids))


def test_closed_while_in_use_it_goes_on(one: Pool) -> None:
    rulings: list[Ruling] = []
    thread = threading.Thread(target=lambda: rulings.append(one.judge(comparison(SLEEP), 3.0)))
    thread.start()
    threading.Event().wait(1.0)
    one.close()
    thread.join()
    assert rulings == [Ruling(Outcome.TIMED_OUT, overran=True)]


def test_eight_threads_lose_nothing(faulty: Callable[..., Pool]) -> None:
    answers = [r"\sqrt{y}", EXIT, GOLD, SLEEP, RAISE]
    expected = [Outcome.MISMATCHED, Outcome.TIMED_OUT, Outcome.MATCHED, Outcome.TIMED_OUT, Outcome.UNPARSABLE]
    workers = faulty(2)
    results: dict[int, list[Outcome]] = {}

    def work(number: int) -> None:
        seconds = [60.0, 60.0, 60.0, 0.2, 60.0]
        results[number] = [
            outcome(workers, answer, seconds=each) for answer, each in zip(answers, seconds, strict=True)
        ]

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    workers.close()
    assert results == dict.fromkeys(range(8), expected)


# The verifier over such workers.


@pytest.fixture
def verifier(faulty: Callable[..., Pool]) -> Iterator[Verifier]:
    with Verifier(0.5, 2, _worker_module="faulty_worker") as verifier:
        yield verifier


def requests(*answers: str, gold: str = GOLD) -> list[ScoringRequest]:
    return [ScoringRequest(rf"\boxed{{{answer}}}", gold, answer_type="expression") for answer in answers]


def count_judged(verifier: Verifier, monkeypatch: pytest.MonkeyPatch) -> list[Comparison]:
    """The comparisons that reach a worker from now on."""
    seen: list[Comparison] = []
    judge = verifier._pool.judge

    def noted(comparison: Comparison, seconds: float) -> Ruling:
        seen.append(comparison)
        return judge(comparison, seconds)

    monkeypatch.setattr(verifier._pool, "judge", noted)
    return seen


def test_order_is_kept_and_nothing_lost(verifier: Verifier) -> None:
    answers = ["x + 1", SLEEP, GOLD, EXIT, "x + 2", SPIN, "x + 3"]
    outcomes = [verdict.outcome for verdict in verifier.verify_batch(requests(*answers))]
    wrong, late = Outcome.MISMATCHED, Outcome.TIMED_OUT
    assert outcomes == [wrong, late, Outcome.MATCHED, late, wrong, late, wrong]


def test_equal_items_are_judged_once(verifier: Verifier, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = count_judged(verifier, monkeypatch)
    verdicts = verifier.verify_batch(requests(*["x + 1", "x + 2"] * 4))
    assert {verdict.outcome for verdict in verdicts} == {Outcome.MISMATCHED}
    assert len(seen) == 2
    verifier.verify_batch(requests("x + 1", "x + 3"))
    assert [item.found.answer for item in seen[2:] if item.found] == ["x + 3"]


def test_what_overran_costs_its_deadline_once(verifier: Verifier, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = count_judged(verifier, monkeypatch)
    for _ in range(3):
        assert verifier.verify_batch(requests(SLEEP))[0].outcome is Outcome.TIMED_OUT
    assert len(seen) == 1
    verifier.verify_batch(requests(SLEEP), deadline_seconds=0.6)  # a longer one may do
    assert len(seen) == 2


def test_a_gold_answer_that_overran_is_remembered_for_every_completion(
    verifier: Verifier, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = count_judged(verifier, monkeypatch)
    verdicts = verifier.verify_batch(requests(*(f"x + {n}" for n in range(16)), gold=SLEEP))
    assert {verdict.outcome for verdict in verdicts} == {Outcome.GOLD_UNPARSABLE}
    assert len(seen) <= verifier.num_workers
    assert verifier.verify_batch(requests("y", gold=SLEEP))[0].outcome is Outcome.GOLD_UNPARSABLE
    assert len(seen) <= verifier.num_workers


def test_a_death_is_not_remembered(verifier: Verifier, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = count_judged(verifier, monkeypatch)
    for _ in range(2):
        assert verifier.verify_batch(requests(EXIT))[0].outcome is Outcome.TIMED_OUT
    assert len(seen) == 2


def test_it_is_pickled_without_its_processes() -> None:
    with Verifier(2.5, 3) as verifier:
        copy = pickle.loads(pickle.dumps(verifier))
    assert (copy.deadline_seconds, copy.num_workers) == (2.5, 3)


# In other processes.


def run(code: str, **keywords: object) -> subprocess.CompletedProcess[str]:
    program = [sys.executable, "-c", textwrap.dedent(code)]
    return subprocess.run(program, stdout=subprocess.PIPE, text=True, timeout=300, check=False, **keywords)  # type: ignore[call-overload]


PREPARED = """
import os, signal, threading
from lcot_plugin.rewards import Verifier
from lcot_plugin.types import ScoringRequest
verifier = Verifier(100.0, 2, _worker_module="faulty_worker")
hangs = ScoringRequest(r"\\boxed{x+901}", r"\\sqrt{x}", answer_type="expression")
verifier.verify(r"\\sqrt{y}", r"\\sqrt{x}", answer_type="expression")
print(verifier._pool._zygote.pid, *(seat.pid for seat in verifier._pool._seats.queue if seat), flush=True)
"""


@pytest.mark.parametrize("busy", [False, True])
def test_a_killed_parent_leaves_no_process(faulty: Callable[..., Pool], busy: bool) -> None:
    hang = """
threading.Timer(1.0, os.kill, (os.getpid(), signal.SIGKILL)).start()
verifier.verify_batch([hangs])
"""
    parent = run(PREPARED + (hang if busy else "os.kill(os.getpid(), signal.SIGKILL)"))
    assert parent.returncode == -signal.SIGKILL
    pids = [int(pid) for pid in parent.stdout.split()]
    assert len(pids) == 2
    assert all(gone(pid, zombies=False) for pid in pids)


def test_ctrl_c_ends_all(faulty: Callable[..., Pool]) -> None:
    # To the whole group, as a terminal sends it.
    code = (
        PREPARED
        + """
signal.signal(signal.SIGINT, signal.default_int_handler)
threading.Timer(1.0, os.killpg, (0, signal.SIGINT)).start()
verifier.verify_batch([hangs] * 3)
"""
    )
    parent = run(code, start_new_session=True, stderr=subprocess.PIPE)
    assert "KeyboardInterrupt" in parent.stderr
    assert all(gone(int(pid), zombies=False) for pid in parent.stdout.split())


def test_a_fork_in_the_midst_of_use_has_workers_of_its_own(faulty: Callable[..., Pool]) -> None:
    code = """
    from lcot_plugin.types import Outcome
    def verdict():
        return verifier.verify(r"\\\\sqrt{z}", r"\\\\sqrt{x}", answer_type="expression").outcome

    thread = threading.Thread(target=verifier.verify_batch, args=([hangs],), kwargs={"deadline_seconds": 4.0})
    thread.start()
    threading.Event().wait(0.5)
    zygote = verifier._pool._zygote
    child = os.fork()
    if child == 0:
        right = verdict() is Outcome.MISMATCHED and verifier._pool._zygote.pid != zygote.pid
        verifier.close()
        os._exit(0 if right else 1)
    assert os.waitpid(child, 0)[1] == 0
    assert verdict() is Outcome.MISMATCHED and verifier._pool._zygote is zygote
    thread.join()
    """
    assert run(PREPARED + textwrap.dedent(code.replace("\\\\\\\\", "\\\\"))).returncode == 0


def test_in_data_loader_workers(faulty: Callable[..., Pool]) -> None:
    code = """
    import torch
    class Answers(torch.utils.data.Dataset):
        def __len__(self):
            return 8
        def __getitem__(self, index):
            answer = r"\\sqrt{%d+x}" % index if index % 4 else "x+901"
            return verifier.verify(answer, r"\\sqrt{x}", answer_type="expression", deadline_seconds=0.5).outcome.value

    loader = torch.utils.data.DataLoader(Answers(), batch_size=2, num_workers=2)
    print([outcome for batch in loader for outcome in batch])
    """
    done = run(PREPARED + textwrap.dedent(code))
    assert done.returncode == 0
    assert done.stdout.splitlines()[1] == str((["timed_out"] + ["mismatched"] * 3) * 2)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_memory_stays_flat() -> None:
    def kilobytes(pid: int | str) -> int:
        status = Path(f"/proc/{pid}/status").read_text()
        return int(status.split("VmRSS:")[1].split()[0])

    with Verifier(num_workers=1) as verifier:
        for turn in range(4):
            batch = [
                ScoringRequest(rf"\boxed{{\sqrt{{{n}}} + {turn}}}", r"x+\sqrt{2}", answer_type="expression")
                for n in range(1, 101)
            ]
            assert len(verifier.verify_batch(batch)) == 100
            zygote = verifier._pool._zygote
            assert zygote is not None
            sizes = [kilobytes(pid) for pid in ("self", zygote.pid, idle_pid(verifier._pool))]
            if turn == 0:
                first = sizes
    assert all(size < start + 150_000 for start, size in zip(first, sizes, strict=True))
