"""Every objective and every combination against loops over padded completions, values and gradients."""

import math
from dataclasses import replace

import pytest
import torch
from policy_rows import MAX_LENGTH, Rows, objective, packs, random_rows, terms_of, value_and_gradients
from torch.nn.utils.rnn import pad_sequence

from lcot_plugin.policy.metrics import MetricSums
from lcot_plugin.policy.objectives import PolicyTerms, entropy_threshold, policy_loss

TOLERANCE = {"atol": 1e-6, "rtol": 1e-6}
MICRO_BATCH_SIZE = 2

DEFAULT_AGGREGATION = {
    "grpo": "sequence",
    "bnpo": "micro_batch",
    "dr_grpo": "constant",
    "dapo": "token",
    "gspo": "sequence",
    "cispo": "token",
    "sapo": "sequence",
}


def plain_loss(rows: Rows, **keys) -> tuple[float, torch.Tensor, torch.Tensor]:
    """(loss, its gradients [n] with respect to log-probabilities and entropies) by loops over [S, T], in float64."""
    loss_type = keys.get("loss_type", "dapo")
    own_level = "sequence" if loss_type == "gspo" else "token"
    level = keys.get("importance_sampling_level", own_level)
    aggregation = keys.get("loss_aggregation", DEFAULT_AGGREGATION[loss_type])
    low = 1 - keys.get("epsilon", 0.2)
    high = 1 + keys.get("epsilon_high", keys.get("epsilon", 0.2))
    delta = keys.get("delta", math.inf)

    flat_logps = rows.logps.double().requires_grad_()
    flat_entropies = rows.entropies.double().requires_grad_()

    def padded(flat: torch.Tensor) -> torch.Tensor:
        return pad_sequence(flat.split(rows.lengths), batch_first=True, padding_value=7.0)

    logps, entropies = padded(flat_logps), padded(flat_entropies)
    old = logps.detach() if rows.old_logps is None else padded(rows.old_logps.double())
    ref, sampler = padded(rows.ref_logps.double()), padded(rows.sampler_logps.double())

    quantile = keys.get("top_entropy_quantile", 1.0)
    trained_entropies = [
        entropies[s, t].item() for s, length in enumerate(rows.lengths) if rows.trained[s] for t in range(length)
    ]
    # Linear interpolation between the two nearest ranks.
    place = (1 - quantile) * (len(trained_entropies) - 1)
    ranked = sorted(trained_entropies)
    below, above = ranked[math.floor(place)], ranked[math.ceil(place)]
    floor = below + (above - below) * (place - math.floor(place))

    sums = [torch.zeros((), dtype=torch.float64) for _ in rows.lengths]
    for s, length in enumerate(rows.lengths):
        if not rows.trained[s]:
            continue
        advantage = rows.advantages[s].double()
        mean_log_ratio = sum(logps[s, t] - old[s, t] for t in range(length)) / length
        gap = sum(old[s, t].item() - sampler[s, t].item() for t in range(length))
        has_fallen = sum((old[s, t] - logps[s, t]).item() for t in range(length)) > 0
        for t in range(length):
            ratio = torch.exp(mean_log_ratio if level == "sequence" else logps[s, t] - old[s, t])
            if loss_type == "cispo":
                term = -min(ratio.item(), high) * advantage * logps[s, t]
            elif loss_type == "sapo":
                key = "pos" if advantage > 0 else "neg"
                tau = keys.get(f"sapo_temperature_{key}", {"pos": 1.0, "neg": 1.05}[key])
                term = -advantage * (4 / tau) / (1 + torch.exp(-tau * (ratio - 1)))
            else:
                inside = min(max(ratio.item(), low), high)
                inside = ratio if inside == ratio.item() else torch.tensor(inside).double()
                bounded = ratio if ratio.item() < delta else torch.tensor(delta).double()
                one, other = bounded * advantage, inside * advantage
                term = -(one if one.item() <= other.item() else other)
            mode = keys.get("sampler_correction", "none")
            if mode != "none":
                cap = keys.get("sampler_correction_cap", 2.0)
                weight = math.exp(gap if "sequence" in mode else old[s, t].item() - sampler[s, t].item())
                if weight > cap:
                    weight = cap if "truncate" in mode else 0.0
                term = term * weight
            if quantile < 1 and entropies[s, t].item() < floor - 1e-7:
                term = term * 0
            log_r = ref[s, t] - logps[s, t]
            estimate = {"k1": -log_r, "k2": 0.5 * log_r**2, "k3": torch.exp(log_r) - 1 - log_r}
            if keys.get("kl_in", "loss") == "loss":
                term = term + keys.get("beta", 0.0) * estimate[keys.get("kl_estimator", "k3")]
            if has_fallen and advantage >= 0 and logps[s, t] < old[s, t]:
                term = term + keys.get("llds_coef", 0.0) * (old[s, t] - logps[s, t])
            term = term - keys.get("entropy_coef", 0.0) * entropies[s, t]
            sums[s] = sums[s] + term

    num = len(rows.lengths)
    tokens = [length if kept else 0 for length, kept in zip(rows.lengths, rows.trained, strict=True)]
    if aggregation == "sequence":
        loss = sum(total / length for total, length in zip(sums, rows.lengths, strict=True)) / num
    elif aggregation == "constant":
        loss = sum(sums) / (num * MAX_LENGTH)
    elif aggregation == "token":
        loss = sum(sums) / sum(tokens)
    else:
        batches = [slice(start, start + MICRO_BATCH_SIZE) for start in range(0, num, MICRO_BATCH_SIZE)]
        loss = sum(sum(sums[batch]) / max(sum(tokens[batch]), 1) for batch in batches) / len(batches)
    loss.backward()
    gradients = (torch.zeros_like(leaf) if leaf.grad is None else leaf.grad for leaf in (flat_logps, flat_entropies))
    return loss.item(), *gradients


