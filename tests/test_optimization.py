"""What follows the gradients: groups, decay, Muon, master weights, each step's learning rate."""

import itertools
from typing import get_args

import pytest
import torch

from gptrs.config import GPTConfig, Pos
from gptrs.errors import CheckpointError
from gptrs.model.gpt import GPTModel
from gptrs.model.lora import add_lora
from gptrs.training.config import TrainingConfig
from gptrs.training.optimization import MasterWeights, Optimizers, learning_rate_at


def small(**changes):
    torch.manual_seed(0)
    shape = {"vocab_size": 9, "context_length": 6, "emb_dim": 8, "n_heads": 2, "n_layers": 2}
    return GPTModel(GPTConfig(**shape | {"drop_rate": 0.0} | changes))


def optimizers(model, **changes):
    return Optimizers(model, TrainingConfig(weight_decay=0.3, **changes), 1e-2)


def rate(step, num_steps, config):
    return learning_rate_at(
        step, num_steps, config, peak=config.learning_rate, last=config.final_learning_rate
    )


def set_gradients(model):
    for number, parameter in enumerate(model.parameters()):
        torch.manual_seed(number)
        parameter.grad = torch.randn_like(parameter)


def test_the_learning_rate_rises_in_a_line_stays_and_falls_along_half_a_cosine():
    config = TrainingConfig(
        learning_rate=1.0, final_learning_rate=0.2, warmup_steps=10, decay_fraction=0.6
    )
    rates = [rate(step, 101, config) for step in range(101)]
    assert rates[:10] == pytest.approx([0.1 * (step + 1) for step in range(10)])
    assert set(rates[10:41]) == {1.0}
    assert rates[70] == pytest.approx(0.6)
    assert rates[100] == pytest.approx(0.2)
    assert all(a > b for a, b in itertools.pairwise(rates[40:]))
    assert rate(50, None, config) == 1.0


def test_the_cosine_schedule_is_torchs_behind_the_warm_up():
    config = TrainingConfig(
        learning_rate=1.0, final_learning_rate=0.1, warmup_steps=5, schedule="cosine"
    )
    weight = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([weight], lr=1.0)
    theirs = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=95, eta_min=0.1)
    for step in range(5, 101):
        assert rate(step, 101, config) == pytest.approx(theirs.get_last_lr()[0])
        optimizer.step()
        theirs.step()


@pytest.mark.parametrize("schedule", ["wsd", "cosine"])
@pytest.mark.parametrize("num_steps", [1, 2, 5, 20, 21])
def test_a_run_hardly_longer_than_its_warm_up_has_a_learning_rate_too(num_steps, schedule):
    config = TrainingConfig(
        warmup_steps=20, learning_rate=1e-3, final_learning_rate=1e-4, schedule=schedule
    )
    rates = [rate(step, num_steps, config) for step in range(num_steps)]
    assert all(0 < each <= config.learning_rate for each in rates)


@pytest.mark.parametrize("pos", get_args(Pos))
def test_tables_of_positions_and_distances_decay_and_vectors_of_heads_do_not(pos):
    model = small(pos=pos)
    found = optimizers(model).weight_decays()
    assert found.keys() == dict(model.named_parameters()).keys()
    of_heads = (".positions.u", ".positions.v")
    for name, parameter in model.named_parameters():
        is_vector = parameter.ndim == 1 or name.endswith(of_heads)
        assert found[name] == (0.0 if is_vector else 0.3), name
    assert sum(name.endswith(of_heads) for name in found) == (4 if pos == "transformer_xl" else 0)


@pytest.mark.parametrize("tied", [True, False])
def test_what_else_decays_can_be_chosen(tied):
    model = small(tie_embeddings=tied, init="gpt2")
    vectors = {name for name, p in model.named_parameters() if p.ndim == 1}
    tables = {"tok_emb.weight", "pos_emb.weight"}
    for changes, undecayed in (
        ({}, vectors),
        ({"decay_1d": True}, set()),
        ({"decay_embeddings": False}, vectors | tables),
    ):
        decays = optimizers(model, **changes).weight_decays()
        assert {name for name, decay in decays.items() if decay == 0} == undecayed


