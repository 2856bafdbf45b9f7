"""`lcot doctor RECIPE` on the embedded recipes and on broken ones."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from lcot_plugin import cli
from lcot_plugin.errors import ArgumentError
from lcot_plugin.integration.recipe_doctor.examine import examine
from lcot_plugin.integration.recipe_doctor.lines import GIB, Line, duration, gib, millions

ROOT = Path(__file__).parents[3]
pytestmark = pytest.mark.filterwarnings("default")


@pytest.fixture(autouse=True)
def in_the_source_tree(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)


def doctor(tmp_path: Path, *overrides: str, **options: Any) -> tuple[int, dict[str, Any]]:
    file = tmp_path / "doctor.json"
    changes = [f"output_dir={tmp_path}/out", *overrides]
    code = examine("yaml_recipes/grpo.yaml", changes, json_file=file, num_records=40, **options)
    return code, json.loads(file.read_text())


MODEL = "model_name_or_path=lcot_plugin/demo/model"


def texts(result: dict[str, Any], level: str) -> str:
    return "\n".join(f"{found['subject']}: {found['text']}" for found in result["findings"] if found["level"] == level)


def test_the_embedded_recipe_is_in_order(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    code, result = doctor(tmp_path, MODEL, memory_gib=4.0)
    assert code == 0 and result["ok"], texts(result, "WRONG")
    good = texts(result, "ok")
    assert "gold answers score 1.0 under their own verifier" in good
    assert "16 prompts x 8 completions = 128 a rollout" in good
    assert "image token: a picture of 64 x 64 becomes 4 of the model's '<|image_pad|>' (327)" in good
    assert "reward: accuracy 1.00 for 4 gold answers" in good
    assert texts(result, "skip") == "", "what stage grpo has no use for is not said to be missing"
    phases = result["estimates"]["memory"]["phases"]
    assert set(phases) == {"rollout", "update", "optimizer step"}
    assert all(0.7 * GIB < value < 4 * GIB for value in phases.values())
    assert "grpo_micro_batch_tokens" in texts(result, "note")
    assert result["estimates"]["least_seconds"]["update"] > 0
    assert capsys.readouterr().out.splitlines()[-2].startswith("nothing is wrong")


def test_what_does_not_fit_is_wrong(tmp_path: Path) -> None:
    code, result = doctor(tmp_path, MODEL, memory_gib=0.5)
    assert code == 1
    assert "does not fit into 512 MiB" in texts(result, "WRONG")


def test_a_template_of_another_family_is_found(tmp_path: Path) -> None:
    code, result = doctor(tmp_path, MODEL, "template=llava")
    assert code == 1
    assert "chat template" in texts(result, "WRONG")


def test_prompts_longer_than_the_cap_are_counted(tmp_path: Path) -> None:
    code, result = doctor(tmp_path, MODEL, "cutoff_len=20")
    assert code == 1
    said = "40 of 40 (100.0%) exceed cutoff_len 20: they are left out (overlong_policy: drop): raise cutoff_len to 3"
    assert said in texts(result, "WRONG")


def test_more_tokens_than_the_model_has_positions_for(tmp_path: Path) -> None:
    code, result = doctor(tmp_path, MODEL, "max_new_tokens=4096")
    assert code == 1
    assert "of the model's 2,048: lower cutoff_len or max_new_tokens." in texts(result, "WRONG")


def test_a_model_that_is_not_here_is_not_fetched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    code, result = doctor(tmp_path, "model_name_or_path=Nobody/Nothing-1B")
    assert code == 0
    assert "Nobody/Nothing-1B is not on this machine" in texts(result, "skip")
    assert "--download" in texts(result, "skip")


def test_a_model_that_a_recipe_makes_is_not_looked_for_on_a_hub(tmp_path: Path) -> None:
    code, result = doctor(tmp_path, "model_name_or_path=saves/sft")
    assert code == 1  # the recipe that makes it is named
    assert "saves/sft is not there yet, so template" in texts(result, "skip")
    assert "--download" not in texts(result, "skip")


def test_a_data_set_that_is_not_listed(tmp_path: Path) -> None:
    code, result = doctor(tmp_path, MODEL, "dataset=demo_rll")
    assert code == 1
    assert "did you mean demo_rl?" in texts(result, "WRONG")


def test_what_is_not_a_number_of_gib_is_refused(capsys: pytest.CaptureFixture) -> None:
    assert cli.main(["doctor", "yaml_recipes/eval.yaml", "--memory", "nan"]) == 1
    assert "--memory nan must be more than 0." in capsys.readouterr().err


def test_a_list_in_place_of_keys(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    (tmp_path / "list.yaml").write_text("- a\n- b\n")
    assert cli.main(["doctor", str(tmp_path / "list.yaml")]) == 1
    assert "list.yaml holds no keys" in capsys.readouterr().err


def test_of_other_stages_it_says_what_it_did_not_look_at(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert examine("yaml_recipes/sft.yaml", ["stage=dpo", f"output_dir={tmp_path}/out"]) == 0
    printed = capsys.readouterr().out
    assert "records, model and memory only of sft and grpo" in printed
    assert printed.splitlines()[-1] == "nothing is wrong; 1 not looked at (skip)"


def test_findings_that_cannot_be_written_stop_it_before_it_looks(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for place, said in ((tmp_path / "file/x.json", "is a file"), (tmp_path, "is a folder")):
        with pytest.raises(ArgumentError, match=said):
            examine("yaml_recipes/grpo.yaml", dry_run=True, json_file=place)


def test_ctrl_c_and_a_reader_that_has_had_enough(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture) -> None:
    monkeypatch.setattr("os.dup2", lambda *_: None)  # what the test run prints is still wanted
    for error, code in ((KeyboardInterrupt, 130), (BrokenPipeError, 141)):

        def stop(*_: object, error: type[BaseException] = error, **__: object) -> int:
            raise error

        monkeypatch.setattr("lcot_plugin.integration.recipe_doctor.examine.examine", stop)
        assert cli.main(["doctor", "yaml_recipes/eval.yaml", "--dry-run"]) == code
    assert "lcot doctor: interrupted" in capfd.readouterr().err


DATA = {
    "no_picture": {"problem": "<image>3 + 4?", "images": ["nowhere.png"], "answer": "7"},
    "good": {"problem": "3 + 4?", "answer": "7"},
    "no_gold": {"problem": "3 + 4?", "answer": r"see the figure \frac{"},
}


def data(tmp_path: Path, **numbers: int) -> list[str]:
    """Overrides for a data set of so many of each record."""
    records = [DATA[name] for name, number in numbers.items() for _ in range(number)]
    (tmp_path / "some.json").write_text(json.dumps(records))
    entry = {"file_name": "some.json", "formatting": "lcot_auto"}
    (tmp_path / "dataset_info.json").write_text(json.dumps({"some": entry, "text": "some.json"}))
    return [f"dataset_dir={tmp_path}", "dataset=some"]


def test_a_few_bad_records_are_a_note_and_many_are_wrong(tmp_path: Path) -> None:
    code, result = doctor(tmp_path, MODEL, *data(tmp_path, good=19, no_picture=1))
    assert code == 0 and "records dropped, missing image: 1" in texts(result, "note")
    code, result = doctor(tmp_path, MODEL, *data(tmp_path, good=2, no_picture=1))
    assert code == 1 and "records dropped, missing image: 1" in texts(result, "WRONG")
    code, result = doctor(tmp_path, MODEL, *data(tmp_path, good=19, no_picture=1), "bad_record_policy=error")
    assert code == 1 and "bad_record_policy: error ends the run at the first" in texts(result, "WRONG")


def test_a_set_of_which_nothing_is_left(tmp_path: Path) -> None:
    code, result = doctor(tmp_path, MODEL, *data(tmp_path, no_picture=2))
    assert code == 1 and "some: none of its records can be used" in texts(result, "WRONG")
    code, result = doctor(tmp_path, MODEL, *data(tmp_path, no_gold=1, good=1))
    assert code == 1 and "gold answers that do not score 1.0" in texts(result, "WRONG")


def test_an_entry_that_is_no_entry(tmp_path: Path) -> None:
    overrides = data(tmp_path, good=1)
    code, result = doctor(tmp_path, MODEL, *overrides, "dataset=text", dry_run=True)
    assert code == 1 and "is no object: write" in texts(result, "WRONG")
    entries = {"some": {"file_nam": "x"}, "text": {"file_name": "some.json", "formating": "lcot_auto"}}
    (tmp_path / "dataset_info.json").write_text(json.dumps(entries))
    _, result = doctor(tmp_path, MODEL, *overrides, "dataset=some,text", dry_run=True)
    assert "says not where the data are: did you mean file_name?" in texts(result, "WRONG")
    assert "has the key formating: did you mean formatting?" in texts(result, "WRONG")


def test_a_disk_that_is_nearly_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=5 * 2**20))
    code, result = doctor(tmp_path, MODEL, "save_strategy=steps", "save_total_limit=2")
    assert code == 1 and "save_total_limit 2" in texts(result, "WRONG") and "free some" in texts(result, "WRONG")
    # Without checkpoints the model at the end, of 4.2 MiB, still fits.
    code, result = doctor(tmp_path, MODEL)
    assert "disk: the model at the end takes 4 MiB; 5 MiB are free" in texts(result, "ok")


def test_a_layer_that_is_not_in_the_model_is_wrong_and_not_left_out(tmp_path: Path) -> None:
    code, result = doctor(tmp_path, MODEL, "finetuning_type=lora", "lora_target=no_proj")
    assert code == 1 and "model: cannot be built: " in texts(result, "WRONG")


def test_the_largest_settings_fit_when_they_are_written(tmp_path: Path) -> None:
    _, result = doctor(tmp_path, MODEL, memory_gib=2.0)
    largest = {
        key: int(value.split(" ")[0].rstrip(",").replace(",", ""))
        for found in result["findings"]
        if found["subject"] == "largest that fits"
        for key, _, value in [found["text"].partition(": ")]
    }
    assert set(largest) == {"grpo_rollout_batch_size", "grpo_micro_batch_tokens"}
    _, again = doctor(tmp_path, MODEL, *(f"{key}={value}" for key, value in largest.items()), memory_gib=2.0)
    phases = again["estimates"]["memory"]["phases"]
    assert max(phases.values()) <= 2 * GIB
    assert phases["update"] > 1.9 * GIB, "and little is left over"


def test_times_without_a_gpu_are_of_one_that_is_named(tmp_path: Path) -> None:
    _, result = doctor(tmp_path, MODEL, "bf16=true")
    assert "on a GPU of 100 TFLOP/s and 1,000 GB/s, which is assumed" in texts(result, "note")


def test_from_the_command_line(capsys: pytest.CaptureFixture) -> None:
    assert cli.main(["doctor", "yaml_recipes/eval.yaml", "--dry-run", "output_dir=saves/never"]) == 0
    assert capsys.readouterr().out.splitlines()[-1].startswith("nothing is wrong")
    assert cli.main(["doctor", "nothing.yaml"]) == 1
    assert "There is no file nothing.yaml" in capsys.readouterr().err
    assert cli.main(["doctor", "yaml_recipes/eval.yaml", "--processes", "0"]) == 1
    assert "--processes 0 must be more than 0." in capsys.readouterr().err


def test_figures_are_written_as_people_read_them() -> None:
    assert [gib(2**30 * 1.25), gib(3 * 2**20)] == ["1.2 GiB", "3 MiB"]
    assert [millions(3.146e9), millions(850_000)] == ["3,146 M", "0.85 M"]
    assert [duration(s) for s in (0.44, 12.4, 200, 63_969)] == ["0.4 s", "12 s", "3 min 20 s", "17 h 46 min"]
    assert str(Line("ok", "model", "x")) == "ok     model                  x"
