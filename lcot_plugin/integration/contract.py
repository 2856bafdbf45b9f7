"""What lcot_plugin relies on outside itself: versions, and the internals of LLaMA-Factory that the seams touch.

In:  the imported llamafactory, and the metadata of the installed distributions.
Out: `check_version` and `check_module` stop a seam before it half-works; `faults_of_run` and `requirement_problems` are
     sentences for the log and for `lcot doctor`; `PINS` is walked by the contract test, one test per pin.

A pin is checked against the unpatched module. At run time the pins of a module are checked just before its seam is
applied, so they cost one `inspect.signature` each; the pins of other modules are checked by the tests.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
import sys
import typing
from importlib import import_module, metadata
from types import ModuleType
from typing import Any

from lcot_plugin.errors import UnsupportedVersionError

REQUIREMENTS: dict[str, str] = {
    "llamafactory": ">=0.9.5,<0.10",
    "torch": ">=2.11,<2.15",
    "torchvision": ">=0.26,<0.30",
    "torchaudio": ">=2.11,<2.12",
    "transformers": ">=4.57.1,!=5.2.*,!=5.3.*,!=5.4.*,!=5.5.0,!=5.5.1,!=5.5.2,!=5.5.3,!=5.6.0",
    "trl": ">=0.24,<0.25",
    "peft": ">=0.18.0,<0.19",
    "accelerate": ">=1.3.0,<=1.11.0",
    "datasets": ">=2.16.0,<=4.0.0",
}
"""Supported ranges, the same as in pyproject.toml (a test compares them)."""

RECOMMENDED: dict[str, str] = {
    "llamafactory": "0.9.5",
    "torch": "2.14.1",
    "torchvision": "0.29.2",
    "torchaudio": "2.11.0",
    "transformers": "5.5.4",
    "trl": "0.24.0",
    "peft": "0.18.1",
    "accelerate": "1.11.0",
    "datasets": "4.0.0",
}
"""The set that a fresh `pip install` resolves to and that the tests run with."""

TRANSFORMERS_FAULTS: tuple[tuple[str, str], ...] = (
    (">=5.2,<5.5.4", "it divides the loss by gradient_accumulation_steps twice, so gradients are too small"),
    ("==5.6.0", "its flash-attention 2 path is broken (LLaMA-Factory #10610)"),
)
"""Why some transformers releases inside the range are excluded."""


# ---------------------------------------------------------------------------------------------------------------
# Versions


def _contains(specifier: str, version: str) -> bool:
    from packaging.specifiers import SpecifierSet

    return SpecifierSet(specifier).contains(version, prereleases=True)


def llamafactory_version() -> str:
    """Version of the imported llamafactory; of the installed distribution where none is imported yet.

    Raises:
        importlib.metadata.PackageNotFoundError: where there is neither.
    """
    imported = getattr(sys.modules.get("llamafactory"), "__version__", None)
    return imported or metadata.version("llamafactory")


@functools.cache
def _check_version(version: str) -> None:
    if not _contains(REQUIREMENTS["llamafactory"], version):
        raise UnsupportedVersionError(
            f"LLaMA-Factory {version} is not supported (supported: {REQUIREMENTS['llamafactory']}). "
            f"Install a supported one with `pip install llamafactory=={RECOMMENDED['llamafactory']}`, "
            "or set LCOT_PLUGIN=0 to run LLaMA-Factory without lcot_plugin."
        )


def check_version() -> None:
    """Raise UnsupportedVersionError where the LLaMA-Factory at hand is outside the supported range."""
    _check_version(llamafactory_version())


def transformers_fault(version: str) -> str | None:
    """Why this transformers release must not train, and what to install; None for a good one."""
    for specifier, reason in TRANSFORMERS_FAULTS:
        if _contains(specifier, version):
            return f"transformers {version} is excluded: {reason}. {_remedy('transformers')}"
    return None


def faults_of_run(target: str) -> list[str]:
    """What the log must say before a run: asked for each module that is patched, answered for the tuner only."""
    if target != "llamafactory.train.tuner":
        return []
    fault = transformers_fault(metadata.version("transformers"))
    return [fault] if fault else []


def requirement_problem(name: str, version: str) -> str | None:
    """What is wrong with version `version` of distribution `name`, and what to install; None where it is supported."""
    if name == "transformers" and (fault := transformers_fault(version)):
        return fault
    if _contains(REQUIREMENTS[name], version):
        return None
    return f"{name} {version} is outside {REQUIREMENTS[name]}. {_remedy(name)}"


def _remedy(name: str) -> str:
    return f"Run `pip install {name}=={RECOMMENDED[name]}`."


# ---------------------------------------------------------------------------------------------------------------
# Internals of LLaMA-Factory


@dataclasses.dataclass(frozen=True)
class Pin:
    """One thing inside LLaMA-Factory that a seam relies on."""

    module: str
    """Module below `llamafactory`."""
    name: str
    """Attribute in it, dotted for a method."""
    seam: str
    """The file of `lcot_plugin` to change when the pin breaks."""
    why: str
    """What that file does with it."""
    parameters: str | None = None
    """All parameter names in order, blank-separated; None where the call signature does not matter."""
    fields: str | None = None
    """Dataclass fields that must exist, blank-separated."""
    choices: tuple[str, str] | None = None
    """(field, value): the field's Literal type offers the value."""
    calls: str | None = None
    """Text that the source must contain: a name it looks up in its module, which is how a replacement takes effect."""

    @property
    def target(self) -> str:
        return f"llamafactory.{self.module}"

    def violation(self, module: ModuleType) -> str | None:
        """What differs in `module`, as one sentence that names the seam file; None where the pin holds."""
        difference = self._difference(module)
        if difference is None:
            return None
        return f"{self.target}.{self.name} {difference}; lcot_plugin/{self.seam} {self.why}."

    def _difference(self, module: ModuleType) -> str | None:
        found: Any = module
        for part in self.name.split("."):
            found = getattr(found, part, None)
            if found is None:
                return "no longer exists"
        if self.parameters is not None:
            parameters = " ".join(inspect.signature(found).parameters)
            if parameters != self.parameters:
                return f"takes ({parameters}) instead of ({self.parameters})"
        if self.fields is not None:
            missing = set(self.fields.split()) - {field.name for field in dataclasses.fields(found)}
            if missing:
                return f"has lost the fields {sorted(missing)}"
        if self.choices is not None:
            field, value = self.choices
            offered = typing.get_args(typing.get_type_hints(found)[field])
            if value not in offered:
                return f"types `{field}` as {offered} and not as a Literal with {value!r}"
        if self.calls is not None and self.calls not in inspect.getsource(found):
            return f"no longer contains `{self.calls}`"
        return None


