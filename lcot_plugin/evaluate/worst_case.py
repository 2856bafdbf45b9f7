"""Accuracy in the worst case over the variants of a problem, as DynaMath is reported (Zou et al., arXiv 2411.00836).

In:  for every record the id of its problem and whether it was right. Out: metrics over problems, shares in percent.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from statistics import fmean


def worst_case_metrics(variants: Iterable[tuple[str, bool]]) -> dict[str, float]:
    """`worst_case`: the share of problems of which every variant is right.

    variants: problem id and verdict of each record; those without an id are no variants and are left out. Empty
    without any. `variant_problems` counts problems, `variants` is the largest number of variants of one.
    `variants_missing` counts those that problems with fewer lack (a record that was left out, a gold answer that cannot
    be read): such a problem is judged by the variants it has, which flatters. Example with three variants each:

        a: right right right     b: right wrong right     ->  worst_case 50, while 5 of 6 answers are right
    """
    problems: dict[str, list[bool]] = defaultdict(list)
    for problem_id, right in variants:
        if problem_id:
            problems[problem_id].append(right)
    if not problems:
        return {}
    most = max(map(len, problems.values()))
    return {
        "worst_case": 100 * fmean(all(rights) for rights in problems.values()),
        "variant_problems": float(len(problems)),
        "variants": float(most),
        "variants_missing": float(sum(most - len(rights) for rights in problems.values())),
    }
