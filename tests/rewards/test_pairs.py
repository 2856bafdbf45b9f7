"""The verifier on its own pairs of gold answer and completion, `pairs/<kind>.jsonl`; a benchmark reads them too.

A line: gold, prediction, whether a careful reader says that they match, answer_type, a note; options of a choice and
MatchSettings' fields where they are given. All were written for this file, from what a reader expects.
"""

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lcot_plugin.rewards.verifier import Verifier
from lcot_plugin.types import MatchSettings, ScoringRequest

FILES = sorted((Path(__file__).parent / "pairs").glob("*.jsonl"))
KINDS = {
    "boxes",
    "chinese",
    "choice",
    "date",
    "expression",
    "extraction",
    "hangs",
    "json",
    "number",
    "percent_degrees",
    "sequence",
    "text",
    "time",
    "units",
    "yes_no",
}
KEYS = {"gold", "prediction", "matched", "answer_type", "options", "settings", "note"}


def read_pairs(path: Path) -> list[dict[str, Any]]:
    # Not splitlines(): a completion may hold a line separator that JSON leaves as it is.
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]


def request_of(pair: dict[str, Any]) -> ScoringRequest:
    settings = {"options": pair.get("options", ()), **pair.get("settings", {})}
    plain = {key: tuple(value) if isinstance(value, list) else value for key, value in settings.items()}
    return ScoringRequest(
        completion=pair["prediction"],
        gold=pair["gold"],
        answer_type=pair["answer_type"],
        settings=MatchSettings(**plain),
    )


@pytest.fixture(scope="module")
def verifier() -> Iterator[Verifier]:
    with Verifier(deadline_seconds=20.0) as made:
        yield made


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_no_verdict_is_wrong(path: Path, verifier: Verifier) -> None:
    pairs = read_pairs(path)
    verdicts = verifier.verify_batch([request_of(pair) for pair in pairs])
    wrong = [
        f"line {number}: gold {pair['gold'][:80]!r}, prediction {pair['prediction'][:200]!r}: expected "
        f"{'a match' if pair['matched'] else 'no match'}, got {verdict.outcome}, read {str(verdict.extracted)[:80]!r} "
        f"as {verdict.answer_type} ({pair['note']})"
        for number, (pair, verdict) in enumerate(zip(pairs, verdicts, strict=True), start=1)
        if verdict.matched != pair["matched"]
    ]
    assert not wrong, f"{len(wrong)} of {len(pairs)} in {path.name}:\n" + "\n".join(wrong)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_every_gold_matches_itself(path: Path, verifier: Verifier) -> None:
    pairs = {(pair["gold"], pair["answer_type"]): pair for pair in read_pairs(path)}.values()
    # Bare, as a last line is read, would be another test: it is extraction's to find lines.
    boxed = [request_of(pair | {"prediction": f"\\boxed{{{pair['gold']}}}"}) for pair in pairs]
    wrong = [
        f"{pair['gold']!r} as {pair['answer_type']}: {verdict.outcome}, read {verdict.extracted!r}"
        for pair, verdict in zip(pairs, verifier.verify_batch(boxed), strict=True)
        if not verdict.matched
    ]
    assert not wrong, "\n".join(wrong)


def test_the_pairs_are_many_and_of_every_kind() -> None:
    assert {path.stem for path in FILES} == KINDS
    labels = Counter((path.stem, pair["matched"]) for path in FILES for pair in read_pairs(path))
    assert all(labels[kind, True] and labels[kind, False] for kind in KINDS)
    assert labels.total() >= 600
    num_wrong = sum(number for (_, matched), number in labels.items() if not matched)
    assert num_wrong >= 0.45 * labels.total()


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_the_pairs_are_well_formed(path: Path) -> None:
    pairs = read_pairs(path)
    assert all(set(pair) <= KEYS and pair["note"] and isinstance(pair["matched"], bool) for pair in pairs)
    seen = Counter(json.dumps([pair.get(key) for key in sorted(KEYS - {"note", "matched"})]) for pair in pairs)
    assert not [key for key, times in seen.items() if times > 1]