def test_muon_moves_the_blocks_matrices_as_torchs_does_and_adamw_the_rest():
    model, other = small(), small()
    for one in (model, other):
        set_gradients(one)
    ours = optimizers(model, optimizer="muon")
    ours.step(1e-2)
    matrices = [p for p in other.trf_blocks.parameters() if p.ndim == 2]
    is_matrix = {id(p) for p in matrices}
    rest = [p for p in other.parameters() if id(p) not in is_matrix]
    torch.optim.Muon(matrices, lr=1e-2, weight_decay=0.3, adjust_lr_fn="match_rms_adamw").step()
    torch.optim.AdamW(
        [
            {"params": [p for p in rest if p.ndim == 2], "weight_decay": 0.3},
            {"params": [p for p in rest if p.ndim == 1], "weight_decay": 0.0},
        ],
        lr=1e-2,
        betas=(0.9, 0.95),
    ).step()
    for (name, mine), theirs in zip(model.named_parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs, msg=name)
    assert {name.partition(".")[0] for name in ours.state()} == {
        "momentum_buffer", "step", "exp_avg", "exp_avg_sq",
    }  # fmt: skip


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_an_optimizer_with_anothers_state_goes_on_to_the_bit(name):
    model, other = small(), small()
    first, second = (optimizers(one, optimizer=name) for one in (model, other))
    for _ in range(3):
        set_gradients(model)
        first.step(1e-2)
    other.load_state_dict(model.state_dict())
    second.load_state({key: tensor.clone() for key, tensor in first.state().items()})
    for one, its in ((model, first), (other, second)):
        set_gradients(one)
        its.step(1e-2)
    for mine, theirs in zip(model.parameters(), other.parameters(), strict=True):
        assert torch.equal(mine, theirs)


def test_the_state_of_other_weights_or_of_another_optimizer_is_refused():
    model = small()
    adamw, muon = optimizers(model), optimizers(model, optimizer="muon")
    set_gradients(model)
    adamw.step(1e-2)
    with pytest.raises(CheckpointError, match="of another optimizer"):
        muon.load_state(adamw.state())
    with pytest.raises(CheckpointError, match="of other weights"):
        optimizers(small(n_layers=3)).load_state(adamw.state())


def test_only_adapters_learn_where_a_model_has_them():
    model = small()
    add_lora(model, 2, 4)
    assert all(".lora_" in name for name in optimizers(model).weight_decays())


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
@pytest.mark.parametrize("share", [0.5, 2.0])
def test_a_clipped_step_is_the_step_after_torchs_clipping(optimizer, share):
    model, other = small(), small()
    ours, after_torchs = (optimizers(each, optimizer=optimizer) for each in (model, other))
    for _ in range(2):
        for one in (model, other):
            set_gradients(one)
        total = torch.nn.utils.get_total_norm([p.grad for p in model.parameters()]).item()
        ours.step(1e-2, total, total * share)
        torch.nn.utils.clip_grad_norm_(other.parameters(), total * share)
        after_torchs.step(1e-2)
    states = ours.state(), after_torchs.state()
    for name, mine in states[0].items():
        torch.testing.assert_close(mine, states[1][name])
    for mine, theirs in zip(model.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs)


def test_master_weights_add_gradients_in_float32_and_are_what_stays():
    model = small()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    weights = MasterWeights(model)
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    ids = torch.arange(6)[None]
    parts = []
    for _ in range(3):
        model(ids).float().square().mean().backward()
        parts.append(weights.masters["tok_emb.weight"].grad.clone())
    assert all(p.grad is None for p in model.parameters())
    torch.testing.assert_close(parts[2], 3 * parts[0], rtol=1e-6, atol=1e-8)
    with torch.no_grad():
        for master in weights.masters.values():
            master += 1e-4
    weights.publish()
    name = "trf_blocks.0.ff.layers.0.weight"
    rounded = model.get_parameter(name)
    assert torch.equal(rounded, weights.masters[name].bfloat16())
    weights.give_back()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.detach(), before[name] + 1e-4, rtol=0, atol=1e-8)
