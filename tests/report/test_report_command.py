"""`lcot report` as it is typed."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from report_folders import write_evaluation, write_grpo_run

from lcot_plugin import __version__, cli


def test_it_says_where_it_wrote_and_how_much(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write_grpo_run(tmp_path / "run", num_steps=6)
    assert cli.main(["report", str(folder)]) == 0
    written = folder / "report.html"
    assert capsys.readouterr().out == f"{written}: {written.stat().st_size / 1e6:.1f} MB, 1 run\n"


def test_its_options(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folders = [str(write_evaluation(tmp_path / name, 0.5)) for name in ("a", "b")]
    out = tmp_path / "new" / "both.html"
    assert cli.main(["report", *folders, "-o", str(out), "--title", "A & B", "--max-rollouts", "0"]) == 0
    assert capsys.readouterr().out.endswith("2 runs\n")
    assert f"Made by lcot report, lcot-plugin {__version__}." in out.read_text()
    assert "<h1>A &amp; B</h1>" in out.read_text() and 'id="rollouts"' not in out.read_text()


def test_a_folder_without_a_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["report", str(tmp_path)]) == 1
    error = capsys.readouterr().err
    assert error.startswith("lcot report: error: ") and "holds no run" in error
    assert not (tmp_path / "report.html").exists()


def test_names_of_folders_do_not_steer_the_terminal(tmp_path: Path) -> None:
    """Nor does one that is no UTF-8 end it behind the work."""
    folder = write_grpo_run(tmp_path / "red\x1b[31m\udcff", num_steps=3)
    command = [sys.executable, "-m", "lcot_plugin", "report", str(folder)]
    result = subprocess.run(command, capture_output=True)
    assert result.returncode == 0, result.stderr
    assert b"red\\x1b[31m\\udcff/report.html" in result.stdout and b"\x1b" not in result.stdout
    assert b"red\\x1b[31m\\udcff" in (folder / "report.html").read_bytes()


def test_it_needs_neither_torch_nor_llamafactory(tmp_path: Path) -> None:
    folder = write_grpo_run(tmp_path / "run", num_steps=6)
    code = (
        "import sys; from lcot_plugin import __version__, cli; assert cli.main(['report', sys.argv[1]]) == 0; "
        "heavy = {'torch', 'transformers', 'llamafactory', 'matplotlib'} & set(sys.modules); assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code, str(folder)], check=True, capture_output=True)
