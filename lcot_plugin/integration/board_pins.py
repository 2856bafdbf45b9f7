"""The internals of LLaMA Board that the seams touch: the part of `pins` about `llamafactory.webui`.

In and out: as there. `contract.py` joins both.
"""

from __future__ import annotations

from lcot_plugin.integration.pins import Pin

_RUNNER = "integration/webui.py"
_PAGE = "integration/board/page.py"
_PROCESS = "integration/board/process.py"
_LOADING = "integration/board/loading.py"
_COMMAND = "integration/board/command.py"

BOARD_PINS: tuple[Pin, ...] = (
    # integration/webui.py
    Pin("webui.runner", "TRAINING_STAGES", _RUNNER, "adds the stage to it"),
    Pin(
        "webui.runner",
        "Runner._parse_train_args",
        _RUNNER,
        "gives the stage its arguments",
        parameters="self data",
        calls=("TRAINING_STAGES[", 'json.loads(get("train.extra_args"))'),
    ),
    Pin(
        "webui.runner",
        "Runner._initialize",
        _RUNNER,
        "adds what is wrong with a GRPO run to what it says",
        parameters="self data do_train from_preview",
        calls='json.loads(get("train.extra_args"))',
    ),
    # integration/board/command.py: the names that the runner looks up in its module
    Pin(
        "webui.runner",
        "Runner._preview",
        _COMMAND,
        "replaces the gen_cmd that it calls",
        parameters="self data do_train",
        calls=("self._initialize(data, do_train, from_preview=True)", "gen_cmd(args)"),
    ),
    Pin(
        "webui.runner",
        "Runner._launch",
        _COMMAND,
        "replaces the save_cmd and save_args that it calls",
        parameters="self data do_train",
        calls=(
            "self._initialize(data, do_train, from_preview=False)",
            "save_cmd(args)",
            "save_args(os.path.join(",
            'Popen(["llamafactory-cli", "train", save_cmd(args)]',
        ),
    ),
    Pin(
        "webui.runner",
        "Runner.save_args",
        _COMMAND,
        "replaces the function of this name that it calls",
        parameters="self data",
        calls="save_args(save_path, self._build_config_dict(data))",
    ),
    Pin(
        "webui.runner",
        "Runner.load_args",
        _COMMAND,
        "replaces the function of this name that it calls",
        parameters="self lang config_path",
        calls=("load_args(os.path.join(", "config_dict.items()"),
    ),
    Pin(
        "webui.runner",
        "Runner.check_output_dir",
        _COMMAND,
        "replaces the load_args that it calls",
        parameters="self lang model_name finetuning_type output_dir",
        calls="load_args(os.path.join(output_dir, LLAMABOARD_CONFIG))",
    ),
    Pin("webui.common", "_clean_cmd", _COMMAND, "writes the arguments that it leaves", parameters="args"),
    Pin(
        "webui.common",
        "gen_cmd",
        _COMMAND,
        "writes a command in its place",
        parameters="args",
        calls=("_clean_cmd(args)", "llamafactory-cli train "),
    ),
    Pin(
        "webui.common",
        "save_cmd",
        _COMMAND,
        "writes the file in its place",
        parameters="args",
        calls=("safe_dump(_clean_cmd(args), f)", "TRAINING_ARGS"),
    ),
    Pin("webui.common", "save_args", _COMMAND, "writes the file in its place", parameters="config_path config_dict"),
    Pin("webui.common", "load_args", _COMMAND, "reads our lines after it", parameters="config_path"),
    Pin("extras.constants", "LLAMABOARD_CONFIG", _COMMAND, "knows a run's settings by the file's name"),
    # integration/board/arguments.py
    Pin(
        "extras.constants",
        "CHECKPOINT_NAMES",
        "integration/board/arguments.py",
        "sees by these files that a folder holds a finished model, which LLaMA-Factory refuses",
    ),
    # integration/board/process.py
    Pin(
        "webui.runner",
        "Runner.monitor",
        _PROCESS,
        "replaces it",
        parameters="self",
        calls=("get_trainer_info(lang, output_path, self.do_train)", "self.running_data[", "self._finalize("),
    ),
    Pin(
        "webui.runner",
        "Runner._finalize",
        _PROCESS,
        "calls it when a run has ended",
        parameters="self lang finish_info",
        calls=("self.trainer = None", "self.running = False", "gr.Info(finish_info)"),
    ),
    Pin("webui.runner", "Runner.set_abort", _PROCESS, "calls it for runs of other stages", parameters="self"),
    Pin("webui.runner", "Popen", _PROCESS, "puts its own in its place"),
    Pin("webui.runner", "load_eval_results", _PROCESS, "calls it when an evaluation has ended", parameters="path"),
    Pin(
        "webui.control",
        "get_trainer_info",
        _PROCESS,
        "calls it while a run goes on",
        parameters="lang output_path do_train",
        calls=("RUNNING_LOG", "TRAINER_LOG", '"loss_viewer"', '"swanlab_link"'),
    ),
    Pin("webui.common", "DEFAULT_SAVE_DIR", "integration/board/live.py", "looks for runs in it"),
    # integration/board/page.py
    Pin(
        "webui.interface",
        "create_ui",
        _PAGE,
        "replaces functions that it calls; a tab is added before the footer, behind the others",
        parameters="demo_mode",
        calls=(
            'engine.manager.add_elems("top", create_top())',
            'engine.manager.add_elems("train", create_train_tab(engine))',
            'engine.manager.add_elems("footer", create_footer())',
            "demo.load(engine.resume, ",
            "lang.change(engine.change_lang, [lang], engine.manager.get_elem_list()",
        ),
    ),
    Pin(
        "webui.components.train",
        "create_train_tab",
        _PAGE,
        "has its inputs begin with ours, and places what it adds by its components",
        parameters="engine",
        calls=(
            "input_elems = engine.manager.get_base_elems()",
            "training_stage.change(change_stage, [training_stage], [dataset, packing]",
            "extra_tab=extra_tab",
            "start_btn=start_btn",
            "dataset=dataset",
        ),
    ),
    Pin(
        "webui.manager",
        "Manager.get_base_elems",
        _PAGE,
        "adds components to the set that it returns",
        parameters="self",
    ),
    Pin("webui.manager", "Manager.add_elems", _PAGE, "adds the components", parameters="self tab_name elem_dict"),
    Pin(
        "webui.engine",
        "Engine.change_lang",
        _PAGE,
        "adds texts to LOCALES, which it reads by the last part of a component's id",
        parameters="self lang",
        calls=("LOCALES[elem_name][lang]", "self.manager.get_elem_iter()"),
    ),
    Pin("webui.locales", "LOCALES", _PAGE, "adds our components' texts"),
    Pin(
        "webui.control",
        "change_stage",
        _PAGE,
        "keeps what a loaded file says in its place",
        parameters="training_stage",
    ),
    Pin("webui.control", "list_datasets", "integration/board/panels.py", "lists the sets of evaluation with it"),
    Pin("extras.constants", "SUPPORTED_MODELS", _PAGE, "adds the embedded model"),
    Pin("extras.constants", "DEFAULT_TEMPLATE", _PAGE, "adds the embedded model's template"),
    Pin("extras.constants", "MULTIMODAL_SUPPORTED_MODELS", _PAGE, "adds the embedded model"),
)
"""Everything of LLaMA Board that the plugin touches without its being public."""
