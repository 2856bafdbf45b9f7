"""The benchmarks of dataset_info.json: each schema reads as what its records say, and every gold answer is right."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from data.public_sets import BENCHMARKS, PublicSet
from data.test_dataset_info import ENTRIES

from lcot_plugin.data.formats import get_format
from lcot_plugin.data.samples import to_sample
from lcot_plugin.rewards.requests import verification_request
from lcot_plugin.rewards.verifier import shared_verifier
from lcot_plugin.types import GoldAnswer, Outcome

# As a model would answer: a letter where there are options.
ANSWERS = {
    "mathvista_testmini": ["B", "4"],
    "mathverse_testmini": ["B", "12"],
    "dynamath": ["-1.5", "B"],
    "logicvista": ["B", "A, C"],
    "mmmu_validation": ["A", "12"],
}
WRONG = ["A", "5", "C, D"]


@pytest.mark.parametrize("data_set", BENCHMARKS.values(), ids=lambda data_set: data_set.name)
def test_what_the_records_say_and_what_answers_are_worth(data_set: PublicSet, tmp_path: Path) -> None:
    entry = data_set.write(tmp_path)
    shipped = ENTRIES[data_set.entry_name]
    assert (shipped["formatting"], shipped.get("columns", {})) == (entry["formatting"], entry.get("columns", {}))
    rows = zip(data_set.read(tmp_path), data_set.expected, ANSWERS[data_set.name], strict=True)
    for record, expected, answer in rows:
        sample = to_sample(get_format(entry["formatting"]).read(record, entry.get("columns", {})), tmp_path)
        assert expected.question in sample.question
        assert sample.question.count("<image>") == len(sample.images) == expected.images
        assert all(option in sample.question for option in expected.options)
        assert sample.question.count("(A)") + sample.question.count("\nA.") <= 1, "options are written once"
        assert sample.gold is not None
        gold = GoldAnswer(sample.gold, sample.answer_type, sample.match)
        assert outcome(answer, gold) is Outcome.MATCHED, (answer, gold)
        assert outcome(sample.gold, gold) is Outcome.MATCHED
        wrong = next(text for text in WRONG if text != answer and len(text) == len(answer.removeprefix("-")[:1]))
        assert outcome(wrong, gold) is Outcome.MISMATCHED, (wrong, gold)


def outcome(answer: str, gold: GoldAnswer) -> Outcome:
    return shared_verifier().verify_batch([verification_request(rf"\boxed{{{answer}}}", gold)])[0].outcome


def test_dynamath_has_its_ten_variants() -> None:
    variants = {name: entry for name, entry in ENTRIES.items() if name.startswith("dynamath_")}
    assert [entry.pop("split") for entry in map(dict, variants.values())] == [
        f"sample_variant{number}" for number in range(1, 11)
    ]
    others = {json.dumps({**entry, "split": ""}) for entry in variants.values()}
    assert len(others) == 1 and "problem_id" in others.pop()
