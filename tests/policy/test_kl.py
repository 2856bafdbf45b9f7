import pytest
import torch

from lcot_plugin.policy.kl import completion_kl, kl_terms

POLICY = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)
REFERENCE = torch.tensor([0.2, 0.3, 0.5], dtype=torch.float64)
DIVERGENCE = (POLICY * (POLICY / REFERENCE).log()).sum()


def expectation(estimator: str) -> torch.Tensor:
    """Over the policy's own draws."""
    return (POLICY * kl_terms(POLICY.log(), REFERENCE.log(), estimator)).sum()


def test_by_hand():
    logps, ref_logps = torch.tensor([0.5, 0.25]).log(), torch.tensor([0.25, 0.5]).log()
    log2 = torch.tensor(2.0).log().item()
    assert kl_terms(logps, ref_logps, "k1").tolist() == pytest.approx([log2, -log2])
    assert kl_terms(logps, ref_logps, "k2").tolist() == pytest.approx([log2**2 / 2] * 2)
    assert kl_terms(logps, ref_logps, "k3").tolist() == pytest.approx([0.5 - 1 + log2, 2 - 1 - log2])


def test_k1_and_k3_are_unbiased_and_k2_is_not():
    torch.testing.assert_close(expectation("k1"), DIVERGENCE)
    torch.testing.assert_close(expectation("k3"), DIVERGENCE)
    assert abs(expectation("k2") - DIVERGENCE) > 1e-3


def test_only_k1_can_be_negative():
    lowest = {name: kl_terms(POLICY.log(), REFERENCE.log(), name).min().item() for name in ("k1", "k2", "k3")}
    assert lowest["k1"] < 0 <= min(lowest["k2"], lowest["k3"])


def test_gradients_in_the_loss():
    """Expected over the policy's draws: 0 for k1, that of KL(policy || reference) for k2, of the reverse for k3."""
    logits = POLICY.log().requires_grad_()

    def gradient(loss: torch.Tensor) -> torch.Tensor:
        return torch.autograd.grad(loss, logits)[0]

    def in_the_loss(estimator: str) -> torch.Tensor:
        # The draws are data: their frequencies carry no gradient.
        return gradient((POLICY * kl_terms(logits.log_softmax(0), REFERENCE.log(), estimator)).sum())

    policy_log_probs = logits.log_softmax(0)
    forward = gradient((policy_log_probs.exp() * (policy_log_probs - REFERENCE.log())).sum())
    reverse = gradient((REFERENCE * (REFERENCE.log() - logits.log_softmax(0))).sum())
    torch.testing.assert_close(in_the_loss("k1"), torch.zeros(3, dtype=torch.float64))
    torch.testing.assert_close(in_the_loss("k2"), forward)
    torch.testing.assert_close(in_the_loss("k3"), reverse)
    assert not torch.allclose(forward, reverse, atol=1e-2)


def test_in_the_reward_only_k1_gives_the_gradient_of_the_divergence():
    logits = POLICY.log().requires_grad_()
    divergence = (logits.softmax(0) * (logits.log_softmax(0) - REFERENCE.log())).sum()
    (expected,) = torch.autograd.grad(divergence, logits)

    def as_a_reward(estimator: str) -> torch.Tensor:
        value = kl_terms(POLICY.log(), REFERENCE.log(), estimator)
        return torch.autograd.grad((POLICY * value * logits.log_softmax(0)).sum(), logits)[0]

    torch.testing.assert_close(as_a_reward("k1"), expected)
    assert not torch.allclose(as_a_reward("k3"), expected, atol=1e-2)


def test_completion_kl_adds_up_each_completions_tokens():
    logps, ref_logps = -torch.rand(5), -torch.rand(5)
    for estimator in ("k1", "k2", "k3"):
        terms = kl_terms(logps, ref_logps, estimator)
        summed = completion_kl(logps, ref_logps, [2, 3], estimator)
        torch.testing.assert_close(summed, torch.stack([terms[:2].sum(), terms[2:].sum()]))
    assert completion_kl(logps[:0], ref_logps[:0], [], "k1").shape == (0,)
