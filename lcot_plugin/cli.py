"""The `lcot` command: start a run explicitly, check the installation, copy the recipes.

In:  the command line.
Out: an exit code; `train` hands over to LLaMA-Factory's launcher. Nothing heavy is imported before a command needs it.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from lcot_plugin import __version__, activation
from lcot_plugin.errors import ArgumentError, LcotError, UnsupportedVersionError

EPILOG = """\
With lcot-plugin installed, `llamafactory-cli train x.yaml` trains with it too; `lcot train` is for source trees and
`pip install --target` folders. LCOT_PLUGIN=0 switches the plugin off in `llamafactory-cli`.
"""


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

    commands.add_parser(
        "doctor",
        help="print versions, whether the plugin is active, and what is wrong",
        description="Check the installation, one line each. The exit code is 1 where something is wrong.",
    )

    init = commands.add_parser(
        "init",
        help="copy the recipes and dataset_info into a folder",
        description="Copy yaml_recipes/ and dataset_info/ into a folder, with the paths of the bundled model and data "
        "made absolute, so that `llamafactory-cli train yaml_recipes/sft.yaml` runs there.",
    )
    init.add_argument("folder", metavar="DIR", type=Path, help="where to copy to; made if needed")
    init.add_argument("--force", action="store_true", help="overwrite files that exist")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run `lcot`; returns the exit code."""
    arguments = build_parser().parse_args(argv)
    try:
        if arguments.command == "train":
            return train(arguments.config, arguments.overrides)
        if arguments.command == "init":
            from lcot_plugin.recipes import copy_recipes

            for path in copy_recipes(arguments.folder, overwrite=arguments.force):
                print(path)
            return 0
        from lcot_plugin.doctor import report

        return report()
    except (LcotError, UnsupportedVersionError) as error:
        if arguments.command == "train" and os.environ.get("LOCAL_RANK") is not None:
            raise  # torchrun reports the traceback of the process that failed first
        print(f"lcot {arguments.command}: error: {error}", file=sys.stderr)
        return 1


def train(config: str, overrides: Sequence[str]) -> int:
    """Activate the plugin and train, in this process or, where LLaMA-Factory wants several, under torchrun."""
    if not activation.activate():
        raise ArgumentError(f"{activation.SWITCH}=0 keeps the plugin out: unset it, or run `llamafactory-cli train`.")
    if not config.endswith((".yaml", ".yml", ".json")):
        raise ArgumentError(f"{config} is not a .yaml, .yml or .json file.")
    if not Path(config).is_file():
        raise ArgumentError(f"There is no file {config}: give the path of a run's configuration.")
    for override in overrides:
        if "=" not in override:
            raise ArgumentError(f"{override!r} is not of the form key=value.")

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
