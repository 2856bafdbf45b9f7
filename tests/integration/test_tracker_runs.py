"""Each tracker's tables and resumed runs: TensorBoard's for real, the others with stand-ins of the same calls.

The stand-ins have the signatures of wandb 0.31, Trackio 0.43 and SwanLab 0.10.3, and refuse what these refuse.
"""

from __future__ import annotations

import sys
from contextvars import ContextVar
from functools import partial
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from PIL import Image
from transformers.integrations import TensorBoardCallback

from lcot_plugin.integration.tracker_runs import (
    ArgumentsReporter,
    SwanLabTracker,
    TensorBoardTracker,
    Tracker,
    TrackioTracker,
    WandbTracker,
)
from lcot_plugin.integration.tracker_tables import CompletionTable

ARGS = SimpleNamespace(run_name=None, project="lcot", output_dir="")


@pytest.fixture
def table() -> CompletionTable:
    """Two groups of two; the first has a picture."""
    picture = Image.new("RGB", (6, 4), "red")
    columns = ["step", "source", "record", "sample", "picture", "question", "completion", "gold", "reward/f.py:g"]
    rows = [
        [8, "problems", record, str(sample), picture if record == 0 else None, "How many?", "<b>3</b>", "3", 0.5]
        for record in range(2)
        for sample in range(2)
    ]
    return CompletionTable(8, columns, rows, [slice(0, 2), slice(2, 4)])


class StandInImage:
    """An image class of a tracker: takes a PIL image."""

    def __init__(self, value: Any, caption: str | None = None):
        assert isinstance(value, Image.Image)
        self.value, self.caption = value, caption


# wandb


class StandInWandb(ModuleType):
    Image = StandInImage

    def __init__(self) -> None:
        super().__init__("wandb")
        self.run: Any = None
        self.logged: list[dict[str, Any]] = []
        self.inits: list[dict[str, Any]] = []
        self.told: dict[str, Any] = {}

    def init(self, **options: Any) -> None:
        assert set(options) <= {"project", "id", "resume", "name", "entity"}
        self.inits.append(options)
        self.run = SimpleNamespace(id=options.get("id", "new1"), project=options["project"], entity="")

    def Table(self, columns: list[str], data: list[list[Any]]) -> Any:
        assert all(len(row) == len(columns) for row in data)
        return SimpleNamespace(columns=columns, data=data)

    @property
    def config(self) -> Any:
        return SimpleNamespace(update=self.update)

    def update(self, values: dict[str, Any], allow_val_change: bool = False) -> None:
        if not allow_val_change and any(self.told.get(key, value) != value for key, value in values.items()):
            raise ValueError("Attempted to change value of key")  # its ConfigError
        self.told |= values

    def log(self, values: dict[str, Any]) -> None:
        assert self.run is not None, "You must call wandb.init() before wandb.log()"
        self.logged.append(values)


@pytest.fixture
def wandb(monkeypatch: pytest.MonkeyPatch) -> StandInWandb:
    monkeypatch.delenv("WANDB_RUN_ID", raising=False)
    return StandInWandb()


def test_wandb_gets_a_table_with_an_image_per_problem(wandb: StandInWandb, table: CompletionTable) -> None:
    tracker = WandbTracker(SimpleNamespace(_wandb=wandb), "wandb")
    wandb.init(project="lcot")
    tracker.show("train/completions", table)
    (logged,) = wandb.logged
    assert logged["train/global_step"] == 8
    shown = logged["train/completions"]
    assert shown.columns == table.columns
    pictures = [row[4] for row in shown.data]
    assert isinstance(pictures[0], StandInImage) and pictures[0] is pictures[1]
    assert pictures[2:] == [None, None]
    assert [row[:4] + row[5:] for row in shown.data] == [row[:4] + row[5:] for row in table.rows]


def test_wandb_goes_on_with_the_run(wandb: StandInWandb) -> None:
    tracker = WandbTracker(SimpleNamespace(_wandb=wandb), "wandb")
    assert tracker.run() is None
    with tracker.beginning(ARGS, None):
        assert wandb.inits == [], "a fresh run is begun by the callback"
        wandb.init(project="lcot")
    saved = tracker.run()
    assert saved == {"id": "new1", "project": "lcot", "entity": ""}
    wandb.run = None  # another process
    with tracker.beginning(ARGS, {**saved, "step": 4}):
        assert wandb.run.id == "new1"
    assert wandb.inits[-1] == {"project": "lcot", "id": "new1", "resume": "allow"}