ALL_ON = {
    "beta": 0.04,
    "entropy_coef": 0.01,
    "llds_coef": 0.1,
    "top_entropy_quantile": 0.5,
    "epsilon_high": 0.28,
    "sampler_correction": "token_truncate",
}
CASES = [
    *({"loss_type": name} for name in DEFAULT_AGGREGATION),
    *({"loss_type": name, **ALL_ON} for name in DEFAULT_AGGREGATION),
    *({"loss_type": "grpo", "loss_aggregation": value} for value in ("sequence", "token", "constant", "micro_batch")),
    *({"loss_type": "cispo", "loss_aggregation": value} for value in ("sequence", "constant", "micro_batch")),
    *({"beta": 0.1, "kl_estimator": value} for value in ("k1", "k2", "k3")),
    {"beta": 0.1, "kl_in": "reward"},
    *(
        {"sampler_correction": f"{level}_{treatment}", "sampler_correction_cap": cap}
        for level in ("token", "sequence")
        for treatment in ("truncate", "mask")
        for cap in (1.0, 1.5)
    ),
    {"epsilon": 0.1, "epsilon_high": 0.28, "delta": 1.5},
    {"importance_sampling_level": "sequence"},
    {"importance_sampling_level": "sequence", "delta": 1.4, "loss_aggregation": "sequence"},
    {"loss_type": "gspo", "epsilon": 3e-4, "epsilon_high": 4e-4},
    {"loss_type": "cispo", "epsilon_high": 1.0},
    {"loss_type": "sapo", "sapo_temperature_pos": 0.5, "sapo_temperature_neg": 3.0},
    {"entropy_coef": 0.02},
    {"llds_coef": 0.3},
    {"top_entropy_quantile": 0.2},
]


def named(keys: dict) -> str:
    return "-".join(f"{key}={value}" for key, value in keys.items()) if len(keys) < 5 else f"{keys['loss_type']}-all"


def some_rows(seed: int, with_old: bool) -> Rows:
    rows = random_rows(seed, with_old=with_old)
    rows.trained[seed % 3] = False
    return rows


