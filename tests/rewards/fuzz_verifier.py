"""Coverage-guided fuzzing of the answer verifier: `make fuzz SECONDS=60`, or this file with libFuzzer's options.

Not collected by pytest: it needs atheris and as long as you give it. It starts from the pairs of tests/rewards/pairs
and looks for texts on which a reader or a comparison raises or takes longer than `-timeout` seconds, and for gold
answers that can be read but do not match themselves.
"""

from __future__ import annotations

import json
import sys
import tempfile
from contextlib import suppress
from pathlib import Path

import atheris

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

with atheris.instrument_imports(include=["lcot_plugin.rewards"]):
    from lcot_plugin.rewards.answers import ANSWER_TYPES, KINDS, judge, read_gold
    from lcot_plugin.rewards.extraction import Found, Place, extract_answer, gold_answer
    from lcot_plugin.rewards.kinds.base import NeedsSolver
    from lcot_plugin.rewards.mathematics.expressions import read
    from lcot_plugin.rewards.mathematics.identities import TooLarge, same
    from lcot_plugin.types import MatchSettings, Outcome

SETTINGS = (
    MatchSettings(),
    MatchSettings(options=("5 cm", "red", "1/2", "none of these")),
    MatchSettings(relative_tolerance=0.05, absolute_tolerance=0.5, min_anls=0.5, image_size=(640, 480)),
)


def judge_one(data: bytes) -> None:
    """First byte: answer type; second: settings; then the gold answer, NUL, the completion, in UTF-8."""
    if len(data) < 3:
        return
    answer_type, settings = ANSWER_TYPES[data[0] % len(ANSWER_TYPES)], SETTINGS[data[1] % len(SETTINGS)]
    gold_text, _, completion = data[2:].decode("utf-8", "ignore").partition("\0")
    found = extract_answer(completion)
    gold = read_gold(gold_text, answer_type, settings)
    if gold is None:
        return
    itself = _judged(gold, Found(gold_answer(gold_text), Place.BOXED), settings)
    assert itself in (None, Outcome.MATCHED), f"{gold_text!r} as {answer_type} is {itself} beside itself"
    for expression in gold.expressions:  # what a worker does with algebra, in this process
        tree = read(expression)
        if tree is not None:
            with suppress(TooLarge):
                same(tree, tree)
    if found is not None:
        with suppress(NeedsSolver):  # not `judge`, which must turn whatever happens into a verdict
            KINDS[gold.kind].compare(gold, found, settings, None)


def _judged(gold: object, found: Found, settings: MatchSettings) -> Outcome | None:
    try:
        return judge(gold, found, settings)  # type: ignore[arg-type]
    except NeedsSolver:
        return None


def write_corpus(folder: Path) -> None:
    """The pairs as inputs of `judge_one`."""
    number = 0
    for file in sorted((ROOT / "tests/rewards/pairs").glob("*.jsonl")):
        for line in file.read_text(encoding="utf-8").splitlines()[::5]:
            pair = json.loads(line)
            kind = ANSWER_TYPES.index(pair["answer_type"])
            text = f"{pair['gold']}\0{pair['prediction']}"[:2000]
            (folder / f"{number}").write_bytes(bytes([kind, number % len(SETTINGS)]) + text.encode("utf-8", "ignore"))
            number += 1


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as corpus:
        write_corpus(Path(corpus))
        atheris.Setup([*sys.argv, corpus], judge_one)
        atheris.Fuzz()
