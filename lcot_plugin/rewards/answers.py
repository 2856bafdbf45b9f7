"""A gold answer and a stated answer in, an outcome out; the verifier and its worker process consume it.

The same code runs in two places. In the training process there is no solver, and whatever needs symbolic algebra
raises NeedsSolver; the worker process then repeats the comparison with one. Each kind of answer is a module with a
reader and a comparison; KINDS is the table of them.
"""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache

from lcot_plugin.errors import RewardError
from lcot_plugin.rewards.extraction import Found, gold_answer
from lcot_plugin.rewards.kinds import algebra, boxes, json_answers, numbers, ratios, texts, times, yes_no
from lcot_plugin.rewards.kinds.algebra import squeeze
from lcot_plugin.rewards.kinds.base import Gold, Kind, NeedsSolver, Solver
from lcot_plugin.rewards.kinds.choices import choice_kind
from lcot_plugin.rewards.kinds.dress import undress
from lcot_plugin.rewards.kinds.sequences import sequence_kinds
from lcot_plugin.types import MatchSettings, Outcome

DEFAULT = MatchSettings()
ALIASES: dict[str, str] = {
    **yes_no.ALIASES,
    **dict.fromkeys(("", "default", "math"), "auto"),
    **dict.fromkeys(("latex", "formula", "equation", "symbolic", "algebraic"), "expression"),
    **dict.fromkeys(("array", "ordered_list", "ordered list", "ordering"), "list"),
    **dict.fromkeys(("unordered_list", "unordered list"), "set"),
    **dict.fromkeys(("point", "coordinates", "points", "vector"), "coordinate"),
    **dict.fromkeys(("range", "intervals", "inequality"), "interval"),
    **dict.fromkeys(("pair", "ordered_pair", "ordered pair"), "tuple"),
    **dict.fromkeys(("numeric", "numerical", "float", "integer", "int", "quantity", "count", "counting"), "number"),
    **dict.fromkeys(("clock", "clock_time", "clock time", "time of day"), "time"),
    **dict.fromkeys(("datetime", "day", "calendar"), "date"),
    **dict.fromkeys(("proportion",), "ratio"),
    **dict.fromkeys(("bbox", "box", "grounding", "detection"), "boxes"),
    **dict.fromkeys(("mcq", "multiple-choice", "multiple choice", "multiple_choice", "multi_choice"), "choice"),
    **dict.fromkeys(("string", "str", "free_text"), "text"),
}
"""Other words for the kinds, by the words of other data sets and frameworks."""
_INFERRED = ("boxes", "json", "choice", "time", "date", "number", "ratio", "sequence", "expression", "yes_no", "text")
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
    text = undress(gold_answer(gold))
    text = text.rstrip("\\") or text  # 185\\: an escape that escapes nothing
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


def written_alike(gold: Gold, found: Found) -> bool:
    """Whether the two are the same but for spaces and outer dress, so that nothing needs to be compared."""
    return gold.written != "" and squeeze(undress(found.answer)) == gold.written


def judge(gold: Gold, found: Found | None, settings: MatchSettings = DEFAULT, solver: Solver | None = None) -> Outcome:
    """What `found` is worth against `gold`.

    Raises NeedsSolver where algebra decides and `solver` is None.
    """
    if found is not None and written_alike(gold, found):
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


_SEQUENCES = sequence_kinds(infer, judge)
KINDS: dict[str, Kind] = {
    "number": numbers.KIND,
    "ratio": ratios.KIND,
    "time": times.TIME,
    "date": times.DATE,
    "choice": choice_kind(infer, judge),
    "text": texts.KIND,
    "yes_no": yes_no.KIND,
    **_SEQUENCES,
    "expression": algebra.expression_kind(numbers.KIND, _SEQUENCES["sequence"]),
    "boxes": boxes.KIND,
    "json": json_answers.KIND,
}
ANSWER_TYPES = ("auto", *KINDS)