@pytest.mark.parametrize("with_old", [True, False], ids=["off_policy", "on_policy"])
@pytest.mark.parametrize("keys", CASES, ids=named)
def test_values_and_gradients(keys: dict, with_old: bool):
    made = objective(**keys)
    for seed in range(2):
        rows = some_rows(seed, with_old)
        terms = packs(made, rows, micro_batch_size=MICRO_BATCH_SIZE)[0]
        value, gradient, _ = value_and_gradients(made, terms)
        plain_value, plain_gradient, plain_entropy_gradient = plain_loss(rows, **keys)
        kept = torch.tensor(rows.trained).repeat_interleave(torch.tensor(rows.lengths))
        assert plain_gradient[~kept].eq(0).all()
        assert plain_gradient[kept].abs().max() > 1e-3
        torch.testing.assert_close(value.double(), torch.tensor(plain_value).double(), **TOLERANCE)
        torch.testing.assert_close(gradient.double(), plain_gradient[kept], **TOLERANCE)
        if made.entropy_gradient:
            torch.testing.assert_close(terms.entropies.grad.double(), plain_entropy_gradient[kept], **TOLERANCE)
        else:
            assert plain_entropy_gradient.eq(0).all()


# (right, wrong): the plain reference at a wrong setting must differ, or the test above shows nothing.
WRONG = [
    ({"loss_type": "dapo"}, {"loss_type": "grpo"}),
    ({"loss_type": "dapo"}, {"loss_type": "dr_grpo"}),
    ({"loss_type": "dapo"}, {"loss_type": "bnpo"}),
    ({"loss_type": "grpo"}, {"loss_type": "gspo"}),
    ({"loss_type": "dapo"}, {"loss_type": "cispo"}),
    ({"loss_type": "grpo"}, {"loss_type": "sapo"}),
    ({"epsilon": 0.2}, {"epsilon": 0.1}),
    ({"epsilon_high": 0.28}, {"epsilon_high": 0.2}),
    ({"delta": 1.5}, {}),
    ({"importance_sampling_level": "sequence"}, {}),
    ({"loss_type": "cispo"}, {"loss_type": "cispo", "epsilon_high": 0.5}),
    ({"loss_type": "sapo"}, {"loss_type": "sapo", "sapo_temperature_neg": 1.0}),
    ({"loss_type": "sapo"}, {"loss_type": "sapo", "sapo_temperature_pos": 1.05}),
    ({"beta": 0.1}, {"beta": 0.1, "kl_estimator": "k2"}),
    ({"beta": 0.1}, {"beta": 0.1, "kl_estimator": "k1"}),
    ({"beta": 0.1}, {"beta": 0.1, "kl_in": "reward"}),
    ({"llds_coef": 0.1}, {}),
    ({"entropy_coef": 0.1}, {}),
    ({"top_entropy_quantile": 0.5}, {"top_entropy_quantile": 0.8}),
    ({"sampler_correction": "token_truncate"}, {}),
    ({"sampler_correction": "token_truncate"}, {"sampler_correction": "token_mask"}),
    ({"sampler_correction": "token_truncate"}, {"sampler_correction": "sequence_truncate"}),
    ({"sampler_correction": "sequence_mask"}, {"sampler_correction": "sequence_truncate"}),
    ({"sampler_correction": "token_mask"}, {"sampler_correction": "token_mask", "sampler_correction_cap": 1.5}),
]


@pytest.mark.parametrize(("right", "wrong"), WRONG, ids=str)
def test_another_setting_differs(right: dict, wrong: dict):
    made, rows = objective(**right), random_rows(5)
    value, gradient, _ = value_and_gradients(made, terms_of(made, rows))
    wrong_value, wrong_gradient, _ = plain_loss(rows, **wrong)
    if right.keys() != {"entropy_coef"}:  # whose gradient goes through the entropies
        assert not torch.allclose(gradient.double(), wrong_gradient, atol=1e-4)
    else:
        assert value.item() != pytest.approx(wrong_value, abs=1e-3)


def logged(*parts: dict) -> dict[str, float]:
    """The statistics of these parts together, as the trainer logs them."""
    sums = MetricSums()
    for statistics in parts:
        sums.add_statistics(statistics)
    return sums.pop_averages()