def test_a_run_that_the_user_has_chosen_is_left_alone(wandb: StandInWandb, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_RUN_ID", "mine")
    with WandbTracker(SimpleNamespace(_wandb=wandb), "wandb").beginning(ARGS, {"id": "a", "project": "b", "step": 1}):
        assert wandb.inits == []


def test_llamafactory_may_tell_other_arguments(wandb: StandInWandb, monkeypatch: pytest.MonkeyPatch) -> None:
    from llamafactory.train.callbacks import ReporterCallback

    monkeypatch.setitem(sys.modules, "wandb", wandb)
    monkeypatch.setenv("WANDB_PROJECT", "lcot")
    state, args = SimpleNamespace(is_world_process_zero=True), SimpleNamespace(report_to=["wandb"])
    wandb.init(project="lcot")
    for epsilon in (0.2, 0.3):
        plain: Any = SimpleNamespace(to_dict=dict)
        finetuning: Any = SimpleNamespace(use_swanlab=False, to_dict=partial(dict, grpo_epsilon=epsilon))
        callback = ReporterCallback(plain, plain, finetuning, plain)
        with ArgumentsReporter(callback, "reporter").beginning(args, None):
            callback.on_train_begin(args, state, None)
        assert wandb.told["finetuning_args"] == {"grpo_epsilon": epsilon}
    wandb.run = None
    with ArgumentsReporter(callback, "reporter").beginning(SimpleNamespace(report_to=["wandb"]), None):
        pass  # a run that wandb has refused


def test_arguments_go_without_secrets() -> None:
    from llamafactory.train.callbacks import ReporterCallback

    told: list[dict[str, Any]] = []
    given: Any = SimpleNamespace(
        use_swanlab=True,
        to_dict=partial(dict, grpo_vllm_url="http://me:hunter2@host:8000", hf_hub_token="hf_1", grpo_epsilon=0.2),
    )
    callback = ReporterCallback(given, given, given, given)
    with ArgumentsReporter(callback, "reporter").beginning(SimpleNamespace(report_to=[]), None):
        assert callback.finetuning_args.use_swanlab
        told.append(callback.finetuning_args.to_dict())
    assert told == [{"grpo_vllm_url": "http://***@host:8000", "hf_hub_token": "***", "grpo_epsilon": 0.2}]
    assert callback.finetuning_args is given


# TensorBoard


def train(callback: TensorBoardCallback, tracker: Tracker, folder: Path, steps: range, saved: Any) -> dict[str, Any]:
    """Logs each step's own number; returns what names the run."""
    args = SimpleNamespace(output_dir=str(folder), to_json_string=lambda: "{}", run_name=None, project="")
    state = SimpleNamespace(is_world_process_zero=True, is_hyper_param_search=False, global_step=steps.start - 1)
    with tracker.beginning(args, saved):
        callback.on_train_begin(args, state, None)
    run = tracker.run()
    assert run is not None
    for step in steps:
        state.global_step = step
        callback.on_log(args, state, None, logs={"reward": float(step + (100 if saved else 0))})
    return run


def events(folder: Path) -> Any:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    accumulator = EventAccumulator(str(folder), size_guidance={"tensors": 0, "images": 0, "scalars": 0})
    accumulator.Reload()
    return accumulator


def test_tensorboard_gets_a_text_and_a_picture_per_group(table: CompletionTable, tmp_path: Path) -> None:
    callback = TensorBoardCallback()
    tracker = TensorBoardTracker(callback, "tensorboard")
    run = train(callback, tracker, tmp_path, range(1, 3), None)
    tracker.show("train/completions", table)
    found = events(tmp_path / run["folder"])
    assert [event.value for event in found.Scalars("train/reward")] == [1, 2]
    (text,) = found.Tensors("train/completions/text_summary")
    assert text.step == 8
    assert "    <b>3</b>" in text.tensor_proto.string_val[0].decode()
    assert "record 1" in found.Tensors("train/completions_2/text_summary")[0].tensor_proto.string_val[0].decode()
    (picture,) = found.Images("train/completions_picture")
    assert (picture.step, picture.width, picture.height) == (8, 6, 4)
    assert found.Tags()["images"] == ["train/completions_picture"], "the second group has none"
    callback.on_train_end(None, None, None)


@pytest.mark.parametrize("inside", [True, False])
def test_tensorboard_goes_on_in_its_folder_from_the_checkpoint(
    inside: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    out, logs = tmp_path / "out", tmp_path / "logs"
    if not inside:
        monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", str(logs))
    first = TensorBoardCallback()
    run = train(first, TensorBoardTracker(first, "tensorboard"), out, range(1, 5), None)
    first.tb_writer.close()  # killed, but what it wrote has reached the disk
    assert Path(run["folder"]).is_absolute() != inside, "an output_dir can be moved with its runs"

    second = TensorBoardCallback()
    tracker = TensorBoardTracker(second, "tensorboard")
    assert train(second, tracker, out, range(3, 6), {**run, "step": 2}) == run
    second.on_train_end(None, None, None)
    found = events(out / run["folder"])
    assert [(event.step, event.value) for event in found.Scalars("train/reward")] == [
        *((1, 1.0), (2, 2.0)),
        *((3, 103.0), (4, 104.0), (5, 105.0)),
    ], "steps 3 and 4 are those made again"


# Trackio


class StandInTrackio(ModuleType):
    Image = StandInImage

    def __init__(self) -> None:
        super().__init__("trackio")
        self.context_vars = SimpleNamespace(current_run=ContextVar("current_run", default=None))
        self.logged: list[dict[str, Any]] = []
        self.finished: list[str] = []

    def init(self, project: str, name: str | None) -> None:
        self.context_vars.current_run.set(SimpleNamespace(name=name or "dainty-sunset-0"))

    def Table(self, columns: list[str], data: list[list[Any]]) -> Any:
        return [dict(zip(columns, row, strict=True)) for row in data]

    def log(self, metrics: dict[str, Any]) -> None:
        if self.context_vars.current_run.get() is None:
            raise RuntimeError("Call trackio.init() before trackio.log().")
        self.logged.append(metrics)

    def finish(self) -> None:
        run = self.context_vars.current_run.get()
        if run is None:
            raise RuntimeError("Call trackio.init() before trackio.finish().")
        self.finished.append(run.name)
        self.context_vars.current_run.set(None)


def test_trackio_gets_a_table_also_after_training(table: CompletionTable) -> None:
    trackio = StandInTrackio()
    tracker = TrackioTracker(SimpleNamespace(_trackio=trackio), "trackio")
    trackio.init("lcot", None)
    tracker.end(trackio.finish)
    tracker.show("eval/completions", table)
    (logged,) = trackio.logged
    rows = logged["eval/completions"]
    assert [isinstance(row["picture"], StandInImage) for row in rows] == [True, True, False, False]
    assert rows[0]["picture"] is not rows[1]["picture"]
    assert rows[0]["completion"] == "<b>3</b>"
    assert trackio.finished == []
    tracker.close()
    tracker.close()
    assert trackio.finished == ["dainty-sunset-0"]


def test_a_trackio_run_that_was_stopped_is_finished() -> None:
    trackio = StandInTrackio()
    tracker = TrackioTracker(SimpleNamespace(_trackio=trackio), "trackio")
    tracker.close()
    trackio.init("lcot", None)
    tracker.close()
    assert trackio.finished == ["dainty-sunset-0"]


def test_trackio_goes_on_with_the_run() -> None:
    trackio = StandInTrackio()
    tracker = TrackioTracker(SimpleNamespace(_trackio=trackio), "trackio")
    args = SimpleNamespace(run_name=None, project="lcot")
    with tracker.beginning(args, None):
        assert args.run_name is None
        trackio.init(args.project, args.run_name)
    saved = tracker.run()
    assert saved == {"name": "dainty-sunset-0", "project": "lcot"}
    with tracker.beginning(args, saved):
        assert args.run_name == "dainty-sunset-0"
    assert args.run_name is None, "other trackers name their runs themselves"
    for other in (SimpleNamespace(run_name=None, project="other"), SimpleNamespace(run_name="mine", project="lcot")):
        with tracker.beginning(other, saved):
            assert other.run_name in (None, "mine")


# SwanLab


class StandInSwanLab(ModuleType):
    """0.10: `get_run` raises where there is none."""

    Image = StandInImage

    def __init__(self) -> None:
        super().__init__("swanlab")
        self.current: Any = None
        self.logged: list[tuple[dict[str, Any], int]] = []
        self.echarts = SimpleNamespace(Table=StandInChart)

    def has_run(self) -> bool:
        return self.current is not None

    def get_run(self) -> Any:
        if self.current is None:
            raise RuntimeError("No active SwanLab Run.")
        return self.current

    def init(self, *, project: str | None = None, name: str | None = None) -> None:
        import os

        assert self.current is None
        self.current = SimpleNamespace(
            id=os.environ.get("SWANLAB_RUN_ID", "new1"),
            resume=os.environ.get("SWANLAB_RESUME"),
            mode=os.environ.get("SWANLAB_MODE", "online"),
            name=name,
            project=project,
        )

    def log(self, data: dict[str, Any], step: int) -> None:
        self.get_run()
        self.logged.append((data, step))


class StandInChart:
    def add(self, headers: list[str], rows: list[list[Any]]) -> None:
        assert all(len(row) == len(headers) for row in rows)
        self.headers, self.rows = headers, rows


class Transformers:
    """transformers' callback; the other kind is SwanLab's own, which begins its run itself."""

    __module__ = "transformers.integrations.integration_utils"


class Own:
    __module__ = "swanlab.integration.transformers"


@pytest.fixture
def swanlab(monkeypatch: pytest.MonkeyPatch) -> StandInSwanLab:
    for name in ("SWANLAB_RUN_ID", "SWANLAB_RESUME", "SWANLAB_MODE", "SWANLAB_PROJECT"):
        monkeypatch.delenv(name, raising=False)
    module = StandInSwanLab()
    monkeypatch.setitem(sys.modules, "swanlab", module)
    return module


def test_swanlab_gets_a_table_and_the_pictures_beside_it(swanlab: StandInSwanLab, table: CompletionTable) -> None:
    swanlab.init()
    SwanLabTracker(Own(), "swanlab").show("train/completions", table)
    ((logged, step),) = swanlab.logged
    assert step == 8
    chart, (picture,) = logged["train/completions"], logged["train/completions_pictures"]
    assert chart.headers == ["step", "source", "record", "sample", "question", "completion", "gold", "reward/f_py:g"]
    assert chart.rows[0] == [8, "problems", 0, "0", "How many?", "<b>3</b>", "3", 0.5]
    assert picture.caption == "problems, record 0"


def test_swanlab_without_a_picture_is_a_table_alone(swanlab: StandInSwanLab, table: CompletionTable) -> None:
    swanlab.init()
    text_only = CompletionTable(8, table.columns, table.rows[2:], [slice(0, 2)])
    SwanLabTracker(Own(), "swanlab").show("train/completions", text_only)
    assert list(swanlab.logged[0][0]) == ["train/completions"]


def test_transformers_callback_finds_a_run_that_has_begun(
    swanlab: StandInSwanLab, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SWANLAB_PROJECT", "lcot")
    with SwanLabTracker(Transformers(), "swanlab").beginning(SimpleNamespace(run_name="mine"), None):
        assert (swanlab.get_run().project, swanlab.get_run().name) == ("lcot", "mine")
    with SwanLabTracker(Transformers(), "swanlab").beginning(SimpleNamespace(run_name="mine"), None):
        pass  # there is a run already


def test_swanlabs_own_callback_begins_by_itself(swanlab: StandInSwanLab) -> None:
    with SwanLabTracker(Own(), "swanlab").beginning(ARGS, None):
        assert not swanlab.has_run()


@pytest.mark.parametrize("kind", [Transformers, Own])
def test_swanlab_goes_on_with_a_run_that_a_server_knows(kind: type, swanlab: StandInSwanLab) -> None:
    tracker = SwanLabTracker(kind(), "swanlab")
    assert tracker.run() is None
    with tracker.beginning(ARGS, {"id": "old1", "step": 4}):
        if kind is Own:
            swanlab.init()
        assert (swanlab.get_run().id, swanlab.get_run().resume) == ("old1", "allow")
    assert tracker.run() == {"id": "old1"}
    swanlab.current.mode = "offline"
    assert tracker.run() is None
    swanlab.current = None
    with tracker.beginning(ARGS, None):
        if kind is Own:
            swanlab.init()
        assert swanlab.get_run().resume is None, "the environment is as it was"


def test_an_unknown_tracker_has_metrics_only() -> None:
    tracker = Tracker(object(), "mlflow")
    assert not tracker.shows_tables and tracker.run() is None
    assert tracker.end(lambda: "ended") == "ended"
    tracker.close()
