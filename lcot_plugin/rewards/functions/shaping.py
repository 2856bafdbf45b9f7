"""Completions in, rewards for what else is wished of them out: length, no repetition, one language.

Lengths are in tokens, the end token included, and so is `max_length`. Where a spec leaves `max_length` out, the scorer
puts in the run's `max_new_tokens`.
"""

from __future__ import annotations

import math
import re
from typing import Any

from lcot_plugin.errors import RewardError
from lcot_plugin.types import Outcome, Verdict


def length(
    completion_ids: list[list[int]],
    verdicts: list[Verdict | None],
    source: list[str],
    records: list[int],
    prompts: list[str],
    **kwargs: Any,
) -> list[float | None]:
    """Shorter than the others of its group is better, and only a right answer gains by it: -0.5 to 0.5.

    With the shortest and the longest completion of the same prompt, s = 0.5 - (len - min) / (max - min); a right
    answer is given s, any other min(0, s); all 0 where every length is the same. None where the gold answer is no use.
    Kimi k1.5 (arXiv 2501.12599), which warms it up: give it a small weight, or none at first.
    """
    prompt_of = list(zip(source, records, prompts, strict=True))
    lengths: dict[tuple[str, int, str], list[int]] = {}
    for prompt, ids in zip(prompt_of, completion_ids, strict=True):
        lengths.setdefault(prompt, []).append(len(ids))
    rewards: list[float | None] = []
    for prompt, ids, verdict in zip(prompt_of, completion_ids, verdicts, strict=True):
        shortest, longest = min(lengths[prompt]), max(lengths[prompt])
        score = 0.5 - (len(ids) - shortest) / (longest - shortest) if longest > shortest else 0.0
        rewards.append(None if _without_verdict(verdict) else score if _right(verdict) else min(0.0, score))
    return rewards


