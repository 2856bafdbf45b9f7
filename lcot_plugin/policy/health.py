"""Training logs come in, one after another; alarms in words come out when a run goes wrong.

`HealthMonitor.observe(step, logs)` takes every training log in order and returns the alarms that it raises: each says
what happened with its numbers, why it matters and which YAML keys to try. It is pure Python and knows nothing of the
trainer; it keeps a few dozen values per metric, which `state()` and `take_up()` carry over a resume.

How noise is kept from raising alarms. A log averages one optimizer step or several (`logging_steps`), and one log of
a few groups says little, so nothing but a broken gradient is judged by single logs:

    RECENT  5 logs    whose mean (median, of heavy-tailed metrics) is compared with a limit
    FIRST  10 logs    a run's first ones, whose mean is "the start"; compared with once RECENT more have come
    LONG   20 logs    for rewards, the noisiest metric, and for the usual size of the gradient norm

A metric that a log lacks (one rollout may serve several optimizer steps) leaves its alarms as they are. An alarm is
raised once; again only after its condition was away for OVER logs and came back.

The limits, and why they stand where they do, are beside each rule. They are meant to be far outside of what healthy
runs show, since an alarm that cries wolf is switched off; a run can be poor without any.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from copy import deepcopy
from dataclasses import asdict, dataclass
from statistics import fmean, median, variance
from typing import Any

RECENT, FIRST, LONG, OVER = 5, 10, 20, 10
NOT_FINITE = "not_finite"
"""A series of our own: 1 where the loss or the gradient norm was inf or NaN, 0 elsewhere."""
WATCHED = {
    *("reward", "reward_std", "groups_without_variance", "groups_all_right", "groups_all_wrong"),
    *("completions/length", "completions/truncated"),
    *("verdicts/unparsable", "verdicts/gold_unparsable", "verdicts/timed_out"),
    *("entropy", "kl", "clip_region", "ratio/max", "sampler_gap", "sampler_gap/max", "grad_norm", NOT_FINITE),
}


@dataclass(frozen=True)
class Alarm:
    """Something that a user should look at."""

    name: str
    message: str
    """What happened, with its numbers."""
    step: int
    """Optimizer steps done when it was raised."""
    advice: str | None = None
    """Why it matters and what to try; None in a checkpoint of an older version, whose message has both."""

    def __str__(self) -> str:
        told = f"{self.message} {self.advice}" if self.advice else self.message
        return f"Step {self.step}, {self.name.replace('_', ' ')}: {told}"


class Readings:
    """The first and the last values of the metrics in WATCHED. What is not known yet is NaN: no comparison holds."""

    def __init__(self) -> None:
        self.first: dict[str, list[float]] = {}
        self.last: dict[str, list[float]] = {}
        """At most 2 x LONG values each, oldest first."""
        self.num_seen: dict[str, int] = {}
        self.best_reward: list[float] = []
        """Mean and variance of the best LONG logs in a row, among those before the last LONG."""

    def add(self, logs: Mapping[str, Any]) -> set[str]:
        """The names that have a new value."""
        values = {name: float(value) for name, value in logs.items() if isinstance(value, int | float)}
        if "grad_norm" in values:
            values[NOT_FINITE] = float(not all(math.isfinite(values.get(key, 0.0)) for key in ("grad_norm", "loss")))
            if values["grad_norm"] == 0 or values.get("groups_without_variance") == 1:
                del values["grad_norm"]  # without a policy gradient it says nothing of the usual size
        added = {name for name in WATCHED & values.keys() if math.isfinite(values[name])}
        for name in added:
            self.num_seen[name] = self.num_seen.get(name, 0) + 1
            if len(self.first.setdefault(name, [])) < FIRST:
                self.first[name].append(values[name])
            self.last[name] = [*self.last.get(name, []), values[name]][-2 * LONG :]
        if "reward" in added and len(self.last["reward"]) == 2 * LONG:
            earlier = self.last["reward"][:LONG]
            if not self.best_reward or fmean(earlier) > self.best_reward[0]:
                self.best_reward = [fmean(earlier), variance(earlier)]
        return added

    def latest(self, name: str, number: int = RECENT) -> list[float]:
        """The last `number` values; NaN in place of all while there are fewer."""
        values = self.last.get(name, [])[-number:]
        return values if len(values) == number else [math.nan] * number

    def mean(self, name: str, number: int = RECENT) -> float:
        return fmean(self.latest(name, number))

    def median(self, name: str) -> float:
        return median(self.latest(name))

    def start(self, name: str) -> float:
        """Mean of the first FIRST values; NaN until RECENT others have come."""
        return fmean(self.first[name]) if self.num_seen.get(name, 0) >= FIRST + RECENT else math.nan

    def reward_scale(self) -> float:
        """What a difference of rewards is measured by: their own size or, where that is about 0, their spread within
        groups."""
        spread = self.last.get("reward_std", [])[-LONG:]
        return max(abs(self.mean("reward", FIRST)), fmean(spread) if spread else 0.0)


@dataclass(frozen=True)
class Rule:
    """One thing that can go wrong."""

    name: str
    metric: str
    """The rule is looked at where a log has it."""
    finding: Callable[[Readings], str | None]
    """What is wrong, with its numbers; None where nothing is."""
    advice: str
    """Why it matters and what to try."""


class HealthMonitor:
    """Watches one run; only the process that logs needs one."""

    def __init__(self) -> None:
        self._readings = Readings()
        self._active: dict[str, int] = {}
        """Rule that holds -> logs since it last did."""
        self._num_logs = 0
        self.alarms: list[Alarm] = []
        """All that were raised, in order."""

    def observe(self, step: int, logs: Mapping[str, Any]) -> list[Alarm]:
        """The alarms that this training log (metrics by name, as the trainer logs them) newly raises."""
        self._num_logs += 1
        added = self._readings.add(logs)
        raised = []
        for rule in RULES:
            if rule.metric not in added:
                continue
            found = rule.finding(self._readings)
            if found is None:
                self._rest(rule.name)
                continue
            if rule.name not in self._active:
                raised.append(Alarm(rule.name, found, step, rule.advice))
            self._active[rule.name] = 0
        self.alarms += raised
        return raised

    def _rest(self, name: str) -> None:
        if name in self._active:
            self._active[name] += 1
            if self._active[name] >= OVER:
                del self._active[name]

    def summary(self) -> str:
        """One line for the end of a run."""
        if not self.alarms:
            return f"Health: no alarms in {self._num_logs:,} logs."
        last = {alarm.name: alarm for alarm in self.alarms}
        told = [
            f"{alarm.name.replace('_', ' ')} at step {alarm.step:,}"
            + (" (to the end)" if last[alarm.name] is alarm and alarm.name in self._active else " (passed)")
            for alarm in self.alarms
        ]
        return f"Health: {len(told)} alarm{'s' * (len(told) > 1)} in {self._num_logs:,} logs: {', '.join(told)}."

    def state(self) -> dict[str, Any]:
        """Everything, as JSON takes it."""
        return {
            "readings": deepcopy(vars(self._readings)),
            "active": dict(self._active),
            "num_logs": self._num_logs,
            "alarms": [asdict(alarm) for alarm in self.alarms],
        }

    def take_up(self, state: Mapping[str, Any]) -> None:
        """Goes on where the monitor that `state` is of stood."""
        vars(self._readings).update(deepcopy(state["readings"]))
        self._active = dict(state["active"])
        self._num_logs = state["num_logs"]
        self.alarms = [Alarm(**alarm) for alarm in state["alarms"]]


# The rules. A comparison with NaN is False, so that each waits for its windows by itself.


def _entropy_collapse(readings: Readings) -> str | None:
    # 0.02 nats is a token in a hundred with a real alternative. A model that was trained well by SFT may start near
    # that without harm (and end there when it has learned the task), so a start below 0.08 counts by its quarter.
    now, start = readings.mean("entropy"), readings.start("entropy")
    if now < max(0.05 * start, min(0.02, 0.25 * start)):
        return f"the mean entropy of a token fell to {now:.2g} nats, from {start:.2g} at the start."
    return None


def _entropy_explosion(readings: Readings) -> str | None:
    # Clip-higher and an entropy bonus may double it. 1 nat is nearly three equally likely words at every token.
    now, start = readings.mean("entropy"), readings.start("entropy")
    if now > 1.0 and now > 3 * start:
        return f"the mean entropy of a token rose to {now:.2g} nats, from {start:.2g} at the start."
    return None


def _all_truncated(readings: Readings) -> str | None:
    share = readings.mean("completions/truncated")
    if share > 0.8:
        return f"{share:.0%} of the completions of the last {RECENT} logs were cut off at max_new_tokens."
    return None


def _length_runaway(readings: Readings) -> str | None:
    # Longer thoughts are what RL often brings; running into the limit is not. Above 0.8 another rule speaks.
    now, start = readings.mean("completions/length"), readings.start("completions/length")
    share = readings.mean("completions/truncated")
    if now > 1.5 * start and 0.4 < share <= 0.8:
        return f"completions grew from {start:,.0f} to {now:,.0f} tokens, and {share:.0%} of them reach max_new_tokens."
    return None


def _length_collapse(readings: Readings) -> str | None:
    # A model that rambled learns to stop, and its reward rises with it: then shorter is better.
    now, start = readings.mean("completions/length"), readings.start("completions/length")
    reward, first = readings.mean("reward", FIRST), readings.start("reward")
    if now < 0.25 * start and reward < first + 0.1 * readings.reward_scale():
        return (
            f"completions shrank from {start:,.0f} to {now:,.0f} tokens, while the reward went from {first:.3g} to "
            f"{reward:.3g}."
        )
    return None


def _flat_share(readings: Readings) -> float:
    # Ten logs and not five: of four groups a log, 80% without variance would give twenty such in a row too often.
    share = readings.mean("groups_without_variance", FIRST)
    return share if share > 0.95 else math.nan


def _reward_flat_low(readings: Readings) -> str | None:
    share, wrong = _flat_share(readings), readings.mean("groups_all_wrong", FIRST)
    if share > 0 and wrong > 0.9:
        unparsable, truncated = (readings.mean(key) for key in ("verdicts/unparsable", "completions/truncated"))
        return (
            f"{share:.0%} of the groups of the last {FIRST} logs have one reward, and {wrong:.0%} are all wrong "
            f"({unparsable:.0%} of the answers cannot be read, {truncated:.0%} of the completions are cut off)."
        )
    return None


def _reward_flat_high(readings: Readings) -> str | None:
    share, right = _flat_share(readings), readings.mean("groups_all_right", FIRST)
    if share > 0 and right > 0.9:
        return f"{share:.0%} of the groups of the last {FIRST} logs have one reward, and {right:.0%} are all right."
    return None


def _reward_flat(readings: Readings) -> str | None:
    share = _flat_share(readings)
    if share > 0 and not _reward_flat_low(readings) and not _reward_flat_high(readings):
        reward = readings.mean("reward", FIRST)
        return f"{share:.0%} of the groups of the last {FIRST} logs have one reward; their mean is {reward:.3g}."
    return None


def _reward_falling(readings: Readings) -> str | None:
    # Five standard errors and not two, since the best of many windows is compared; a quarter of the reward's size,
    # since a long run makes small losses certain too.
    if not readings.best_reward:
        return None
    (best, best_variance), recent = readings.best_reward, readings.latest("reward", LONG)
    error = math.sqrt((best_variance + variance(recent)) / LONG)
    if best - fmean(recent) > max(5 * error, 0.25 * max(abs(best), readings.reward_scale())):
        return f"the mean reward of {LONG} logs fell to {fmean(recent):.3g}; it was {best:.3g} at its best."
    return None


def _sampler_gap(readings: Readings) -> str | None:
    # Rounding in bfloat16 gives about 0.01 nats on average and up to 1 or 2 for a rare token. 5 nats is a factor of
    # 150 in probability: such a token was not drawn from the distribution that is trained.
    mean, largest = readings.mean("sampler_gap"), readings.median("sampler_gap/max")
    if mean > 0.05 or largest > 5.0:
        return (
            f"log-probabilities of sampler and trainer differ by {mean:.2g} nats on average, and by {largest:.2g} at "
            "the worst token of a log."
        )
    return None


def _clip_fraction(readings: Readings) -> str | None:
    # Usual are a few percent with ratios per token, some 15% with gspo's ratios per sequence.
    share = readings.mean("clip_region")
    if share > 0.3:
        return f"{share:.0%} of the importance ratios are clipped."
    return None


def _ratio_explosion(readings: Readings) -> str | None:
    # The largest of millions of ratios may be 10 in a healthy run; a median of 100 is no single outlier.
    largest = readings.median("ratio/max")
    if largest > 100:
        return f"the largest importance ratio is about {largest:,.0f}."
    return None


def _kl_explosion(readings: Readings) -> str | None:
    # Policies that have learned a lot stand 0.01 to 0.2 nats a token from where they began. k3 is heavy-tailed (it
    # exponentiates), hence medians.
    now, before = readings.median("kl"), readings.last["kl"][:-RECENT][-LONG:]
    if now > 1.0 or (now > 0.1 and len(before) == LONG and now > 10 * median(before)):
        usual = f", {median(before):.2g} in the logs before" if before else ""
        return f"the KL divergence to the reference is {now:.2g} nats a token{usual}."
    return None


def _not_finite(readings: Readings) -> str | None:
    # Not at the first one: with fp16 the loss scaler begins too high and skips a step or two.
    if min(readings.latest(NOT_FINITE, 3)) == 1:
        return "the loss or the gradient norm of 3 logs in a row is inf or NaN."
    return None


def _gradient_spike(readings: Readings) -> str | None:
    # Norms are about log-normal. With a spread of 0.7 (a factor of 2), 20 medians are reached once in 100,000 logs.
    *before, now = readings.last["grad_norm"][-LONG - 1 :]
    if len(before) >= FIRST and now > 20 * median(before):
        return f"the gradient norm is {now:.3g}, {now / median(before):.0f} times its median of {median(before):.3g}."
    return None


def _verdicts(outcome: str, what: str) -> Callable[[Readings], str | None]:
    def finding(readings: Readings) -> str | None:
        # Each such verdict teaches something false, or nothing: a tenth of them is worth a look at the data.
        share = readings.mean(f"verdicts/{outcome}")
        return f"{share:.0%} of the verdicts {what}." if share > 0.1 else None

    return finding


RULES = (
    Rule(
        "entropy_collapse",
        "entropy",
        _entropy_collapse,
        "Completions of one prompt become copies of each other, so that nothing is explored and nothing more is "
        "learned. Try grpo_epsilon_high: 0.28, grpo_entropy_coef: 0.001, a lower learning_rate, or grpo_beta: 0.01; "
        "check that temperature is 1.0.",
    ),
    Rule(
        "entropy_explosion",
        "entropy",
        _entropy_explosion,
        "The policy dissolves into noise, from which it rarely recovers. Go back to an earlier checkpoint; try a lower "
        "learning_rate, a lower grpo_entropy_coef or grpo_epsilon_high, grpo_beta: 0.01, and read completions.jsonl.",
    ),
    Rule(
        "all_truncated",
        "completions/truncated",
        _all_truncated,
        "What is cut off states no answer, so that reward and gradient say little. Raise max_new_tokens; if "
        "completions.jsonl shows repetition, lower temperature or train SFT longer; add soft_overlong to "
        "grpo_reward_funcs, or set grpo_mask_truncated: true.",
    ),
    Rule(
        "length_runaway",
        "completions/length",
        _length_runaway,
        "The model is paid for length, or repeats itself. Read completions.jsonl; try grpo_loss_type: dr_grpo or dapo, "
        "soft_overlong in grpo_reward_funcs, grpo_mask_truncated: true, or a higher max_new_tokens where the text is "
        "sound.",
    ),
    Rule(
        "length_collapse",
        "completions/length",
        _length_collapse,
        "The model stopped thinking and guesses. Read completions.jsonl; drop rewards for brevity from "
        "grpo_reward_funcs, add a format (format_think_boxed), try a lower learning_rate or grpo_beta: 0.01.",
    ),
    Rule(
        "reward_flat_low",
        "groups_without_variance",
        _reward_flat_low,
        "Where every answer is wrong there is nothing to prefer and no gradient. Train SFT first so that the form is "
        "known, raise max_new_tokens if many are cut off, raise grpo_num_generations, or leave out what is too hard "
        "(`lcot data difficulty`, then grpo_min_pass_rate: 0.1); `lcot data check` tells whether gold answers can be "
        "read.",
    ),
    Rule(
        "reward_flat_high",
        "groups_without_variance",
        _reward_flat_high,
        "The problems are solved: there is no gradient left, and more steps only cost time. Stop here, or take harder "
        "problems (`lcot data difficulty`, then grpo_max_pass_rate: 0.9) or grpo_dynamic_sampling: true.",
    ),
    Rule(
        "reward_flat",
        "groups_without_variance",
        _reward_flat,
        "Rewards that do not differ within a group give no gradient. Problems are too easy or too hard, or completions "
        "are alike: try grpo_dynamic_sampling: true, a pass-rate filter (grpo_min_pass_rate, grpo_max_pass_rate), "
        "temperature: 1.0, a higher grpo_num_generations, or a graded reward in grpo_reward_funcs.",
    ),
    Rule(
        "reward_falling",
        "reward",
        _reward_falling,
        "The policy gets worse (with grpo_curriculum: easy_first, or data that is not shuffled, the problems may just "
        "get harder: compare the evaluation). Go back to the checkpoint of the best reward; try a lower learning_rate, "
        "grpo_num_iterations: 1, grpo_beta: 0.01, or larger batches (gradient_accumulation_steps).",
    ),
    Rule(
        "sampler_gap",
        "sampler_gap",
        _sampler_gap,
        "The policy that is trained is not the one that wrote the completions. Set grpo_sampler_correction: "
        "token_truncate, let both compute in one precision, leave repetition_penalty and top_p at 1.0 and top_k at 0, "
        "and try grpo_update_layout: rows to see whether packing has a part in it.",
    ),
    Rule(
        "clip_fraction",
        "clip_region",
        _clip_fraction,
        "Clipped tokens give no gradient: the policy has moved too far from the one that sampled. Try a lower "
        "learning_rate, fewer updates per rollout (grpo_num_iterations, grpo_steps_per_generation), or wider limits "
        "(grpo_epsilon, grpo_epsilon_high; gspo needs about 3e-4, other objectives 0.2).",
    ),
    Rule(
        "ratio_explosion",
        "ratio/max",
        _ratio_explosion,
        "A ratio of a completion with negative advantage is not clipped from above, and one token can rule the update. "
        "Try grpo_delta: 2.0, a lower learning_rate, fewer updates per rollout (grpo_num_iterations), or "
        "grpo_loss_type: cispo.",
    ),
    Rule(
        "kl_explosion",
        "kl",
        _kl_explosion,
        "The policy has left the model that it began as, and with it what that could do. Try a lower learning_rate, a "
        "higher grpo_beta, grpo_kl_estimator: k2, or move the reference along (grpo_ref_sync_steps).",
    ),
    Rule(
        "not_finite",
        NOT_FINITE,
        _not_finite,
        "The weights are being destroyed, or no update is made. Stop and go back to a checkpoint; use bf16: true in "
        "place of fp16, a lower learning_rate, and max_grad_norm: 1.0.",
    ),
    Rule(
        "gradient_spike",
        "grad_norm",
        _gradient_spike,
        "One batch can undo what many have learned. See that max_grad_norm is set (1.0, or 0.2 for full tuning); if it "
        "happens again, try a lower learning_rate, grpo_delta: 2.0 or larger batches (gradient_accumulation_steps), "
        "and read this step in completions.jsonl.",
    ),
    Rule(
        "verdicts_timed_out",
        "verdicts/timed_out",
        _verdicts("timed_out", "ran out of time, which counts as wrong"),
        "Right answers may be among them. Raise grpo_reward_deadline; `lcot reward time` measures the verifier on this "
        "machine, which may be short of cores.",
    ),
    Rule(
        "gold_unparsable",
        "verdicts/gold_unparsable",
        _verdicts("gold_unparsable", "found a gold answer that cannot be read, so that no accuracy is rewarded"),
        "These prompts cost a rollout and teach nothing. Run `lcot data check`, and set the answer type or the columns "
        "of the data set in dataset_info.json.",
    ),
)