@pytest.mark.parametrize("keys", CASES, ids=named)
def test_packs_add_up_to_the_whole(keys: dict):
    made, rows = objective(**keys), some_rows(0, with_old=True)
    floor = torch.tensor(0.6)
    whole, whole_gradient, whole_statistics = value_and_gradients(made, terms_of(made, rows), entropy_floor=floor)
    results = [value_and_gradients(made, pack, entropy_floor=floor) for pack in packs(made, rows, cuts=(2, 5))]
    torch.testing.assert_close(sum(value for value, _, _ in results), whole, **TOLERANCE)
    torch.testing.assert_close(torch.cat([gradient for _, gradient, _ in results]), whole_gradient, **TOLERANCE)
    assert logged(*(statistics for _, _, statistics in results)) == pytest.approx(logged(whole_statistics), abs=1e-5)


def test_worked_example_by_hand():
    """Two completions, three tokens; ratios 1.5 (clipped to 1.2), 0.5 and 1.1; advantages 1 and -1."""
    # Tokens: -min(1.5, 1.2) = -1.2; -min(0.5, 0.8) = -0.5; -min(-1.1, -1.1) = 1.1.
    expected = {
        "grpo": ((-1.2 - 0.5) / 2 + 1.1) / 2,
        "dr_grpo": (-1.2 - 0.5 + 1.1) / (2 * MAX_LENGTH),
        "dapo": (-1.2 - 0.5 + 1.1) / 3,
        "bnpo": ((-1.2 - 0.5) / 2 + 1.1) / 2,
    }
    for loss_type, value in expected.items():
        made = objective(loss_type=loss_type)
        lengths = [2, 1]
        weights = torch.tensor(made.token_weights(lengths, [True, True], micro_batch_size=1))
        terms = PolicyTerms(
            logps=torch.tensor([1.5, 0.5, 1.1]).log().requires_grad_(),
            old_logps=torch.zeros(3),
            advantages=torch.tensor([1.0, 1.0, -1.0]),
            weights=weights.repeat_interleave(torch.tensor(lengths)),
            lengths=lengths,
        )
        loss, gradient, statistics = value_and_gradients(made, terms)
        assert loss.item() == pytest.approx(value, abs=1e-6)
        assert gradient[0] == 0.0, "a clipped token passes no gradient"
        assert gradient[1] < 0 < gradient[2]
        averages = logged(statistics)
        assert averages["ratio/max"] == pytest.approx(1.5)
        assert averages["inverse_ratio/max"] == pytest.approx(2.0)
        assert averages["ratio"] == pytest.approx(3.1 / 3)
        assert averages["clip_high"] == averages["clip_region"] == pytest.approx(1 / 3)
        assert averages["clip_low"] == 0.0


def test_an_idle_pack_gives_zero_and_a_gradient_and_no_statistics():
    made = objective(**{**ALL_ON, "loss_type": "grpo"})
    terms = terms_of(made, random_rows(0))
    overflowing = replace(
        terms,
        weights=torch.zeros_like(terms.weights),
        old_logps=torch.full_like(terms.logps, -1e4, requires_grad=False),
    )
    for pack in (overflowing, replace(overflowing, idle=True)):
        pack.logps.grad = None
        loss, gradient, statistics = value_and_gradients(made, pack)
        assert loss == 0.0
        assert gradient.eq(0.0).all()
        assert statistics == {}


def test_what_is_known_to_be_idle_is_not_asked_of_the_device():
    made = objective()
    terms = replace(terms_of(made, random_rows(0)), idle=False)
    nothing = replace(terms, weights=torch.zeros_like(terms.weights))
    assert policy_loss(made, nothing)[1], "idle=False is believed"


def test_statistics_of_a_sequence_ratio_count_sequences():
    made, rows = objective(loss_type="gspo"), random_rows(0)
    statistics = policy_loss(made, terms_of(made, rows))[1]
    assert statistics["clip_low_count"] == statistics["ratio_count"] == len(rows.lengths)
    assert statistics["entropy_count"] == sum(rows.lengths)


