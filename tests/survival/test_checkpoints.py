"""Checkpoint folders as files: whole, damaged, left behind."""

from __future__ import annotations

import errno
import json
from pathlib import Path

import pytest

from lcot_plugin.survival import checkpoints
from lcot_plugin.survival.checkpoints import (
    INCOMPLETE,
    MANIFEST,
    checkpoint_folder,
    discard,
    fault_of,
    free_bytes,
    is_full_disk,
    newest_whole,
    publish,
    publish_finished,
    size_of,
    staged_folder,
)


def write(folder: Path, **contents: str) -> Path:
    folder.mkdir(parents=True)
    for name, text in {"optimizer.pt": "moments", "global_step2/shard_0.pt": "shard", **contents}.items():
        path = folder / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
    return folder


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    """With whole checkpoints of the steps 2 and 10."""
    for step in (2, 10):
        publish(write(staged_folder(tmp_path, step)), checkpoint_folder(tmp_path, step))
    return tmp_path


def test_the_newest_goes_by_its_number(run_dir: Path) -> None:
    assert newest_whole(run_dir) == str(run_dir / "checkpoint-10")
    assert not (run_dir / INCOMPLETE).exists()
    assert newest_whole(run_dir / "not there") is None


@pytest.mark.parametrize(
    ("damage", "fault"),
    [
        (lambda folder: (folder / "optimizer.pt").unlink(), "optimizer.pt is missing"),
        (lambda folder: (folder / "optimizer.pt").write_text("mom"), "optimizer.pt has 3 bytes instead of 7"),
        (lambda folder: (folder / "global_step2/shard_0.pt").write_text(""), "global_step2/shard_0.pt has 0 bytes"),
        (lambda folder: (folder / MANIFEST).write_text('{"files": {"opt'), f"{MANIFEST} is cut short"),
        (lambda folder: (folder / MANIFEST).unlink(), "trainer_state.json, which is written last, is missing"),
    ],
)
def test_damage_is_found_and_the_one_before_is_taken(run_dir: Path, damage: object, fault: str) -> None:
    damage(run_dir / "checkpoint-10")  # type: ignore[operator]
    said: list[str] = []
    assert newest_whole(run_dir, said.append) == str(run_dir / "checkpoint-2")
    assert len(said) == 1 and f"checkpoint-10 is not whole, {fault}" in said[0]


def test_a_json_file_may_be_written_again_but_not_cut_short(run_dir: Path) -> None:
    """Callbacks write the processor once more; with a shorter `trainer_state.json` a resume would fail."""
    folder = write(staged_folder(run_dir, 12), **{"trainer_state.json": '{"global_step": 12}'})
    publish(folder, run_dir / "checkpoint-12")
    state = run_dir / "checkpoint-12" / "trainer_state.json"
    state.write_text('{"global_step": 12, "more": 1}')
    assert fault_of(state.parent) is None
    state.write_text('{"global_st')
    assert fault_of(state.parent) == "trainer_state.json is cut short"


def test_a_checkpoint_of_transformers_is_whole_with_its_last_file(tmp_path: Path) -> None:
    state = write(tmp_path / "checkpoint-3") / "trainer_state.json"
    state.write_text('{"global_step": 3')
    assert fault_of(tmp_path / "checkpoint-3") == "trainer_state.json is cut short"
    state.write_text('{"global_step": 3}')
    assert newest_whole(tmp_path) == str(tmp_path / "checkpoint-3")


def test_what_was_being_written_is_named_and_not_taken(run_dir: Path) -> None:
    write(staged_folder(run_dir, 12))
    said: list[str] = []
    assert newest_whole(run_dir, said.append) == str(run_dir / "checkpoint-10")
    assert said == [f"{staged_folder(run_dir, 12)} was being written when its run ended: passed over."]
    discard(run_dir)
    assert newest_whole(run_dir, said.append) == str(run_dir / "checkpoint-10")
    assert len(said) == 1


def test_further_files_do_not_matter(run_dir: Path) -> None:
    """A callback saves the processor after the checkpoint has its name."""
    (run_dir / "checkpoint-10" / "tokenizer.json").write_text("{}")
    assert fault_of(run_dir / "checkpoint-10") is None


def test_an_older_one_of_the_same_name_goes_last(run_dir: Path) -> None:
    publish(write(staged_folder(run_dir, 10), **{"optimizer.pt": "others"}), run_dir / "checkpoint-10")
    assert (run_dir / "checkpoint-10" / "optimizer.pt").read_text() == "others"
    assert json.loads((run_dir / "checkpoint-10" / MANIFEST).read_text())["files"]["optimizer.pt"] == 6
    assert not (run_dir / INCOMPLETE).exists()


def test_a_kill_between_two_renames_loses_neither(run_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    staged, final, renamed = write(staged_folder(run_dir, 10), **{"optimizer.pt": "others"}), Path.rename, []

    def once(self: Path, target: Path) -> Path:
        renamed.append(self.name)
        if len(renamed) == 2:
            raise KeyboardInterrupt  # as good as a kill
        return final(self, target)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Path, "rename", once)
        publish(staged, run_dir / "checkpoint-10")
    assert not (run_dir / "checkpoint-10").exists()
    publish_finished(run_dir)
    assert newest_whole(run_dir) == str(run_dir / "checkpoint-10")
    assert (run_dir / "checkpoint-10" / "optimizer.pt").read_text() == "others"


def test_what_was_not_finished_is_not_published(run_dir: Path) -> None:
    write(staged_folder(run_dir, 12))  # without its list of files
    publish_finished(run_dir)
    assert staged_folder(run_dir, 12).is_dir() and not (run_dir / "checkpoint-12").exists()


def test_every_folder_reaches_the_disk(run_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (staged := write(staged_folder(run_dir, 12))).joinpath("global_step12").mkdir()
    synced: list[str] = []
    monkeypatch.setattr(checkpoints, "_sync_folder", lambda folder: synced.append(folder.name))
    publish(staged, run_dir / "checkpoint-12")
    assert {"checkpoint-12", "global_step12", run_dir.name} <= set(synced)


def test_sizes(run_dir: Path) -> None:
    folder = run_dir / "checkpoint-2"
    assert size_of(folder) == len("moments") + len("shard") + (folder / MANIFEST).stat().st_size
    assert free_bytes(run_dir / "not" / "yet") > 0


def test_every_library_says_a_full_disk_in_its_own_words() -> None:
    assert is_full_disk(OSError(errno.ENOSPC, "No space left on device"))
    assert is_full_disk(
        RuntimeError("[enforce fail at inline_container.cc:778] PytorchStreamWriter failed: file write failed")
    )
    assert is_full_disk(
        Exception("Error while serializing: IoError(Os { code: 28, message: No space left on device })")
    )
    assert not is_full_disk(OSError(errno.EACCES, "Permission denied"))
    assert not is_full_disk(RuntimeError("CUDA error"))
    try:
        try:
            raise OSError(errno.EDQUOT, "Disk quota exceeded")
        except OSError as error:
            raise RuntimeError("unexpected pos 64 vs 0") from error
    except RuntimeError as error:
        assert is_full_disk(error)