def soft_overlong(
    completion_ids: list[list[int]], *, max_length: int, cache: int | None = None, **kwargs: Any
) -> list[float | None]:
    """0 up to max_length - cache tokens, then falling linearly to -1 at max_length, -1 beyond.

    cache: tokens before `max_length` in which the penalty grows; default: a fifth of it, as DAPO's 4096 of 20480.
    DAPO (arXiv 2503.14476, eq. 13); TRL's get_soft_overlong_punishment.
    """
    if max_length < 1:
        raise RewardError(f"soft_overlong: max_length={max_length} must be at least 1 token")
    cache = max(1, max_length // 5) if cache is None else cache
    if not 1 <= cache <= max_length:
        raise RewardError(f"soft_overlong: cache={cache} must lie between 1 and max_length={max_length}")
    free = max_length - cache
    return [max(-1.0, min(0.0, (free - len(ids)) / cache)) for ids in completion_ids]


def cosine_length(
    completion_ids: list[list[int]],
    verdicts: list[Verdict | None],
    endings: list[str],
    *,
    max_length: int,
    min_correct: float = 0.5,
    max_correct: float = 1.0,
    min_wrong: float = -1.0,
    max_wrong: float = -0.5,
    exceeded: float | None = None,
    **kwargs: Any,
) -> list[float | None]:
    """Right answers gain by being short, wrong ones by being long: a cosine from length 0 to max_length.

    With c = (1 + cos(pi * min(1, len / max_length))) / 2, which falls from 1 to 0: right answers are given
    min_correct + (max_correct - min_correct) * c, others max_wrong + (min_wrong - max_wrong) * c, and one that was cut
    off is given `exceeded` where that is set. None where the gold answer is no use. Range: min_wrong to max_correct.
    Yeo et al. (arXiv 2502.03373); defaults of open-r1's cosine-scaled reward, which counts characters.
    """
    if max_length < 1:
        raise RewardError(f"cosine_length: max_length={max_length} must be at least 1 token")
    if min_correct > max_correct or min_wrong > max_wrong:
        raise RewardError(
            f"cosine_length: min_correct={min_correct} and min_wrong={min_wrong} must not exceed "
            f"max_correct={max_correct} and max_wrong={max_wrong}"
        )
    rewards: list[float | None] = []
    for ids, verdict, ending in zip(completion_ids, verdicts, endings, strict=True):
        fall = (1 + math.cos(math.pi * min(1.0, len(ids) / max_length))) / 2
        if _without_verdict(verdict):
            rewards.append(None)
        elif exceeded is not None and (ending == "truncated" or len(ids) > max_length):
            rewards.append(exceeded)
        elif _right(verdict):
            rewards.append(min_correct + (max_correct - min_correct) * fall)
        else:
            rewards.append(max_wrong + (min_wrong - max_wrong) * fall)
    return rewards


def repetition(
    completions: list[str], *, ngram_size: int = 3, max_penalty: float = -1.0, **kwargs: Any
) -> list[float | None]:
    """max_penalty * (1 - different n-grams / n-grams), from max_penalty to 0; 0 for fewer than ngram_size words.

    Words are split at spaces, in lower case; every Chinese character and Japanese sign is a word of its own, so that
    Chinese text wants a larger ngram_size than English, 6 for instance. Yeo et al. (arXiv 2502.03373); open-r1's
    repetition-penalty reward, n-grams of 3 words there too.
    """
    if ngram_size < 1:
        raise RewardError(f"repetition: ngram_size={ngram_size} must be at least 1")
    if max_penalty > 0:
        raise RewardError(f"repetition: max_penalty={max_penalty} must not be positive: it would pay for repetition")
    rewards: list[float | None] = []
    for text in completions:
        words = _WORD.findall(text.lower())
        ngrams = list(zip(*(words[start:] for start in range(ngram_size)), strict=False))
        rewards.append(max_penalty * (1 - len(set(ngrams)) / len(ngrams)) if ngrams else 0.0)
    return rewards


def language_consistency(completions: list[str], prompts: list[str], **kwargs: Any) -> list[float | None]:
    """Share of the thought's letters that are of the script of the question: 0 to 1.

    The question's script is the one that most of its letters belong to (Latin, Chinese, Japanese, Korean, Cyrillic,
    Arabic, Hebrew, Devanagari, Thai), so languages that share a script are not told apart. Formulas, tags, code, Greek
    letters and Latin words of one or two letters (names of points, units) do not count. A completion without a closed
    thought is taken whole. None where the question or the thought has no letters left. DeepSeek-R1 (arXiv 2501.12948),
    which counts words.
    """
    targets = {prompt: _main_script(prompt) for prompt in set(prompts)}
    rewards: list[float | None] = []
    for text, prompt in zip(completions, prompts, strict=True):
        target, counts = targets[prompt], _script_counts(text.partition("</think>")[0])
        num_letters = sum(counts.values())
        if target is None or not num_letters:
            rewards.append(None)
        else:
            rewards.append(sum(counts.get(script, 0) for script in _WRITTEN_WITH.get(target, (target,))) / num_letters)
    return rewards


_CJK = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
_WORD = re.compile(rf"[{_CJK}]|[^\s{_CJK}]+")

_SCRIPTS = {
    "han": "\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff",
    "kana": "\u3040-\u30ff",
    "hangul": "\u1100-\u11ff\uac00-\ud7af",
    "latin": "A-Za-z\u00c0-\u00d6\u00d8-\u00f6\u00f8-\u024f\u1e00-\u1eff",
    "cyrillic": "\u0400-\u052f",
    "arabic": "\u0620-\u064a\u066e-\u06d3",
    "hebrew": "\u05d0-\u05ea",
    "devanagari": "\u0900-\u097f",
    "thai": "\u0e00-\u0e7f",
}
_RUN_OF_SCRIPT = re.compile("|".join(f"(?P<{script}>[{letters}]+)" for script, letters in _SCRIPTS.items()))
_WRITTEN_WITH = {"kana": ("kana", "han")}
"""Japanese is written with both; the kana tell it from Chinese."""
_NO_PROSE = re.compile(
    # No alternative reads past the sign that opens it: a megabyte of dollar signs costs no more than its length.
    r"\$\$[^$]*\$\$|\$[^$\n]*\$|\\\((?:[^\\]|\\[^()\[\]])*+\\\)|\\\[(?:[^\\]|\\[^()\[\]])*+\\\]"
    r"|`[^`\n]*`|\\[A-Za-z]+|</?[A-Za-z_]{1,20}>"
)


def _script_counts(text: str) -> dict[str, int]:
    """Letters of prose by script."""
    counts: dict[str, int] = {}
    for run in _RUN_OF_SCRIPT.finditer(_NO_PROSE.sub(" ", text)):
        script, letters = str(run.lastgroup), run.end() - run.start()
        if script != "latin" or letters > 2:
            counts[script] = counts.get(script, 0) + letters
    return counts


def _main_script(text: str) -> str | None:
    counts = _script_counts(text)
    if counts.get("kana"):
        # A Japanese sentence may hold more Chinese characters than kana; a Chinese one holds no kana.
        counts["kana"] += counts.pop("han", 0)
    return max(counts, key=lambda script: counts[script]) if counts else None


def _without_verdict(verdict: Verdict | None) -> bool:
    return verdict is None or verdict.outcome is Outcome.GOLD_UNPARSABLE


def _right(verdict: Verdict | None) -> bool:
    return verdict is not None and verdict.matched
