import warnings
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from loaded_twins import TEXT, LoadedTwin, load_twin, written

from lcot_plugin.policy.head import token_log_probs
from lcot_plugin.policy.reference import InitialWeights, ReferencePolicy

TOKENS = [5, 17, 300, 41]


@pytest.fixture
def loaded(twin):
    return load_twin(twin("qwen2_5_vl"))


@dataclass
class Policy:
    """A model with what it says of one completion."""

    loaded: LoadedTwin
    model: Any

    def log_probs(self, model=None):
        model = model or self.model
        model_inputs, targets = self.loaded.rows([written(self.loaded.prompts[TEXT], TOKENS)], 1.0)
        return token_log_probs(model, model, targets, model_inputs)[0]

    def train_a_step(self):
        """Moves every trainable tensor along its gradient."""
        optimizer = torch.optim.SGD([p for p in self.model.parameters() if p.requires_grad], lr=1.0)
        self.log_probs().sum().backward()
        # A step of length 1, whatever the gradient's.
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        optimizer.step()
        self.model.zero_grad()

    @torch.no_grad()
    def reference(self, reference):
        with reference.active() as separate_model:
            return self.log_probs(separate_model)


def with_adapter(loaded, **settings):
    """A LoRA policy: a new adapter, which changes nothing yet."""
    from peft import LoraConfig, get_peft_model

    with warnings.catch_warnings(), torch.random.fork_rng():
        warnings.simplefilter("ignore")
        torch.manual_seed(0)
        config = LoraConfig(r=4, target_modules=["q_proj", "v_proj"], **settings)
        return Policy(loaded, get_peft_model(loaded.fresh_model(), config).eval())


def test_initial_weights_come_back_exactly_and_go_again(loaded):
    policy = Policy(loaded, loaded.fresh_model())
    first = {name: p.detach().clone() for name, p in policy.model.named_parameters()}
    initial = InitialWeights(policy.model)
    policy.train_a_step()
    trained = {name: p.detach().clone() for name, p in policy.model.named_parameters()}
    assert not torch.equal(trained["lm_head.weight"], first["lm_head.weight"])
    storages = {name: p.data_ptr() for name, p in policy.model.named_parameters()}
    with torch.no_grad(), initial.restored():
        for name, parameter in policy.model.named_parameters():
            assert torch.equal(parameter, first[name]), name
    for name, parameter in policy.model.named_parameters():
        assert torch.equal(parameter, trained[name]), name
        assert parameter.data_ptr() == storages[name], "an optimizer or DDP bucket may point there"


def test_current_weights_are_back_after_an_error(loaded):
    policy = Policy(loaded, loaded.fresh_model())
    initial = InitialWeights(policy.model)
    policy.train_a_step()
    trained = policy.model.lm_head.weight.detach().clone()
    with pytest.raises(RuntimeError, match="out of memory"), torch.no_grad(), initial.restored():
        raise RuntimeError("out of memory")
    assert torch.equal(policy.model.lm_head.weight, trained)


def test_gradients_flow_to_the_current_weights_afterwards(loaded):
    """Two steps with a look at the reference between them are the same two steps without."""
    looking, plain = Policy(loaded, loaded.fresh_model()), Policy(loaded, loaded.fresh_model())
    initial = InitialWeights(looking.model)
    for _ in range(2):
        looking.train_a_step()
        plain.train_a_step()
        with torch.no_grad(), initial.restored():
            looking.log_probs()
    for (name, mine), theirs in zip(looking.model.named_parameters(), plain.model.parameters(), strict=True):
        assert torch.equal(mine, theirs), name


def test_the_reference_of_a_new_adapter_is_the_base_model(loaded):
    policy = with_adapter(loaded)
    reference = ReferencePolicy(policy.model, separate_model=None)
    policy.train_a_step()
    policy.train_a_step()
    now = policy.log_probs().detach()
    base = Policy(loaded, loaded.model).log_probs().detach()
    assert torch.equal(policy.reference(reference), base)
    assert (now - base).abs().max() > 0.05
    assert torch.equal(policy.log_probs().detach(), now)


@pytest.mark.parametrize(
    "settings",
    [
        pytest.param({"init_lora_weights": False}, id="continued"),
        pytest.param({"init_lora_weights": "pissa"}, id="pissa"),
        pytest.param({"init_lora_weights": False, "use_dora": True}, id="dora"),
    ],
)
def test_an_adapter_is_put_back_to_where_this_stage_began(loaded, settings):
    """Switching it off would give the model before SFT, or PiSSA's base weights without their principal part."""
    policy = with_adapter(loaded, **settings)
    start = policy.log_probs().detach()
    reference = ReferencePolicy(policy.model, separate_model=None)
    policy.train_a_step()
    now = policy.log_probs().detach()
    assert torch.equal(policy.reference(reference), start)
    with torch.no_grad(), policy.model.disable_adapter():
        assert (policy.log_probs() - start).abs().max() > 0.05
    assert (now - start).abs().max() > 0.05
    assert torch.equal(policy.log_probs().detach(), now)
    policy.train_a_step()
    assert torch.equal(policy.reference(reference), start)


def test_initial_weights_follow_an_engine_that_casts():
    """DeepSpeed casts the parameters after the copies were made."""
    layer = torch.nn.Linear(3, 2)
    first = layer.weight.detach().to(torch.bfloat16)
    initial = InitialWeights(layer)
    layer.to(torch.bfloat16)
    with torch.no_grad():
        layer.weight.add_(1.0)
        with initial.restored():
            assert torch.equal(layer.weight, first) and layer.weight.dtype == torch.bfloat16
            layer(torch.ones(1, 3, dtype=torch.bfloat16))


def test_a_separate_model_answers(loaded):
    policy = Policy(loaded, loaded.fresh_model())
    reference = ReferencePolicy(policy.model, separate_model=loaded.model)
    start = policy.log_probs().detach()
    policy.train_a_step()
    with reference.active() as answers:
        assert answers is loaded.model
    assert torch.equal(policy.reference(reference), start)
    assert not torch.equal(policy.log_probs().detach(), start)


@pytest.mark.parametrize("alpha", [1.0, 0.25])
def test_the_reference_moves_to_the_policy(alpha):
    """Of adapters and of a separate model; what a checkpoint holds puts it back."""
    policy, separate = torch.nn.Linear(2, 1, bias=False), torch.nn.Linear(2, 1, bias=False)
    with torch.no_grad():
        policy.weight.fill_(2.0), separate.weight.fill_(2.0)
        references = [ReferencePolicy(policy, None), ReferencePolicy(policy, separate)]
        policy.weight.fill_(6.0)
    for reference in references:
        assert not reference.moved
        reference.move(alpha)
        assert reference.moved
        with torch.no_grad(), reference.active() as model:
            assert (model or policy).weight.tolist() == [[2.0 + 4.0 * alpha] * 2]
        assert policy.weight.tolist() == [[6.0, 6.0]]
        state = {name: tensor.clone() for name, tensor in reference.state_dict().items()}
        reference.move(1.0)
        reference.load_state_dict(state)
        with torch.no_grad(), reference.active() as model:
            assert (model or policy).weight.tolist() == [[2.0 + 4.0 * alpha] * 2]
