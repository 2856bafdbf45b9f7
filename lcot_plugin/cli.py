"""The `lcot` command: start a run explicitly, look at its data and rewards, check the installation, copy the recipes.

In:  the command line.
Out: an exit code; `train` hands over to LLaMA-Factory's launcher. Nothing heavy is imported before a command needs it.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lcot_plugin import __version__, activation
from lcot_plugin.errors import ArgumentError, LcotError, UnsupportedVersionError

EPILOG = """\
With lcot-plugin installed, `llamafactory-cli train x.yaml` trains with it too; `lcot train` is for source trees and
`pip install --target` folders. LCOT_PLUGIN=0 switches the plugin off in `llamafactory-cli`.
"""


INTERRUPTED = 130
"""Exit code after Ctrl-C, as shells have it."""
BROKEN_PIPE = 141
"""Exit code where nobody reads on, as shells have it."""


def build_parser() -> argparse.ArgumentParser:
    """The parser of `lcot`."""
    parser = argparse.ArgumentParser(
        prog="lcot",
        description="Long-CoT SFT and GRPO for small vision-language models, in LLaMA-Factory.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"lcot-plugin {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    train = commands.add_parser(
        "train",
        help="train from a YAML file, like `llamafactory-cli train`",
        description="Activate the plugin, then run LLaMA-Factory's launcher. It uses torchrun where there are several "
        "GPUs or FORCE_TORCHRUN=1 is set, with NPROC_PER_NODE, NNODES and the other variables of llamafactory-cli.",
    )
    train.add_argument("config", metavar="FILE.yaml", help="the run's configuration (.yaml, .yml or .json)")
    train.add_argument("overrides", nargs="*", metavar="key=value", help="keys that take precedence over the file's")

    add_data_parser(commands)
    add_reward_parser(commands)
    add_vllm_parser(commands)
    add_report_parser(commands)

    add_doctor_parser(commands)

    init = commands.add_parser(
        "init",
        help="copy the recipes and dataset_info into a folder",
        description="Copy yaml_recipes/ and dataset_info/ into a folder, with the paths of the bundled model and data "
        "made absolute, so that `llamafactory-cli train yaml_recipes/sft.yaml` runs there.",
    )
    init.add_argument("folder", metavar="DIR", type=Path, help="where to copy to; made if needed")
    init.add_argument("--force", action="store_true", help="overwrite files that exist")
    return parser


def add_doctor_parser(commands: Any) -> None:
    """The parser of `lcot doctor`."""
    doctor = commands.add_parser(
        "doctor",
        help="what is wrong with the installation, or with a recipe; the memory that it needs",
        description="Check the installation, one line each; with a recipe, check that instead: its arguments, files "
        "that it names, its data (entries, lengths, gold answers, template), the arithmetic of its batches, the memory "
        "of every phase and the largest settings that fit. No weights are loaded or downloaded. The exit code is 1 "
        "where something is wrong.",
    )
    doctor.add_argument("config", metavar="RECIPE.yaml", nargs="?", help="the run's configuration")
    doctor.add_argument("overrides", nargs="*", metavar="key=value", help="keys that take precedence")
    doctor.add_argument("--dry-run", action="store_true", help="arguments, files and entries only; opens no data")
    doctor.add_argument(
        "--download", action="store_true", help="fetch the configuration, tokenizer and data sets that are not here"
    )
    doctor.add_argument("--processes", metavar="N", type=int, default=1, help="GPUs of the run; default: 1")
    doctor.add_argument("--memory", metavar="GIB", type=float, help="of a GPU; default: what this machine's first has")
    doctor.add_argument("--records", metavar="N", type=int, default=500, help="read of each data set; default: 500")
    doctor.add_argument("--json", metavar="FILE", type=Path, dest="json_file", help="write findings and estimates")


def add_data_parser(commands: Any) -> None:
    """The parser of `lcot data`."""
    data = commands.add_parser(
        "data",
        help="look at a run's data: lengths, faults, single records",
        description="Look at the data of a run as training reads them: same file, same template, same tokens. No "
        "weights are loaded and no GPU is needed (but by `difficulty`); what has been tokenised once comes from the "
        "cache.",
    )
    actions = data.add_subparsers(dest="action", required=True, metavar="ACTION")

    def action(name: str, help_text: str, description: str) -> argparse.ArgumentParser:
        parser = actions.add_parser(name, help=help_text, description=description)
        parser.add_argument("config", metavar="RECIPE.yaml", help="the run's configuration (.yaml, .yml or .json)")
        parser.add_argument("overrides", nargs="*", metavar="key=value", help="keys that take precedence")
        parser.add_argument("--dataset", metavar="NAME[,NAME...]", help="these data sets in place of the recipe's")
        parser.add_argument("--dataset-dir", metavar="DIR", help="the folder of dataset_info.json")
        return parser

    stats = action(
        "stats",
        "how long prompts, images, thoughts and answers are, and what each cutoff_len leaves out",
        "Print tables of token counts, of what each cutoff_len would leave out, and of what became of the records; "
        "write histograms (lengths.png), lengths.json and data_report.json.",
    )
    stats.add_argument("--out", metavar="DIR", type=Path, help="where to write; default: data_stats in output_dir")

    check = action(
        "check",
        "what is wrong with the data: golds, responses, images, duplicates, template",
        "Check that every gold answer scores 1.0 under its own verifier, that no response contradicts its gold answer, "
        "that every image decodes whole, that no problem stands in the data twice or in training and evaluation, and "
        "that the template is the model's own. The exit code is 1 where something is wrong.",
    )
    check.add_argument("--json", metavar="FILE", type=Path, dest="json_file", help="write every entry as JSON too")

    show = action(
        "show",
        "one record as the model sees it, tokens coloured by the loss mask",
        "Print one record as tokens, those in the loss in green, images folded to `[image: 752 tokens]`; NO_COLOR is "
        "respected. --html writes a page with images, question, thought, answer, gold answer and verdict.",
    )
    show.add_argument("--record", metavar="N", type=int, help="number of the record in its file, from 0")
    show.add_argument(
        "--html", metavar="FILE", type=Path, help="write a page that needs no other file, into a folder that exists"
    )

    difficulty = action(
        "difficulty",
        "how often the recipe's model answers each record right; easy, medium, hard and learnable data sets",
        "Sample answers to every record with the model of a `stage: grpo` recipe, on the first GPU where there is one, "
        "and write its data sets with the columns pass_rate, num_rollouts and difficulty: whole, by difficulty, and "
        "NAME_learnable, those that are right sometimes but not always, for GRPO. dataset_info.json, difficulty.json "
        "and a histogram stand beside them. A run that was interrupted goes on where it was: what was sampled is in "
        "rollouts.jsonl there.",
    )
    difficulty.add_argument("--rollouts", metavar="K", type=int, default=8, help="answers per record; default: 8")
    difficulty.add_argument(
        "--thresholds",
        metavar=("HARD", "MEDIUM"),
        type=float,
        nargs=2,
        default=(0.25, 0.75),
        help="pass rates up to which a record is hard, and medium; default: 0.25 0.75",
    )
    difficulty.add_argument("--out", metavar="DIR", type=Path, help="where to write; default: difficulty in output_dir")


def add_reward_parser(commands: Any) -> None:
    """The parser of `lcot reward`."""
    reward = commands.add_parser(
        "reward",
        help="score completions, explain one verdict, time the verifier, list the rewards",
        description="The answer verifier and the rewards of GRPO by themselves. No run is needed, and no GPU.",
    )
    actions = reward.add_subparsers(dest="action", required=True, metavar="ACTION")

    def add_file_arguments(parser: argparse.ArgumentParser) -> None:
        for name, default, what in (
            ("prediction", "completion", "the completion: a text, or a list of messages"),
            ("gold", "gold", "the gold answer"),
            ("type", "answer_type", "the answer's type; auto where a line has none"),
            ("options", "options", "a choice's options, without their letters"),
            ("match", "match", "an object of further settings, for instance relative_tolerance"),
        ):
            parser.add_argument(
                f"--{name}-key",
                metavar="KEY",
                default=default,
                dest="answer_type_key" if name == "type" else f"{name}_key",
                help=f"key of {what}; default: {default}. A dot leads into an object",
            )

    def add_deadline(parser: argparse.ArgumentParser) -> None:
        parser.add_argument(
            "--deadline", metavar="SECONDS", type=float, default=5.0, help="for one comparison by a worker; default: 5"
        )

    score = actions.add_parser(
        "score",
        help="score the completions of a JSON lines file",
        description="Judge every line of a JSON lines file, a run's completions.jsonl or any other. Outcomes are "
        "counted apart, by type of answer, with the mean of every reward. Lines that cannot be judged are named; the "
        "exit code is 1 then.",
    )
    score.add_argument("file", metavar="FILE.jsonl", type=Path, help="one JSON object per line")
    score.add_argument(
        "--rewards",
        metavar="NAME",
        nargs="+",
        default=["accuracy"],
        help="as in grpo_reward_funcs; `lcot reward list` names them; default: accuracy",
    )
    score.add_argument("--weights", metavar="W", type=float, nargs="+", help="one per reward; default: 1 each")
    score.add_argument("--out", metavar="OUT.jsonl", type=Path, help="write every line with its verdict and rewards")
    score.add_argument("--skip-errors", action="store_true", help="leave out the value of a reward that raises")
    score.add_argument("--workers", metavar="N", type=int, help="worker processes at most")
    score.add_argument("--max-new-tokens", metavar="N", type=int, help="max_length of rewards that are given none")
    add_deadline(score)
    add_file_arguments(score)

    explain = actions.add_parser(
        "explain",
        help="one verdict, step by step",
        description="Say where the answer was found, how it and the gold answer were read, how they were compared and "
        "what came of it. An answer that begins with a dash stands behind `--`.",
    )
    explain.add_argument(
        "prediction", metavar="PREDICTION|FILE", help="a completion, - for standard input, or a file (--line)"
    )
    explain.add_argument("gold", metavar="GOLD", nargs="?", help="the gold answer")
    explain.add_argument("--line", metavar="N", type=int, help="this line of FILE, from 1")
    explain.add_argument("--type", metavar="TYPE", dest="answer_type", help="the answer's type; default: auto")
    explain.add_argument("--options", metavar="TEXT", nargs="+", help="a choice's options, without their letters")
    explain.add_argument("--aliases", metavar="TEXT", nargs="+", help="further right answers")
    explain.add_argument("--relative-tolerance", metavar="SHARE", type=float, help="of numbers")
    explain.add_argument("--absolute-tolerance", metavar="X", type=float, help="of numbers, in the gold answer's unit")
    explain.add_argument("--min-anls", metavar="SHARE", type=float, help="of text: the least similarity that matches")
    explain.add_argument("--min-iou", metavar="SHARE", type=float, help="of boxes: the least overlap that matches")
    explain.add_argument("--image-size", metavar=("WIDTH", "HEIGHT"), type=int, nargs=2, help="of boxes, in pixels")
    explain.add_argument("--include-thought", action="store_true", help="search the thought too")
    add_deadline(explain)
    add_file_arguments(explain)

    time = actions.add_parser(
        "time",
        help="verdicts per second, in process and in workers",
        description="Time the verifier on a file's lines, or on built-in examples.",
    )
    time.add_argument("file", metavar="FILE.jsonl", type=Path, nargs="?", help="one JSON object per line")
    time.add_argument("--limit", metavar="N", type=int, default=2000, help="lines at most; default: 2000")
    time.add_argument("--workers", metavar="N", type=int, help="worker processes at most")
    add_deadline(time)
    add_file_arguments(time)

    names = actions.add_parser("list", help="the rewards that there are", description="Name the rewards, one by one.")
    names.add_argument("--trl", action="store_true", help="those of trl.rewards too, which takes seconds")


def add_vllm_parser(commands: Any) -> None:
    """The parser of `lcot vllm`."""
    vllm = commands.add_parser(
        "vllm",
        help="install vLLM into an environment of its own",
        description="vLLM and LLaMA-Factory cannot be installed together: vLLM runs in an environment of its own, "
        "which grpo_vllm_python names.",
    )
    actions = vllm.add_subparsers(dest="action", required=True, metavar="ACTION")
    install = actions.add_parser(
        "install",
        help="make the environment",
        description="Make a virtual environment with vLLM in DIR: about 9 GB, by pip. The same command goes on where "
        "it was interrupted, and does nothing where the environment is complete.",
    )
    install.add_argument("folder", metavar="DIR", type=Path, help="where to; made if needed")
    install.add_argument("--version", metavar="X", help="0.29 or newer; default: the newest, with --cpu 0.32.0")
    install.add_argument("--cpu", action="store_true", help="for a machine without a GPU, to try things out")


def add_report_parser(commands: Any) -> None:
    """The parser of `lcot report`."""
    report = commands.add_parser(
        "report",
        help="one HTML file of a run, or of several beside each other",
        description="Write one HTML file that needs no other: accuracy before and after with intervals, curves, "
        "alarms, data and truncation, lengths, rollouts with pictures, configuration, and what differs between runs. "
        "Works on runs that go on, were killed, or are of an older version; on SFT, GRPO and evaluations.",
    )
    report.add_argument(
        "folders", metavar="DIR", type=Path, nargs="+", help="the output_dir of a run, or a folder of several"
    )
    report.add_argument(
        "-o", "--out", metavar="FILE.html", type=Path, help="where to write; default: report.html in DIR"
    )
    report.add_argument("--title", metavar="TEXT", help="the page's heading")
    report.add_argument(
        "--max-rollouts", metavar="N", type=int, default=20, help="groups of completions of each run; default: 20"
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Run `lcot`; returns the exit code."""
    arguments = parse(argv)
    try:
        if arguments.command == "train":
            return train(arguments.config, arguments.overrides)
        if arguments.command == "data":
            return data(**vars(arguments))
        if arguments.command == "reward":
            return reward(**vars(arguments))
        if arguments.command == "vllm":
            from lcot_plugin.rollout.vllm import install

            install.install(arguments.folder, arguments.version, arguments.cpu)
            return 0
        if arguments.command == "report":
            return report(arguments.folders, arguments.out, arguments.title, arguments.max_rollouts)
        if arguments.command == "init":
            from lcot_plugin.recipes import copy_recipes

            copied = copy_recipes(arguments.folder, overwrite=arguments.force)
            for path in copied:
                print(path)
            print(f"{len(copied)} files. Next: cd {arguments.folder}; llamafactory-cli train yaml_recipes/sft.yaml")
            return 0
        return doctor(**vars(arguments))
    except (LcotError, UnsupportedVersionError) as error:
        if arguments.command == "train" and os.environ.get("LOCAL_RANK") is not None:
            raise  # torchrun reports the traceback of the process that failed first
        print(f"lcot {arguments.command}: error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        if arguments.command not in ("data", "doctor", "reward", "vllm", "report"):
            raise
        action = getattr(arguments, "action", "")
        goes_on = ": the same command goes on from there" if action in ("difficulty", "install") else ""
        print(f"\nlcot {f'{arguments.command} {action}'.strip()}: interrupted{goes_on}", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:  # `| head` has read enough; what is still to be flushed must not fail again
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return BROKEN_PIPE


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Arguments of `lcot`; `key=value` may stand behind options too, which argparse by itself refuses."""
    parser = build_parser()
    arguments, rest = parser.parse_known_args(argv)
    if rest and (not hasattr(arguments, "overrides") or any(part.startswith("-") or "=" not in part for part in rest)):
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    if rest:
        arguments.overrides += rest
    return arguments


def data(command: str, action: str, **arguments: Any) -> int:
    """`lcot data ACTION`, with no messages of LLaMA-Factory below errors."""
    from lcot_plugin.command_checks import check_data_command

    check_overrides(arguments["overrides"])
    arguments["datasets"] = arguments.pop("dataset")
    check_data_command(**arguments)
    quieten(progress=action == "difficulty" or sys.stderr.isatty())
    start(f"lcot {command}")
    if action == "check":
        from lcot_plugin.integration.data_check import check

        return check(**arguments)
    if action == "difficulty":
        # LLaMA-Factory refuses several GPUs in one process.
        os.environ.setdefault("CUDA_VISIBLE_DEVICES", "0")
        from lcot_plugin.integration.difficulty import difficulty

        return difficulty(**arguments)
    from lcot_plugin.integration import data_command

    return data_command.stats(**arguments) if action == "stats" else data_command.show(**arguments)


def doctor(
    command: str,
    config: str | None,
    overrides: Sequence[str],
    dry_run: bool,
    download: bool,
    processes: int,
    memory: float | None,
    records: int,
    json_file: Path | None,
) -> int:
    """`lcot doctor`, of the installation or of a recipe."""
    if config is None:
        from lcot_plugin.doctor import report

        return report()
    check_overrides(overrides)
    for name, number in (("--processes", processes), ("--records", records), ("--memory", memory)):
        if number is not None and not 0 < number < float("inf"):
            raise ArgumentError(f"{name} {number} must be more than 0.")
    if not download:
        os.environ |= {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}
    os.environ.setdefault("CUDA_VISIBLE_DEVICES", "0")  # LLaMA-Factory refuses several GPUs in one process
    quieten(progress=sys.stderr.isatty())
    start(f"lcot {command}")
    from lcot_plugin.integration.recipe_doctor.examine import examine

    return examine(
        config,
        overrides,
        dry_run=dry_run,
        num_processes=processes,
        memory_gib=memory,
        num_records=records,
        json_file=json_file,
    )


def reward(command: str, action: str, **arguments: Any) -> int:
    """`lcot reward ACTION`."""
    from lcot_plugin.rewards.command import reward_command

    return reward_command.run(action, **arguments)


def report(folders: Sequence[Path], out: Path | None, title: str | None, max_rollouts: int) -> int:
    """`lcot report`; says on a terminal what it is doing."""
    from lcot_plugin.report.run_report import write_report
    from lcot_plugin.report.shown_text import visible

    def tell(what: str) -> None:
        if sys.stderr.isatty():
            print(f"\r\x1b[K{visible(what)[:100]}", end="", file=sys.stderr, flush=True)

    try:
        made_by = f"lcot-plugin {__version__}"
        written = write_report(folders, out, title=title, max_rollouts=max_rollouts, made_by=made_by, progress=tell)
    finally:
        tell("")
    for note in written.notes:
        print(visible(note))
    runs = f"{written.num_runs:,} run{'s' if written.num_runs > 1 else ''}"
    size = f"{written.num_bytes / 1e6:.1f} MB" if written.num_bytes >= 1e5 else f"{written.num_bytes / 1e3:.0f} kB"
    print(visible(f"{written.path}: {size}, {runs}"))
    return 0


def quieten(*, progress: bool) -> None:
    """Keeps what says nothing of the data off the terminal, before anything that writes it is imported."""
    os.environ.setdefault("LLAMAFACTORY_VERBOSITY", "ERROR")
    if not progress:
        os.environ.setdefault("TQDM_DISABLE", "1")  # in a file, every step of a bar would be a line
    # LLaMA-Factory passes `use_fast` to every processor; nobody who reads it could do anything about that.
    logger = logging.getLogger("transformers.models.auto.image_processing_auto")
    logger.addFilter(is_of_use)


def is_of_use(record: logging.LogRecord) -> bool:
    """A filter against the remark on `use_fast`."""
    return "`use_fast` parameter is deprecated" not in str(record.msg)


def start(name: str) -> None:
    """Activates the plugin. Raises ArgumentError where it is switched off."""
    if not activation.activate():
        raise ArgumentError(f"{activation.SWITCH}=0 keeps the plugin out: unset it for `{name}`.")


def check_overrides(overrides: Sequence[str]) -> None:
    """Raises ArgumentError for one that is not `key=value`."""
    for override in overrides:
        if "=" not in override:
            raise ArgumentError(f"{override!r} is not of the form key=value.")


def train(config: str, overrides: Sequence[str]) -> int:
    """Activate the plugin and train, in this process or, where LLaMA-Factory wants several, under torchrun."""
    if not activation.activate():
        raise ArgumentError(f"{activation.SWITCH}=0 keeps the plugin out: unset it, or run `llamafactory-cli train`.")
    if not config.endswith((".yaml", ".yml", ".json")):
        raise ArgumentError(f"{config} is not a .yaml, .yml or .json file.")
    if not Path(config).is_file():
        raise ArgumentError(f"There is no file {config}: give the path of a run's configuration.")
    check_overrides(overrides)

    if "TORCHELASTIC_RUN_ID" in os.environ:  # the user started torchrun: the launcher would start it once more
        sys.argv = [sys.argv[0], config, *overrides]
        from llamafactory.train.tuner import run_exp

        run_exp()
        return 0

    sys.argv = [sys.argv[0], "train", config, *overrides]
    from llamafactory import launcher

    # The launcher passes its own __file__ to torchrun, whose processes would start without the plugin.
    launcher.__file__ = str(Path(__file__).parent / "integration" / "worker.py")
    launcher.launch()
    return 0
