"""What each experiment tracker needs beyond its callback: to go on with a run that was resumed, and to show a table.

In: the callback that `report_to` (or LLaMA-Factory's `use_swanlab`) has made, a `CompletionTable`. Out: calls of the
tracker's own module, which the callback has imported already: the plugin depends on none of them. Errors are the
tracker's own; trackers.py guards against all of them.

Each class works around what its callback in transformers 5 does not do:

    wandb        a resumed run is a new one, unless WANDB_RUN_ID is set before anything has touched wandb; for
                 LLaMA-Factory's reporter, arguments that have changed meanwhile are an error
    tensorboard  a resumed run writes into a new folder; the steps after the checkpoint stay beside those made again
    trackio      a resumed run without a `run_name` is a new one; its run is closed before the last evaluation logs
    swanlab      swanlab 0.10 raises where the callback asks whether there is a run and expects None
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from lcot_plugin.integration.tracker_tables import PICTURE, CompletionTable, markdown
from lcot_plugin.report.masking import masked

Saved = Mapping[str, Any]
"""What `Tracker.run` gave when the run began: it names the tracker's run."""


class Tracker:
    """A tracker that gets metrics from its callback, and no tables: MLflow, Comet, ClearML and so on."""

    shows_tables = False
    advice = "Leave it out of report_to, or mend what it says."

    def __init__(self, callback: Any, name: str):
        self.callback, self.name = callback, name

    @contextmanager
    def beginning(self, args: Any, saved: Saved | None) -> Iterator[None]:
        """Around the callback's own beginning, on the first process. saved: of the run to go on with, or None."""
        yield

    def end(self, original: Callable[[], Any]) -> Any:
        """Training has ended; an evaluation may follow. original: the callback's own end."""
        return original()

    def close(self) -> None:
        """Nothing follows."""

    def run(self) -> dict[str, Any] | None:
        """What names the tracker's run, once it has begun; None where it cannot be continued."""
        return None

    def show(self, key: str, table: CompletionTable) -> None:
        """Sends a table under `key`, a name like `train/completions`."""
        raise NotImplementedError


class WandbTracker(Tracker):
    """wandb.Table with wandb.Image."""

    shows_tables = True
    advice = "Log in with `wandb login`, or set WANDB_MODE=offline and upload later with `wandb sync`."

    @property
    def wandb(self) -> Any:
        return self.callback._wandb

    @contextmanager
    def beginning(self, args: Any, saved: Saved | None) -> Iterator[None]:
        if saved and self.wandb.run is None and "WANDB_RUN_ID" not in os.environ:
            names = {"name": args.run_name, "entity": saved.get("entity")}
            self.wandb.init(
                project=saved["project"],
                id=saved["id"],
                resume="allow",
                **{key: value for key, value in names.items() if value},
            )
        yield

    def run(self) -> dict[str, Any] | None:
        run = self.wandb.run
        return {"id": run.id, "project": run.project, "entity": run.entity} if run is not None else None

    def show(self, key: str, table: CompletionTable) -> None:
        place = table.columns.index(PICTURE)
        # One image per problem: its completions share the picture.
        images = {id(row[place]): self.wandb.Image(row[place]) for row in table.rows if row[place] is not None}
        rows = [[*row[:place], images.get(id(row[place])), *row[place + 1 :]] for row in table.rows]
        shown = self.wandb.Table(columns=table.columns, data=rows)
        self.wandb.log({key: shown, "train/global_step": table.step})


class TensorBoardTracker(Tracker):
    """TensorBoard has no tables: a text per group, which its Text page shows as Markdown, and an image beside it."""

    shows_tables = True
    advice = "Look for a full disk or missing rights at its folder (TENSORBOARD_LOGGING_DIR, by default output_dir)."

    @contextmanager
    def beginning(self, args: Any, saved: Saved | None) -> Iterator[None]:
        self._output_dir = Path(args.output_dir)
        if saved:
            if self.callback.logging_dir is None:
                self.callback.logging_dir = str(self._output_dir / saved["folder"])
            if self.callback.tb_writer is None:
                # TensorBoard then leaves out what the earlier start has written of later steps.
                self.callback.tb_writer = self.callback._SummaryWriter(
                    log_dir=self.callback.logging_dir, purge_step=saved["step"] + 1
                )
        yield

    def run(self) -> dict[str, Any] | None:
        folder = Path(self.callback.logging_dir)
        inside = folder.resolve().is_relative_to(self._output_dir.resolve())
        return {"folder": os.path.relpath(folder, self._output_dir) if inside else str(folder.absolute())}

    def show(self, key: str, table: CompletionTable) -> None:
        writer = self.callback.tb_writer
        for number, group in enumerate(table.groups):
            tag = key if number == 0 else f"{key}_{number + 1}"
            writer.add_text(tag, markdown(table, group), table.step)
            picture = table.values(PICTURE)[group][0]
            if picture is not None:
                writer.add_image(f"{tag}_picture", np.asarray(picture), table.step, dataformats="HWC")
        writer.flush()


