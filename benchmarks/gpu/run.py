"""What training costs on a GPU: SFT, GRPO, rollouts, kernels, and whether `lcot doctor` estimates memory rightly.

    python benchmarks/gpu/run.py [sft] [grpo] [rollout] [profile] [doctor] [--quick] [--device cuda|cpu]
                                 [--output saves/bench_gpu] [--only TEXT] [--vllm-python PYTHON]

All parts where none is named. Qwen2.5-VL-3B and Qwen3-VL-4B in their real shapes with random weights; nothing is
downloaded. Every cell of the tables is measured in a process of its own, so that a side that does not fit into memory
is a row that says so, and kept in the output folder, so that the same command goes on where it was interrupted. The
first GPU of CUDA_VISIBLE_DEVICES is used. `--quick --device cpu` runs everything on tiny models, to see that it runs.

Writes OUTPUT/results.md; prints its tables and, as the last line, JSON. See benchmarks/gpu/README.md.
"""

from __future__ import annotations

import argparse
import json
import signal
import sys
from collections.abc import Sequence
from datetime import date
from pathlib import Path
from typing import Any

if not __package__:  # run as a script: the repository in place of this folder, whose modules are benchmarks.gpu's
    ROOT = Path(__file__).resolve().parents[2]
    sys.path[:1] = [str(ROOT), str(ROOT / "tests")]

from benchmarks.gpu import doctor, grpo, kernels, rollouts, sft
from benchmarks.gpu.cells import FAILED, Cell, Measured, answer_cell, in_a_process, measure
from benchmarks.gpu.roofline import hardware_of, roof
from benchmarks.gpu.tables import heading

PARTS = {"sft": sft, "grpo": grpo, "rollout": rollouts, "profile": kernels, "doctor": doctor}


def build_model(job: dict[str, Any]) -> dict[str, Any]:
    from benchmarks.gpu.shapes import build

    return {"folder": str(build(Path(job["folder"], "models"), job["shape"], job["device"]))}


MEASURES = {name: part.measure for name, part in PARTS.items()}
MEASURES |= {"model": build_model, "hardware": lambda job: hardware_of(job["device"])}


def cells_of(arguments: argparse.Namespace, folder: Path) -> list[Cell]:
    """Of the chosen parts, in order."""
    found: list[Cell] = []
    for name in arguments.parts:
        more = {"vllm_python": arguments.vllm_python} if name == "rollout" else {}
        found += PARTS[name].cells(folder, arguments.device, arguments.quick, **more)
    return [cell for cell in found if not arguments.only or arguments.only in cell.label]


def needed(kind: str, job: dict[str, Any], folder: Path, device: str, minutes: float) -> dict[str, Any]:
    """What all cells need, from a process of its own; ends the benchmark where there is none."""
    result = in_a_process(Cell(kind, job.get("shape", device), job), folder, device, minutes)
    if result["status"] != "ok":
        raise SystemExit(f"{kind} {job.get('shape', '')}: {result['status']}: {result.get('why', '')}")
    return result


def run(arguments: argparse.Namespace) -> list[Measured]:
    """Measures what is not there yet; writes and prints the results."""
    from tqdm import tqdm

    folder = arguments.output.resolve() / ("quick" if arguments.quick else "full")
    cells = cells_of(arguments, folder)
    hardware = needed("hardware", {"device": arguments.device}, folder, arguments.device, arguments.minutes)
    if arguments.device == "cuda" and float(hardware["capability"]) < 8.0:
        raise SystemExit(f"{hardware['name']} has no bfloat16 products: an Ampere GPU or a newer one is needed.")
    for shape in sorted({cell.job["shape"] for cell in cells if not cell.missing}):
        job = {"folder": str(folder), "shape": shape, "device": arguments.device}
        needed("model", job, folder, arguments.device, arguments.minutes)
    measured: list[Measured] = []
    for cell in (bar := tqdm(cells, unit="cell")):
        bar.set_postfix_str(cell.label)
        measured.append((cell, measure(cell, folder, hardware, arguments.minutes)))
        write(folder, hardware, measured, arguments.quick)
    print(write(folder, hardware, measured, arguments.quick))
    print(folder / "results.md")
    top = roof(hardware)
    line: dict[str, Any] = {"gpu": hardware["name"], "quick": arguments.quick}
    line["cells"] = {status: sum(result["status"] == status for _, result in measured) for status in statuses(measured)}
    line |= {name: PARTS[name].figures(of_part(measured, name), top) for name in arguments.parts}
    print(json.dumps(line))
    return measured


def statuses(measured: Sequence[Measured]) -> list[str]:
    return sorted({result["status"] for _, result in measured})


def of_part(measured: Sequence[Measured], name: str) -> list[Measured]:
    return [(cell, result) for cell, result in measured if cell.part == name]


def write(folder: Path, hardware: dict[str, Any], measured: Sequence[Measured], quick: bool) -> str:
    """The result file, as far as it is known."""
    top = roof(hardware)
    texts = [heading(hardware, str(date.today()), quick)]
    texts += [part.report(own, top, hardware) for name, part in PARTS.items() if (own := of_part(measured, name))]
    text = "\n\n".join(texts)
    (folder / "results.md").write_text(text + "\n")
    return text


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"of: {', '.join(PARTS)}; default: all")
    parser.add_argument("--quick", action="store_true", help="tiny models and few tokens: does everything run?")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--output", type=Path, default=Path("saves/bench_gpu"), help="measured cells are kept here")
    parser.add_argument("--only", metavar="TEXT", help="cells whose name holds it, for example qwen2_5_vl_3b_lora")
    parser.add_argument("--minutes", type=float, default=40, help="the most that a cell may take; default: 40")
    parser.add_argument("--vllm-python", type=Path, help="of vLLM's environment: `lcot vllm install DIR`")
    parser.add_argument("--cell", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args(argv)
    if unknown := set(arguments.parts) - set(PARTS):
        parser.error(f"no part is called {', '.join(sorted(unknown))}; there are {', '.join(PARTS)}")
    arguments.parts = [name for name in PARTS if name in (arguments.parts or PARTS)]
    if arguments.device == "cpu" and not arguments.quick and arguments.cell is None:
        parser.error("on a CPU the real shapes take days: --quick --device cpu")
    return arguments


def main(argv: Sequence[str] | None = None) -> int:
    """0 where every cell has a figure, too little memory, or a reason why its side is not there."""
    arguments = parse(argv)
    if arguments.cell:
        return answer_cell(arguments.cell, MEASURES)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # as Ctrl-C: the cell's process is ended too
    return int(any(result["status"] == FAILED for _, result in run(arguments)))


if __name__ == "__main__":
    sys.exit(main())
