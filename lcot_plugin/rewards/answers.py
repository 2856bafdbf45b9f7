"""A gold answer and a stated answer in, an outcome out; the verifier and its worker process consume it.

The same code runs in two places. In the training process there is no solver, and whatever needs symbolic algebra
raises NeedsSolver; the worker process then repeats the comparison with one. Each kind of answer is a module with a
reader and a comparison; KINDS is the table of them.
"""

from __future__ import annotations

import re
from dataclasses import replace
from functools import lru_cache

from lcot_plugin.errors import RewardError
from lcot_plugin.rewards import algebra, choices, numbers, texts
from lcot_plugin.rewards.algebra import squeeze
from lcot_plugin.rewards.dress import undress
from lcot_plugin.rewards.extraction import Found
from lcot_plugin.rewards.kinds import Gold, Kind, NeedsSolver, Solver
from lcot_plugin.rewards.sequences import sequence_kind
from lcot_plugin.types import MatchSettings, Outcome

DEFAULT = MatchSettings()
ALIASES: dict[str, str] = {}
"""Other words for the kinds, by the words of other data sets and frameworks."""
_INFERRED = ("choice", "number", "sequence", "expression", "text")
"""The order in which `answer_type: auto` tries the kinds."""


def infer(text: str, settings: MatchSettings = DEFAULT) -> Gold | None:
    """The gold answer under `answer_type: auto`."""
    kinds = (KINDS[name] for name in _INFERRED)
    readings = ((kind.infer or kind.read)(text, settings) for kind in kinds)
    return next((reading for reading in readings if reading is not None), None)


@lru_cache(maxsize=8192)
def read_gold(gold: str, answer_type: str = "auto", settings: MatchSettings = DEFAULT) -> Gold | None:
    """The gold answer as its kind; None where it cannot be read as one.

    Raises RewardError for an unknown `answer_type`.
    """
    kind = check_answer_type(answer_type)
    text = undress(gold)
    if not text:
        return None
    found = infer(text, settings) if kind == "auto" else KINDS[kind].read(text, settings)
    return replace(found, written=squeeze(text)) if found else None


def check_answer_type(answer_type: str) -> str:
    """The kind, or auto, that `answer_type` names; RewardError where the verifier does not know it."""
    name = answer_type.strip().lower()
    name = ALIASES.get(name, name)
    if name not in ANSWER_TYPES:
        raise RewardError(f"answer_type {answer_type!r} is unknown; write one of {', '.join(ANSWER_TYPES)}")
    return name


def judge(gold: Gold, found: Found | None, settings: MatchSettings = DEFAULT, solver: Solver | None = None) -> Outcome:
    """What `found` is worth against `gold`.

    Raises NeedsSolver where algebra decides and `solver` is None.
    """
    if found is not None and gold.written and squeeze(undress(found.answer)) == gold.written:
        return Outcome.MATCHED
    if gold.expressions:
        if solver is None:
            raise NeedsSolver
        if not all(solver.readable(expression) for expression in gold.expressions):
            return Outcome.GOLD_UNPARSABLE
    if found is None:
        return Outcome.UNPARSABLE
    try:
        same = KINDS[gold.kind].compare(gold, found, settings, solver)
    except NeedsSolver:
        raise
    except Exception:
        # The one catch of this room: the gold answer has been read, so whatever fails here fails on what a model
        # wrote, and that may never end a training run.
        return Outcome.UNPARSABLE
    if same is None:
        return Outcome.MISMATCHED if found.explicit else Outcome.UNPARSABLE
    return Outcome.MATCHED if same else Outcome.MISMATCHED


KINDS: dict[str, Kind] = {
    "number": numbers.KIND,
    "choice": choices.KIND,
    "text": texts.KIND,
    "expression": algebra.KIND,
    "sequence": sequence_kind(infer, judge),
}
ANSWER_TYPES = ("auto", *KINDS)