PINS: tuple[Pin, ...] = (
    # integration/arguments.py
    Pin(
        "hparams.finetuning_args",
        "FinetuningArguments",
        "integration/arguments.py",
        "subclasses it to add the stage and the keys",
        fields="stage finetuning_type plot_loss freeze_vision_tower freeze_multi_modal_projector",
        choices=("stage", "sft"),
    ),
    Pin(
        "hparams.finetuning_args",
        "FinetuningArguments.__post_init__",
        "integration/arguments.py",
        "extends the checks there",
        parameters="self",
    ),
    Pin(
        "hparams.parser",
        "_parse_train_args",
        "integration/arguments.py",
        "replaces FinetuningArguments before the parser lists it in _TRAIN_ARGS",
        parameters="args",
        calls="HfArgumentParser(_TRAIN_ARGS)",
    ),
    Pin(
        "hparams.parser",
        "get_train_args",
        "integration/arguments.py",
        "relies on its checks by stage",
        parameters="args",
        calls='finetuning_args.stage != "sft"',
    ),
    # integration/dataset_columns.py
    Pin(
        "data.parser",
        "DatasetAttr",
        "integration/dataset_columns.py",
        "adds the columns of a verifiable data set",
        fields="load_from dataset_name formatting ranking prompt query response messages images videos audios",
    ),
    Pin(
        "data.parser",
        "DatasetAttr.join",
        "integration/dataset_columns.py",
        "reads the added columns from dataset_info.json there",
        parameters="self attr",
        calls='attr["columns"]',
    ),
    Pin(
        "data.parser",
        "get_dataset_list",
        "integration/dataset_columns.py",
        "relies on DatasetAttr being looked up in the module",
        parameters="dataset_names dataset_dir",
        calls="dataset_attr.join(dataset_info[name])",
    ),
    # integration/data.py
    Pin(
        "data.loader",
        "get_dataset",
        "integration/data.py",
        "loads the records of the grpo stage through it",
        parameters="template model_args data_args training_args stage tokenizer processor",
    ),
    Pin(
        "data.loader",
        "_get_merged_dataset",
        "integration/data.py",
        "relies on its calling _load_single_dataset per data set",
        parameters="dataset_names model_args data_args training_args stage return_dict",
        calls="_load_single_dataset(dataset_attr, model_args, data_args, training_args)",
    ),
    Pin(
        "data.loader",
        "_load_single_dataset",
        "integration/data.py",
        "relies on align_dataset being looked up in the module",
        parameters="dataset_attr model_args data_args training_args",
        calls="align_dataset(dataset, dataset_attr, data_args, training_args)",
    ),
    Pin(
        "data.loader",
        "align_dataset",
        "integration/data.py",
        "carries the gold answers through it",
        parameters="dataset dataset_attr data_args training_args",
    ),
    Pin(
        "data.loader",
        "_get_dataset_processor",
        "integration/data.py",
        "returns the processor of the grpo stage in its place",
        parameters="data_args stage template tokenizer processor do_generate",
    ),
    Pin(
        "data.loader",
        "_get_preprocessed_dataset",
        "integration/data.py",
        "relies on its looking _get_dataset_processor up in the module",
        parameters="dataset data_args training_args stage template tokenizer processor is_eval",
        calls="dataset_processor = _get_dataset_processor(",
    ),
    Pin(
        "data.processor.unsupervised",
        "UnsupervisedDatasetProcessor._encode_data_example",
        "integration/prompts.py",
        "encodes RL prompts with it, so that they equal the SFT prompts",
        parameters="self prompt response system tools images videos audios",
    ),
    Pin(
        "data.template",
        "Template.encode_oneturn",
        "integration/prompts.py",
        "encodes prompts with it",
        parameters="self tokenizer messages system tools",
    ),
    Pin(
        "data.template",
        "Template.encode_multiturn",
        "integration/prompts.py",
        "compares SFT prompts with RL prompts through it",
        parameters="self tokenizer messages system tools discarding_history_cot",
    ),
    Pin(
        "data.template",
        "Template.get_stop_token_ids",
        "integration/grpo.py",
        "ends completions at these tokens",
        parameters="self tokenizer",
    ),
    Pin(
        "data.template",
        "get_template_and_fix_tokenizer",
        "integration/grpo.py",
        "prepares the tokenizer with it",
        parameters="tokenizer data_args",
    ),
    Pin(
        "data.mm_plugin",
        "BasePlugin.process_messages",
        "integration/prompts.py",
        "expands image placeholders with it",
        parameters="self messages images videos audios processor",
    ),
    Pin(
        "data.mm_plugin",
        "BasePlugin.process_token_ids",
        "integration/prompts.py",
        "expands image tokens with it",
        parameters="self input_ids labels images videos audios tokenizer processor",
    ),
    Pin(
        "data.mm_plugin",
        "BasePlugin.get_mm_inputs",
        "integration/media.py",
        "turns images into tensors with it",
        parameters="self images videos audios imglens vidlens audlens batch_ids processor",
    ),
    # integration/stage.py and the trainer
    Pin(
        "train.tuner",
        "_training_function",
        "integration/stage.py",
        "runs `stage: grpo` in its place",
        parameters="config",
        calls='finetuning_args.stage == "sft"',
    ),
    Pin(
        "train.tuner",
        "run_exp",
        "integration/stage.py",
        "relies on its looking _training_function up in the module",
        parameters="args callbacks",
        calls='_training_function(config={"args": args, "callbacks": callbacks})',
    ),
    Pin(
        "train.tuner",
        "Worker._training_function",
        "integration/stage.py",
        "relies on Ray workers looking _training_function up in the module",
        parameters="self config",
        calls="_training_function(config)",
    ),
    Pin(
        "train.sft.trainer",
        "CustomSeq2SeqTrainer.__init__",
        "integration/grpo_trainer.py",
        "subclasses it",
        parameters="self finetuning_args processor model_args gen_kwargs ref_model kwargs",
    ),
    Pin(
        "train.trainer_utils",
        "create_ref_model",
        "integration/grpo.py",
        "loads the frozen reference policy with it",
        parameters="model_args finetuning_args add_valuehead",
    ),
    Pin(
        "train.trainer_utils",
        "create_modelcard_and_push",
        "integration/grpo.py",
        "writes the model card with it",
        parameters="trainer model_args data_args training_args finetuning_args",
    ),
    Pin(
        "train.callbacks",
        "LogCallback.on_log",
        "integration/grpo_trainer.py",
        "logs the rewards through it",
        parameters="self args state control kwargs",
    ),
    Pin(
        "extras.ploting",
        "plot_loss",
        "integration/grpo.py",
        "plots the rewards with it",
        parameters="save_dictionary keys",
    ),
    Pin(
        "model",
        "load_model",
        "integration/grpo.py",
        "loads the policy with it",
        parameters="tokenizer model_args finetuning_args is_trainable add_valuehead",
    ),
    Pin("model", "load_tokenizer", "integration/grpo.py", "loads the processor with it", parameters="model_args"),
    # integration/webui.py
    Pin("webui.runner", "TRAINING_STAGES", "integration/webui.py", "adds the stage to it"),
    Pin(
        "webui.runner",
        "Runner._parse_train_args",
        "integration/webui.py",
        "gives the stage its arguments",
        parameters="self data",
        calls="TRAINING_STAGES[",
    ),
    # cli.py
    Pin(
        "launcher",
        "launch",
        "cli.py",
        "lets torchrun start integration/worker.py instead of the launcher's own file",
        parameters="",
        calls="file_name=__file__",
    ),
)
"""Everything of LLaMA-Factory that the plugin touches without its being public."""


def violations(module: ModuleType) -> list[str]:
    """The broken pins of one imported, unpatched LLaMA-Factory module, as sentences."""
    found = (pin.violation(module) for pin in PINS if pin.target == module.__name__)
    return [sentence for sentence in found if sentence is not None]


def check_module(module: ModuleType) -> None:
    """Raise UnsupportedVersionError where a seam could not patch `module` as it is meant to."""
    broken = violations(module)
    if broken:
        raise UnsupportedVersionError(
            f"LLaMA-Factory {llamafactory_version()} differs from what lcot_plugin patches: {' '.join(broken)} "
            f"Install `llamafactory=={RECOMMENDED['llamafactory']}`, "
            "or set LCOT_PLUGIN=0 to run LLaMA-Factory without lcot_plugin."
        )


def all_violations() -> list[str | None]:
    """One entry per pin, None where it holds. Imports llamafactory: call it in a process with LCOT_PLUGIN=0."""
    return [pin.violation(import_module(pin.target)) for pin in PINS]
