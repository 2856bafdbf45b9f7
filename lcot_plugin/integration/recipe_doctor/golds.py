"""What the recipe's own reward functions give for gold answers, and whether completions are given enough tokens.

In: the records that were read. Out: findings. Functions run here as they will in training, on a few records: one that
fails, or does not care for the answer, is found before a model is loaded.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lcot_plugin.command_checks import DATASET_INFO, DEFAULT_DATASET_DIR, read_run_file
from lcot_plugin.data.targets import TARGETS
from lcot_plugin.errors import LcotError
from lcot_plugin.integration.data_command import measure
from lcot_plugin.integration.data_sets import DataRecipe, Findings, LoadedSet, load_sets, read_recipe, tokenise_set
from lcot_plugin.integration.grpo import make_scorer
from lcot_plugin.integration.recipe_doctor.lines import GOOD, NOTE, SKIPPED, WRONG, Line
from lcot_plugin.integration.refusals import RunArguments
from lcot_plugin.types import GoldAnswer, ScoringRequest, Trace

NUM_SCORED = 4
"""Records of each set whose gold answer is scored: a function may ask a server that costs money."""
OTHER_ANSWER = "-987654321/123456791"
"""What no gold answer is."""
MANY = 0.1


def reward_line(recipe: DataRecipe, run: RunArguments, golds: Mapping[str, Mapping[int, GoldAnswer]]) -> Line | None:
    """Rewards of completions that state the gold answer in the form of `cot_format`, beside those of another answer."""
    target = TARGETS[run.data.cot_format]
    right, other = (
        [
            ScoringRequest(
                target.write(Trace("It follows.", "", answer or gold.text), recipe.template.thought_words),
                gold.text,
                answer_type=gold.answer_type,
                settings=gold.settings,
                source=source,
                record=record,
            )
            for source, of_set in golds.items()
            for record, gold in list(of_set.items())[:NUM_SCORED]
        ]
        for answer in ("", OTHER_ANSWER)
    )
    if not right:
        return None
    try:
        with make_scorer(run) as scorer:
            scores = scorer.score([*right, *other])
    except LcotError as error:
        return Line(WRONG, "reward", str(error))
    of_right, of_other = scores[: len(right)], scores[len(right) :]
    given = [f"{name} {_mean([score.rewards[name] for score in of_right])}" for name in of_right[0].rewards]
    text = f"{', '.join(given)} for {len(right)} gold answers in the form of cot_format {target.name}"
    no_better = [
        f"{request.source} record {request.record}"
        for request, score, against in zip(right, of_right, of_other, strict=True)
        if score.total is not None and score.total <= (against.total or 0.0)
    ]
    if len(no_better) == len(right):
        advice = "no function looks at the answer: grpo_reward_funcs: accuracy does."
        return Line(WRONG, "reward", f"{text}; a wrong answer earns as much in every one: {advice}")
    if no_better:
        return Line(NOTE, "reward", f"{text}; a wrong answer earns as much in {', '.join(no_better)}")
    return Line(GOOD, "reward", f"{text}; a wrong answer earns less")


def _mean(rewards: Sequence[float | None]) -> str:
    given = [reward for reward in rewards if reward is not None]
    return f"{sum(given) / len(given):.2f}" if given else "abstains"


def room_line(run: RunArguments, sft_recipe: Path | None, sampled: int) -> Line | None:
    """Whether max_new_tokens leaves room for responses as long as those of the SFT recipe before this one.

    sft_recipe: the recipe that makes the model or adapter of this one.
    """
    if sft_recipe is None:
        return None
    lengths = []
    try:
        written = read_run_file(str(sft_recipe))
        if written.get("stage", "sft") != "sft":
            return None
        if here := _sets_here(written):
            recipe = read_recipe(str(sft_recipe), [f"max_samples={sampled}"], datasets=",".join(here))
            lengths = [length for loaded in load_sets(recipe, Findings()) for length in _responses(recipe, loaded)]
    except LcotError:
        pass
    if not lengths:
        what = f"the data and the tokenizer of {sft_recipe} are not on this machine"
        return Line(SKIPPED, "room to answer", f"{what}, so whether max_new_tokens is enough was not looked at")
    room, num = run.generating.max_new_tokens, sum(length > run.generating.max_new_tokens for length in lengths)
    text = f"{num:,} of {len(lengths):,} responses of {sft_recipe} are longer than max_new_tokens {room:,}"
    if num <= MANY * len(lengths):
        return Line(NOTE if num else GOOD, "room to answer", text)
    longest = sorted(lengths)[int(0.95 * (len(lengths) - 1))]
    text += f": completions like them would be cut; {longest:,} are enough for 95 %."
    return Line(WRONG, "room to answer", text)


def _sets_here(written: Mapping[str, Any]) -> list[str]:
    """The data sets of a recipe whose files are here: those of a hub are not fetched for this."""
    folder = Path(str(written.get("dataset_dir", DEFAULT_DATASET_DIR)))
    try:
        entries = json.loads((folder / DATASET_INFO).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return []
    names = [name.strip() for name in str(written.get("dataset") or "").split(",")]
    files = {name: (entries.get(name) or {}).get("file_name") for name in names}
    return [name for name, file in files.items() if file and (folder / file).exists()]


def _responses(recipe: DataRecipe, loaded: LoadedSet | tuple[str, Exception]) -> list[int]:
    """Tokens of each response of a set that is here."""
    if not isinstance(loaded, LoadedSet):
        return []
    tokens, aligned = tokenise_set(recipe, loaded, Findings())
    if not len(aligned):
        return []
    counts = measure(recipe, loaded.source, tokens).counts
    return [int(length) for length in counts["thought"] + counts["answer"]]