class TrackioTracker(Tracker):
    """trackio.Table with trackio.Image."""

    shows_tables = True
    advice = (
        "By default transformers sends it to a Space of yours on the Hugging Face Hub, which needs a login: write "
        "`trackio_space_id: null` to keep it on this machine."
    )

    _end: Callable[[], Any] | None = None

    @property
    def trackio(self) -> Any:
        return self.callback._trackio

    @contextmanager
    def beginning(self, args: Any, saved: Saved | None) -> Iterator[None]:
        named = args.run_name
        if saved and not named and saved["project"] == args.project:
            args.run_name = saved["name"]
        self._project = args.project
        try:
            yield
        finally:
            args.run_name = named

    def end(self, original: Callable[[], Any]) -> None:
        """Not yet: the evaluation after training logs too."""
        self._end = original

    def close(self) -> None:
        end, self._end = self._end or self.trackio.finish, None  # a run that was stopped has had no end
        if self.trackio.context_vars.current_run.get() is not None:
            end()

    def run(self) -> dict[str, Any] | None:
        run = self.trackio.context_vars.current_run.get()
        return {"name": run.name, "project": self._project} if run is not None else None

    def show(self, key: str, table: CompletionTable) -> None:
        place = table.columns.index(PICTURE)
        rows = [list(row) for row in table.rows]
        for row in rows:  # an image each: Trackio writes the file of every one
            row[place] = self.trackio.Image(row[place]) if row[place] is not None else None
        shown = self.trackio.Table(columns=table.columns, data=rows)
        self.trackio.log({key: shown, "train/global_step": table.step})


class SwanLabTracker(Tracker):
    """SwanLab's table holds text only: the pictures go beside it, one per problem, named like it."""

    shows_tables = True
    advice = (
        "Log in with `swanlab login`, or write `report_to: swanlab` without use_swanlab and set SWANLAB_MODE=offline; "
        "`swanlab sync` uploads later."
    )

    @property
    def swanlab(self) -> Any:
        return sys.modules["swanlab"]

    @contextmanager
    def beginning(self, args: Any, saved: Saved | None) -> Iterator[None]:
        continued = {"SWANLAB_RUN_ID": saved["id"], "SWANLAB_RESUME": "allow"} if saved else {}
        with _environment({} if "SWANLAB_RUN_ID" in os.environ else continued):
            if _is_transformers(self.callback) and self._run() is None and hasattr(self.swanlab, "has_run"):
                names = {"name": args.run_name, "project": os.environ.get("SWANLAB_PROJECT")}
                self.swanlab.init(**{key: value for key, value in names.items() if value})
            yield

    def _run(self) -> Any:
        try:
            return self.swanlab.get_run()
        except RuntimeError:
            return None

    def run(self) -> dict[str, Any] | None:
        run = self._run()
        # Of a run that no server knows there is nothing to go on with.
        return {"id": run.id} if getattr(run, "mode", None) == "online" else None

    def show(self, key: str, table: CompletionTable) -> None:
        place = table.columns.index(PICTURE)
        # A dot in the name of a column would be read as a path into the row.
        headers = [name.replace(".", "_") for number, name in enumerate(table.columns) if number != place]
        rows = [[cell for number, cell in enumerate(row) if number != place] for row in table.rows]
        shown = self.swanlab.echarts.Table()
        shown.add(headers, rows)
        pictures = []
        for group in table.groups:
            first = dict(zip(table.columns, table.rows[group][0], strict=True))
            if first[PICTURE] is not None:
                caption = f"{first['source']}, record {first['record']}"
                pictures.append(self.swanlab.Image(first[PICTURE], caption=caption))
        self.swanlab.log(
            {key: shown, **({f"{key}_pictures": pictures} if pictures else {})},
            step=table.step,
        )


class ArgumentsReporter(Tracker):
    """LLaMA-Factory's ReporterCallback: it sends all arguments to wandb, Trackio and SwanLab. Here they go without
    secrets, and to a wandb run that goes on also where they differ from those that the run has begun with."""

    ARGUMENTS = ("model_args", "data_args", "finetuning_args", "generating_args")

    @contextmanager
    def beginning(self, args: Any, saved: Saved | None) -> Iterator[None]:
        given = {name: getattr(self.callback, name) for name in self.ARGUMENTS}
        shown = {name: _WithoutSecrets(arguments) for name, arguments in given.items()}
        vars(self.callback).update(shown)
        try:
            wandb = sys.modules.get("wandb")
            if "wandb" in args.report_to and wandb is not None and wandb.run is not None:
                told = {name: arguments.to_dict() for name, arguments in shown.items()}
                wandb.config.update(told, allow_val_change=True)
            yield
        finally:
            vars(self.callback).update(given)


class _WithoutSecrets:
    """An argument object whose `to_dict` masks API keys, tokens and passwords in addresses."""

    def __init__(self, arguments: Any):
        self._arguments = arguments

    def __getattr__(self, name: str) -> Any:
        return getattr(self._arguments, name)

    def to_dict(self) -> dict[str, Any]:
        return masked(self._arguments.to_dict())


KINDS: dict[str, type[Tracker]] = {
    "WandbCallback": WandbTracker,
    "TensorBoardCallback": TensorBoardTracker,
    "TrackioCallback": TrackioTracker,
    "SwanLabCallback": SwanLabTracker,
    "ReporterCallback": ArgumentsReporter,
}
"""By the name of the callback's class: transformers', the tracker's own or LLaMA-Factory's."""


def _is_transformers(callback: Any) -> bool:
    """Whether a callback is transformers' own, not the one that the tracker ships."""
    return type(callback).__module__.startswith("transformers.")


@contextmanager
def _environment(values: Mapping[str, str]) -> Iterator[None]:
    """Sets variables for a while."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
