"""The internals of LLaMA-Factory that the seams touch: one `Pin` each, with the file to change when it breaks.

In:  an imported, unpatched module of LLaMA-Factory. Out: what differs in it. `contract.py` asks before a seam is
     applied; the contract test asks for all of them.
"""

from __future__ import annotations

import dataclasses
import inspect
import re
import typing
from types import ModuleType
from typing import Any


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
    calls: str | tuple[str, ...] = ()
    """Texts that the source must contain: names it looks up in its module, which is how a replacement takes effect."""
    appends: str | None = None
    """All names whose calls the source appends to `callbacks`, in order, blank-separated."""

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
        for text in (self.calls,) if isinstance(self.calls, str) else self.calls:
            if text not in inspect.getsource(found):
                return f"no longer contains `{text}`"
        if self.appends is not None:
            appended = " ".join(appended_callbacks(inspect.getsource(found)))
            if appended != self.appends:
                return f"appends the callbacks ({appended}) instead of ({self.appends})"
        return None


def appended_callbacks(source: str) -> list[str]:
    """`["LogCallback"]` of `callbacks.append(LogCallback())`, the name of a module before it left out."""
    return re.findall(r"callbacks\.append\((?:\w+\.)*(\w+)", source)


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
        "relies on its checks by stage, survival.py on its choice of a checkpoint",
        parameters="args",
        calls=('finetuning_args.stage != "sft"', "get_last_checkpoint(training_args.output_dir)"),
    ),
    # integration/data_arguments.py
    Pin(
        "hparams.data_args",
        "DataArguments",
        "integration/data_arguments.py",
        "subclasses it to add the keys about data",
        fields="template cutoff_len media_dir preprocessing_num_workers overwrite_cache streaming packing",
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
    # integration/data.py: what it replaces in the loader
    Pin(
        "data.loader",
        "get_dataset_list",
        "integration/data.py",
        "wraps it, to keep the names in dataset_info.json",
        parameters="dataset_names dataset_dir",
    ),
    Pin(
        "data.loader",
        "_get_merged_dataset",
        "integration/data.py",
        "relies on its looking the wrapped functions up in the module",
        parameters="dataset_names model_args data_args training_args stage return_dict",
        calls=(
            "get_dataset_list(dataset_names, data_args.dataset_dir)",
            "_load_single_dataset(dataset_attr, model_args, data_args, training_args)",
            "merge_dataset(list(datasets.values()), data_args",
        ),
    ),
    Pin(
        "data.loader",
        "_load_single_dataset",
        "integration/data.py",
        "wraps it, to name the data set in errors, and the `load_dataset` it calls, to read JSON of mixed types",
        parameters="dataset_attr model_args data_args training_args",
        calls=(
            "align_dataset(dataset, dataset_attr, data_args, training_args)",
            "dataset = load_dataset(",
            "data_files=data_files",
        ),
    ),
    Pin(
        "data.loader",
        "align_dataset",
        "integration/data.py",
        "wraps it, to carry the gold answers beside its columns",
        parameters="dataset dataset_attr data_args training_args",
    ),
    Pin(
        "data.loader",
        "_get_preprocessed_dataset",
        "integration/data.py",
        "tokenises SFT records and GRPO prompts in its place",
        parameters="dataset data_args training_args stage template tokenizer processor is_eval",
    ),
    Pin(
        "data.loader",
        "_get_dataset_processor",
        "integration/data.py",
        "calls it before packing, for what it changes in `datasets`",
        parameters="data_args stage template tokenizer processor do_generate",
        calls="OptimizedTypedSequence.__init__ = __init__",
    ),
    Pin(
        "data.loader",
        "get_dataset",
        "integration/data.py",
        "relies on its looking the wrapped functions up in the module",
        parameters="template model_args data_args training_args stage tokenizer processor",
        calls=("_get_merged_dataset(", "_get_preprocessed_dataset(", "split_dataset(dataset, eval_dataset, "),
    ),
    Pin(
        "data.converter",
        "align_dataset",
        "integration/data.py",
        "drops the `_response` of its result",
        parameters="dataset dataset_attr data_args training_args",
        calls="remove_columns=column_names",
    ),
    # integration/tokenising.py
    Pin(
        "data.processor.supervised",
        "SupervisedDatasetProcessor._encode_data_example",
        "integration/tokenising.py",
        "encodes SFT records with it, a cutoff_len too large to cut put in its place, and prompts as it does",
        parameters="self prompt response system tools images videos audios",
        calls=(
            "self.data_args.cutoff_len - total_length",
            "self.template.mm_plugin.process_messages(prompt + response, images, videos, audios, self.processor)",
            "self.template.mm_plugin.process_token_ids(",
            "self.template.encode_multiturn(",
        ),
    ),
    Pin(
        "data.processor.supervised",
        "PackedSupervisedDatasetProcessor.preprocess_dataset",
        "integration/tokenising.py",
        "packs tokenised rows with it, which stand where it expects system and tools",
        parameters="self examples",
        calls="self._encode_data_example(",
    ),
    Pin(
        "data.template",
        "Template.encode_oneturn",
        "integration/tokenising.py",
        "encodes prompts with it",
        parameters="self tokenizer messages system tools",
    ),
    Pin(
        "data.template",
        "Template.encode_multiturn",
        "integration/tokenising.py",
        "must encode prompts as it does, which is how SFT encodes them",
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
        "integration/templates.py",
        "lets it work on a copy in TEMPLATES that has the system prompt; stage grpo prepares the tokenizer with it",
        parameters="tokenizer data_args",
        calls=("template = TEMPLATES[data_args.template]", "template.default_system = data_args.default_system"),
    ),
    Pin(
        "data.mm_plugin",
        "BasePlugin.process_messages",
        "integration/tokenising.py",
        "expands image placeholders with it",
        parameters="self messages images videos audios processor",
    ),
    Pin(
        "data.mm_plugin",
        "BasePlugin.process_token_ids",
        "integration/tokenising.py",
        "expands image tokens with it",
        parameters="self input_ids labels images videos audios tokenizer processor",
    ),
    # integration/pictures.py
    Pin(
        "data.collator",
        "SFTDataCollatorWith4DAttentionMask.__call__",
        "integration/pictures.py",
        "wraps it, to decode pictures",
        parameters="self features",
    ),
    Pin(
        "data.mm_plugin",
        "BasePlugin.get_mm_inputs",
        "integration/media.py",
        "turns images into tensors with it",
        parameters="self images videos audios imglens vidlens audlens batch_ids processor",
    ),
    # integration/templates.py, integration/plugins.py, integration/composite_models.py
    Pin(
        "data.template",
        "register_template",
        "integration/templates.py",
        "gives it every field of the template that it derives from",
        parameters="name format_user format_assistant format_system format_function format_observation format_tools "
        "format_prefix default_system stop_words thought_words tool_call_words efficient_eos replace_eos "
        "replace_jinja_template enable_thinking preserve_thinking mm_plugin template_class",
    ),
    Pin(
        "data.template",
        "Template._encode",
        "integration/templates.py",
        "moves the opening of a thought from the response to the prompt there",
        parameters="self tokenizer messages system tools",
        calls=("system = system or self.default_system", "encoded_messages.append("),
    ),
    Pin(
        "data.template",
        "Llama2Template",
        "integration/templates.py",
        "keeps the class for families whose system prompt starts the first user turn",
    ),
    Pin(
        "data.mm_plugin",
        "register_mm_plugin",
        "integration/plugins.py",
        "registers the plugins with it",
        parameters="name plugin_class",
    ),
    Pin(
        "data.mm_plugin",
        "BasePlugin._regularize_images",
        "integration/plugins.py",
        "reads and scales images with it",
        parameters="self images kwargs",
        calls='return {"images": results}',
    ),
    Pin(
        "data.mm_plugin",
        "BasePlugin._validate_messages",
        "integration/plugins.py",
        "counts placeholders with it",
        parameters="self messages images videos audios",
    ),
    Pin(
        "data.mm_plugin",
        "BasePlugin._validate_input",
        "integration/plugins.py",
        "refuses videos and audios with it",
        parameters="self processor images videos audios",
    ),
    Pin(
        "model.model_utils.visual",
        "_register_composite_model",
        "integration/composite_models.py",
        "registers families with it",
        parameters="model_type projector_keys vision_model_keys language_model_keys lora_conflict_keys",
    ),
    Pin("model.model_utils.visual", "COMPOSITE_MODELS", "integration/composite_models.py", "looks families up in it"),
    # integration/quantization.py
    Pin(
        "model.model_utils.quantization",
        "configure_quantization",
        "integration/quantization.py",
        "wraps it",
        parameters="config tokenizer model_args is_trainable init_kwargs",
    ),
    # integration/stage.py and the trainer
    Pin(
        "train.tuner",
        "_training_function",
        "integration/stage.py",
        "runs `stage: grpo` in its place, with the same callbacks",
        parameters="config",
        calls=('finetuning_args.stage == "sft"', "get_train_args(args)", "dist.destroy_process_group()"),
        appends="LogCallback PissaConvertCallback get_swanlab_callback EarlyStoppingCallback TorchProfilerCallback "
        "ModuleProfilerCallback ReporterCallback",
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
        "train.sft.trainer",
        "CustomSeq2SeqTrainer._load_from_checkpoint",
        "integration/resume.py",
        "replaces it for checkpoints of full weights (it is transformers' Trainer's)",
        parameters="self resume_from_checkpoint model",
    ),
    Pin(
        "train.sft.trainer",
        "CustomSeq2SeqTrainer._load_best_model",
        "integration/resume.py",
        "replaces it for checkpoints of full weights (it is transformers' Trainer's)",
        parameters="self",
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
    # integration/packing.py
    Pin(
        "train.sft.workflow",
        "run_sft",
        "integration/packing.py",
        "wraps it and puts a trainer on packs in the place of its own (resume.py relies on the same lookup)",
        parameters="model_args data_args training_args finetuning_args generating_args callbacks",
        calls=("trainer = CustomSeq2SeqTrainer(", "SFTDataCollatorWith4DAttentionMask("),
    ),
    # integration/data_sets.py
    Pin("hparams.parser", "_TRAIN_ARGS", "integration/data_sets.py", "tells the keys about data from the others by it"),
    Pin(
        "model",
        "load_config",
        "integration/data_sets.py",
        "asks it which tokens stand for images",
        parameters="model_args",
    ),
    # cli.py
    Pin(
        "launcher",
        "launch",
        "integration/launcher.py",
        "starts torchrun in its place, cli.py with integration/worker.py instead of the launcher's own file, and gives "
        "its processes the arguments as they are",
        parameters="",
        calls=("file_name=__file__", 'args=" ".join(sys.argv[1:])', "{file_name} {args}", "subprocess.run("),
    ),
)
"""What the plugin touches of LLaMA-Factory without its being public; LLaMA Board's are `board_pins.BOARD_PINS`."""
