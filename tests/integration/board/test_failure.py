"""Why a run has failed: what its process wrote, in words."""

from pathlib import Path

import pytest

from lcot_plugin.integration.board.failure import MAX_LOG, Failure, explain, fenced, printable, read_failure, tail

TRACEBACK = """\
[INFO|2026-11-23] parser.py:1 >> hello
  0%|          | 0/10 [00:00<?, ?it/s]\r 10%|█         | 1/10 [00:01<00:09,  1.00s/it]
Traceback (most recent call last):
  File "/x/llamafactory-cli", line 7, in <module>
    sys.exit(main())
             ^^^^^^
  File "/x/arguments.py", line 3, in f
    raise ArgumentError(
lcot_plugin.errors.ArgumentError: grpo_num_generations: 7 does not divide 8.
Write 8.
"""


def test_the_message_of_an_error_of_ours_is_the_reason() -> None:
    failure = explain(TRACEBACK)
    assert failure.reason == "grpo_num_generations: 7 does not divide 8.\nWrite 8."
    assert failure.log.startswith("[INFO|2026-11-23]")
    assert "0/10" not in failure.log


def test_other_errors_keep_their_name() -> None:
    text = TRACEBACK.replace("lcot_plugin.errors.ArgumentError", "torch.OutOfMemoryError")
    assert explain(text).reason.startswith("OutOfMemoryError: grpo_num")
    assert explain("Traceback (most recent call last):\n  File 'x'\nKeyboardInterrupt\n").reason == "KeyboardInterrupt"


def test_of_a_chain_the_last_one_counts() -> None:
    chain = (
        "Traceback (most recent call last):\n  File 'a'\nKeyError: 'x'\n\n"
        "The above exception was the direct cause of the following exception:\n\n"
        "Traceback (most recent call last):\n  File 'b'\nOSError: no room\n"
    )
    assert explain(chain).reason == "OSError: no room"


def test_the_process_that_failed_speaks_and_not_its_launcher() -> None:
    text = "".join(f"[rank1]: {line}\n" for line in TRACEBACK.splitlines()[2:]) + (
        "Traceback (most recent call last):\n  File 'torchrun'\n    raise ChildFailedError(\n"
        "torch.distributed.elastic.multiprocessing.errors.ChildFailedError: \n"
        "============================================================\n"
        "Traceback (most recent call last):\n  File 'launcher.py'\n"
        "subprocess.CalledProcessError: Command '['torchrun']' returned non-zero exit status 1.\n"
    )
    assert explain(text).reason.startswith("grpo_num_generations: 7")


def test_of_several_processes_the_one_speaks_that_has_failed() -> None:
    theirs = (
        "[rank0]: Traceback (most recent call last):\n[rank0]:   File 'y'\n[rank0]: lcot_plugin.errors.RolloutError: "
    )
    text = TRACEBACK + theirs + "Another process could not roll out; its message says why.\n"
    assert explain(text).reason.startswith("grpo_num_generations: 7")
    assert explain(theirs + "Another process has ended.\n").reason == "Another process has ended."


def test_without_a_traceback_there_is_no_reason_but_the_log() -> None:
    assert explain("Killed\n") == Failure("", "Killed")
    assert explain("") == Failure("", "")


def test_escapes_and_controls_do_not_get_through() -> None:
    failure = explain("\x1b[31mred\x1b[0m \x1b]8;;http://x\x07link\x07 \u202eleft\x00\n")
    assert failure.log == "red link left"
    assert printable("\x1b[2Ja\x07b" * 3, 4) == "abab\n[2 more characters]"
    assert printable("gone: /data/\udcff.png", 100) == "gone: /data/.png", "half a character cannot be sent to a page"


def test_a_long_log_says_what_is_left_out() -> None:
    text = "\n".join(f"line {number}" for number in range(5000))
    log = explain(text).log
    first, _, rest = log.partition("\n")
    assert len(rest) <= MAX_LOG
    assert first == f"[{len(text) - len(rest):,} characters before this are left out]"
    assert rest.startswith("line ") and rest.endswith("line 4999")


def test_only_the_end_of_a_file_is_read(tmp_path: Path) -> None:
    path = tmp_path / "err"
    path.write_bytes(b"x" * 100 + b"\n" + b"\xff\xe4end\n")
    assert tail(path, 20).endswith("end\n")
    assert "x" not in tail(path, 20)
    assert read_failure(tmp_path / "none") == Failure("", "")


@pytest.mark.parametrize("text", ["plain", "a ``` b", "````\n```"])
def test_a_fence_holds_whatever_is_in_it(text: str) -> None:
    opening, *lines, closing = fenced(text).split("\n")
    assert "\n".join(lines) == text
    assert closing not in text and opening == f"{closing}text"