def test_statistics_of_the_added_terms():
    made, rows = objective(**ALL_ON, loss_type="sapo"), random_rows(3)
    averages = logged(policy_loss(made, terms_of(made, rows))[1])
    log_r = rows.ref_logps - rows.logps
    assert averages["kl"] == pytest.approx((log_r.exp() - 1 - log_r).mean().item(), abs=1e-6)
    assert averages["entropy"] == pytest.approx(rows.entropies.mean().item(), abs=1e-6)
    weights = (rows.old_logps - rows.sampler_logps).exp()
    assert averages["sampler_weight"] == pytest.approx(weights.mean().item(), abs=1e-5)
    assert averages["sampler_weight/max"] == pytest.approx(weights.max().item(), abs=1e-5)
    assert 0 < averages["sampler_weight_capped"] == pytest.approx((weights > 2.0).float().mean().item())
    assert averages["llds"] > 0
    assert not any(name.startswith("clip") for name in averages), "sapo clips nothing"


def test_cispo_reports_bounded_weights_of_either_sign():
    made, rows = objective(loss_type="cispo"), random_rows(0)
    ratio = (rows.logps - rows.old_logps).exp()
    averages = logged(policy_loss(made, terms_of(made, rows))[1])
    assert averages["clip_high"] == pytest.approx((ratio > 1.2).float().mean().item())
    assert "clip_low" not in averages


@pytest.mark.parametrize("loss_type", DEFAULT_AGGREGATION)
def test_on_policy_the_gradient_is_the_policy_gradient(loss_type: str):
    """-A log p: what all objectives agree on where the policy has not moved."""
    made, rows = objective(loss_type=loss_type, loss_aggregation="token"), random_rows(0, with_old=False)
    gradient = value_and_gradients(made, terms_of(made, rows))[1]
    lengths = torch.tensor(rows.lengths)
    expected = -rows.advantages.repeat_interleave(lengths) / lengths.sum()
    torch.testing.assert_close(gradient, expected, **TOLERANCE)


@pytest.mark.parametrize("keys", CASES, ids=named)
def test_what_skips_zero_advantages_loses_nothing_by_it(keys: dict):
    made, rows = objective(**keys), random_rows(0)
    gradient = value_and_gradients(made, terms_of(made, rows))[1]
    without = gradient[-rows.lengths[-1] :]
    if made.skips_zero_advantages:
        assert without.eq(0.0).all()
    adds = {"entropy_coef", "llds_coef", "top_entropy_quantile"} & keys.keys()
    assert made.skips_zero_advantages is not bool(adds or (keys.get("beta") and keys.get("kl_in") != "reward"))


def test_the_divergence_keeps_zero_advantages_alive():
    made, rows = objective(beta=0.1), random_rows(0)
    gradient = value_and_gradients(made, terms_of(made, rows))[1]
    assert gradient[-rows.lengths[-1] :].ne(0.0).all()


def test_what_is_needed_follows_from_the_keys():
    assert not objective().needs_reference
    assert objective(beta=0.1).needs_reference
    assert objective(beta=0.1, kl_in="reward").needs_reference
    assert objective(beta=0.1, kl_in="reward").beta_in_reward == 0.1
    assert objective(entropy_coef=0.1).entropy_gradient and not objective(beta=0.1).entropy_gradient
    assert objective(top_entropy_quantile=0.3).top_entropy_quantile == 0.3


def test_entropy_threshold_keeps_the_asked_share():
    entropies = torch.arange(100.0)
    kept = entropies >= entropy_threshold(entropies, 0.2)
    assert kept.sum() == 20
    assert kept[80:].all()
    assert entropy_threshold(entropies[:0], 0.2) == torch.inf


def test_entropy_floor_silences_the_policy_term_but_not_the_divergence():
    rows = random_rows(0, lengths=[2, 2], with_old=False)
    rows.advantages[:] = torch.tensor([1.0, -1.0])
    rows.entropies[:] = torch.tensor([0.1, 2.0, 3.0, 0.2])

    def silenced(keys: dict, **kwargs) -> list[bool]:
        made = objective(top_entropy_quantile=0.5, **keys)
        return value_and_gradients(made, terms_of(made, rows), **kwargs)[1].eq(0.0).tolist()

    floor = torch.tensor(1.0)
    assert silenced({}, entropy_floor=floor) == silenced({}) == [True, False, False, True]
    assert silenced({"beta": 0.1}, entropy_floor=floor) == [False] * 4
