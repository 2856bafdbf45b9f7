"""LLaMA Board's real page without a server or a browser: its events are called as gradio calls them."""

from __future__ import annotations

import asyncio
import shlex
import warnings
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[1]
DEFAULT_STAGE = "Supervised Fine-Tuning"


class Board:
    """The page and what a user does with it."""

    def __init__(self) -> None:
        from llamafactory.webui import interface

        engines: list[Any] = []

        class CapturedEngine(interface.Engine):
            def __init__(self, *args: Any, **kwargs: Any) -> None:
                super().__init__(*args, **kwargs)
                engines.append(self)

        async def create_ui() -> Any:
            return interface.create_ui()  # in a running loop: without one, gradio makes loops and leaves them open

        with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
            patch.setattr(interface, "Engine", CapturedEngine)
            patch.setenv("GRADIO_ANALYTICS_ENABLED", "False")
            warnings.simplefilter("ignore", DeprecationWarning)  # LLaMA-Factory passes `css` where gradio 5 wants it
            self.page = asyncio.run(create_ui())
        (self.engine,) = engines

    def elem(self, elem_id: str) -> Any:
        return self.engine.manager.get_elem_by_id(elem_id)

    def events(self, name: str) -> list[Any]:
        """The page's events that call a function of this name."""
        return [event for event in self.page.fns.values() if event.name == name]

    def inputs(self, **changed: Any) -> dict[Any, Any]:
        """What gradio hands to the preview: the components of the event, at their defaults or as the user set them."""
        (event,) = self.events("preview_train")
        data = {component: component.value for component in event.inputs}
        settings = {
            "top.lang": "en",
            "top.model_name": "Custom",
            "top.model_path": str(ROOT / "lcot_plugin/demo/model"),
            "top.template": "qwen2_vl",
            "train.training_stage": "GRPO",
            "train.dataset_dir": str(ROOT / "dataset_info"),
            "train.dataset": ["demo_rl"],
            "train.compute_type": "fp32",
            "train.output_dir": "board",
            **{name if "." in name else f"train.{name}": value for name, value in changed.items()},
        }
        return data | {self.elem(elem_id): value for elem_id, value in settings.items()}

    def open_again(self, request: Any = None) -> None:
        """What happens when the page is opened, in this or another browser."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # LLaMA-Factory sets values of lists without their choices
            list(self.engine.resume(request))

    def in_language(self, language: str) -> dict[Any, Any]:
        """The components as they are after the language was chosen."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # of LLaMA-Factory's gr.HTML
            return self.engine.change_lang(language)

    def preview(self, **changed: Any) -> str:
        """What the preview writes below the buttons; warnings of the page are not shown."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # gr.Warning outside an event
            (update,) = self.engine.runner.preview_train(self.inputs(**changed))
        return update[self.elem("train.output_box")]


def command_line(text: str) -> list[str]:
    """The arguments after `llamafactory-cli train` in the previewed Markdown, as a shell would split them."""
    fence = text[: len(text) - len(text.lstrip("`"))]
    assert text.startswith(f"{fence}bash\nllamafactory-cli train ") and text.endswith(f"\n{fence}"), text
    return shlex.split(text.removeprefix(f"{fence}bash\n").removesuffix(f"\n{fence}").replace("\\\n", ""))[2:]


def options(text: str) -> dict[str, str]:
    """Key -> value of the previewed command."""
    found = {}
    words = iter(command_line(text))
    for word in words:
        key, joint, value = word.removeprefix("--").partition("=")
        found[key] = value if joint else next(words)
    return found


def parse(arguments: list[str] | dict[str, Any]) -> dict[str, Any]:
    """LLaMA-Factory's five argument objects as one dictionary."""
    from llamafactory.hparams import get_train_args

    model, data, training, finetuning, generating = get_train_args(arguments)
    volatile = {"logging_dir", "run_name"}  # transformers writes the time and the host into their defaults
    training_fields = {key: value for key, value in training.to_dict().items() if key not in volatile}
    return {**vars(model), **vars(data), **training_fields, **vars(finetuning), **vars(generating)}
