"""Our records come back as they were; anything else is refused and not run."""

from __future__ import annotations

import os
import pickle
from array import array
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from lcot_plugin.policy.experience import Experience, MicroBatch
from lcot_plugin.policy.replay import ReplayBuffer, StoredGroup
from lcot_plugin.survival.records import load_records, save_records
from lcot_plugin.types import Completion, EncodedPrompt, Ending, PromptRecord, TrainingSequence


def sequences(image: Any = "a.png") -> list[TrainingSequence]:
    record = PromptRecord([1, 2, 3], [image], "How many?", "3", "set", 7, opening="<think>\n", pass_rate=0.5)
    prompt = EncodedPrompt(record, {"pixel_values": torch.arange(6.0).view(2, 3)}, max_new_tokens=9)
    completions = [
        Completion([4, 5], [-0.5, -1.25], Ending.STOPPED, "five"),
        Completion([6], [float("-inf")], Ending.TRUNCATED, "\ud83d", policy_logps=[-2.0]),
    ]
    return [
        TrainingSequence(prompt, completion, 3, 0.5 - n, old_logps=torch.tensor([-1.0] * len(completion.token_ids)))
        for n, completion in enumerate(completions)
    ]


def test_an_experience_comes_back_exactly(tmp_path: Path) -> None:
    experience = Experience([[MicroBatch(sequences(), 0)], [MicroBatch(sequences(b"\x00\xff"), 1)]])
    save_records(experience, tmp_path / "experience.pt")
    loaded = load_records(tmp_path / "experience.pt", Experience, MicroBatch)
    assert isinstance(loaded, Experience)
    for one, two in zip(experience.micro_batches, loaded.micro_batches, strict=True):
        assert one.number == two.number
        assert two.sequences[0].prompt is two.sequences[1].prompt, "pixels are held once"
        for old, new in zip(one.sequences, two.sequences, strict=True):
            assert new.completion == old.completion
            assert new.completion.ending is old.completion.ending
            assert new.prompt.record == old.prompt.record
            assert new.prompt.max_new_tokens == 9
            assert torch.equal(new.old_logps, old.old_logps)
            assert torch.equal(new.prompt.media["pixel_values"], old.prompt.media["pixel_values"])
            assert (new.advantage, new.group, new.trained) == (old.advantage, old.group, old.trained)


def test_a_replay_buffer_comes_back_exactly(tmp_path: Path) -> None:
    buffer: ReplayBuffer[StoredGroup] = ReplayBuffer(4)
    buffer.add([(StoredGroup.of(sequences({"bytes": b"png", "path": None})), 0.75)], rollout=2)
    save_records(buffer.state_dict(), tmp_path / "state.pt")
    loaded = load_records(tmp_path / "state.pt", StoredGroup)
    [(group, priority, rollout)] = loaded["entries"]
    assert (group, priority, rollout) == buffer.state_dict()["entries"][0]
    assert isinstance(group.token_ids[0], array) and group.token_ids[0].typecode == "i"


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "1", "P", "CMYK", "F"])
def test_a_picture_comes_back_with_every_pixel(tmp_path: Path, mode: str) -> None:
    from io import BytesIO

    picture = Image.effect_noise((9, 7), 60).convert("RGB").convert(mode) if mode != "RGBA" else None
    picture = picture or Image.effect_noise((9, 7), 60).convert("RGBA")
    save_records(sequences(picture)[0], tmp_path / "sequence.pt")
    [image] = load_records(tmp_path / "sequence.pt").prompt.record.images
    found = Image.open(BytesIO(image["bytes"]))
    assert found.mode == mode and found.tobytes() == picture.tobytes()


class Evil:
    def __init__(self, folder: Path):
        self.folder = folder

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.folder / "it was run"),)


@pytest.mark.parametrize("hidden", ["whole", "in a list", "in a record"])
def test_a_file_that_would_run_something_is_refused(tmp_path: Path, hidden: str) -> None:
    evil: Any = Evil(tmp_path)
    if hidden == "in a list":
        evil = {"entries": [evil]}
    elif hidden == "in a record":
        evil = sequences(evil)
    torch.save(evil, tmp_path / "state.pt")
    with pytest.raises(ValueError, match=r"state\.pt holds something .*mkdir.*Nothing of it was run"):
        load_records(tmp_path / "state.pt", StoredGroup)
    assert not (tmp_path / "it was run").exists()


def test_a_record_of_another_kind_is_refused(tmp_path: Path) -> None:
    torch.save(Path("x"), tmp_path / "state.pt")
    with pytest.raises(ValueError, match=r"holds something .*pathlib"):
        load_records(tmp_path / "state.pt")
    torch.save(Experience([]), tmp_path / "state.pt")
    with pytest.raises(ValueError, match="Experience"):
        load_records(tmp_path / "state.pt")


def test_a_plain_pickle_is_refused(tmp_path: Path) -> None:
    (tmp_path / "state.pt").write_bytes(pickle.dumps(Evil(tmp_path), protocol=2))
    with pytest.raises(ValueError, match=r"state\.pt"):
        load_records(tmp_path / "state.pt")
    assert not (tmp_path / "it was run").exists()


def test_a_file_that_was_cut_short_is_called_damaged(tmp_path: Path) -> None:
    save_records({"entries": [asdict(s.completion) for s in sequences()]}, tmp_path / "state.pt")
    contents = (tmp_path / "state.pt").read_bytes()
    (tmp_path / "state.pt").write_bytes(contents[: len(contents) // 2])
    with pytest.raises(ValueError, match=r"state\.pt is damaged"):
        load_records(tmp_path / "state.pt")
