"""Engines: whatever the loop asks of them, they answer what calling the model would."""

import gc
import random
import weakref
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import transformers
from torch import nn
from torch.nn.utils import parametrize

from gptrs import GPTModel, memory
from gptrs.engines import choice as engines
from gptrs.engines import fixed_steps
from gptrs.engines.decode_weights import DecodeWeights
from gptrs.engines.engine import PlainEngine, reduce_to_candidates
from gptrs.engines.fused_forward import weights_first
from gptrs.engines.torch_engine import TorchEngine
from gptrs.engines.transformers_engine import TransformersEngine
from gptrs.errors import ConfigError, GenerationError
from gptrs.model.positions import T5Bias

# What Rust computes has its own tests.
make_engine = partial(engines.make_engine, engine="torch")

VOCAB, CONTEXT = 97, 24
SEEDS = range(20)
FUSED = ["sinusoidal", "rope", "alibi", "t5", "none"]
BY_LAYER = ["relative_key", "relative_key_query", "transformer_xl"]


def make_model(seed=1, **changes):
    torch.manual_seed(seed)
    config = {
        "vocab_size": VOCAB,
        "context_length": CONTEXT,
        "emb_dim": 32,
        "n_heads": 2,
        "n_layers": 2,
        "drop_rate": 0.1,
        "qkv_bias": True,
    }
    model = GPTModel(config | changes).eval()
    if model.cfg.pos != "learned":
        make_places_matter(model)
    return model


def make_places_matter(model):
    """As initialised, a model hardly tells places apart that it would have to learn."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "positions" in name or "pos_bias" in name:
                parameter.normal_(std=0.7)


def by_segments(model, ids):
    """The logits of a text, [T, V], with the segment memory."""
    memory = model.new_cache(1)
    segments = torch.tensor([ids]).split(model.cfg.context_length, dim=1)
    return torch.cat([model(segment, cache=memory) for segment in segments], dim=1)[0]


def write(engine, tokens, starts):
    """What the loop does before a call."""
    engine.tokens[: len(tokens)] = torch.tensor(tokens)
    engine.starts[: len(starts)] = torch.tensor(starts)


def read(engine, prompts, wanted=None):
    """The logits after prompts, one a slot."""
    write(engine, [token for prompt in prompts for token in prompt], [0] * len(prompts))
    counts = list(map(len, prompts))
    return engine.extend(list(range(len(prompts))), counts, wanted or [1] * len(prompts))


def greedy(engine, prompts, num_new):
    """New tokens of each prompt, as the loop would have them."""
    answer = read(engine, prompts)
    new = [answer.argmax(-1).tolist()]
    for i in range(num_new - 1):
        write(engine, new[-1], [len(prompt) + i for prompt in prompts])
        new.append(engine.step(len(prompts)).argmax(-1).tolist())
    return [list(row) for row in zip(*new, strict=True)]


def greedy_without_engine(model, prompts, num_new):
    results = []
    for prompt in prompts:
        ids = list(prompt)
        for _ in range(num_new):
            ids.append(int(model(torch.tensor([ids]))[0, -1].argmax()))
        results.append(ids[len(prompt) :])
    return results


def make_prompts(seed, count=5, longest=9):
    rng = random.Random(seed)
    return [
        [rng.randrange(VOCAB) for _ in range(rng.choice([1, 3, 3, longest]))] for _ in range(count)
    ]


def random_calls(engine, logits_of, seed, num_calls=25):
    """Any calls that a loop could make, each beside the logits of the slots' whole texts."""
    rng = random.Random(seed)
    held = [[] for _ in range(engine.slots)]
    for _ in range(num_calls):
        if rng.random() < 0.3 and engine.slots > 1:
            source, target = rng.sample(range(engine.slots), 2)
            length = rng.randint(0, len(held[source]))
            engine.copy([(source, target, length)])
            held[target] = held[source][:length]
        num_slots = rng.randint(1, engine.slots)
        is_step = rng.random() < 0.4
        slots = sorted(rng.sample(range(engine.slots), num_slots))
        slots = list(range(num_slots)) if is_step else slots
        starts, counts, wanted, new = [], [], [], []
        for slot in slots:
            start = rng.choice([len(held[slot]), rng.randint(0, len(held[slot]))])
            start = min(start, engine.context_length - 1)
            count = 1 if is_step else rng.choice([1, 1, rng.randint(1, CONTEXT - start)])
            starts.append(start)
            counts.append(count)
            wanted.append(1 if is_step else rng.choice([1, 1, 0, rng.randint(0, count)]))
            tokens = [rng.randrange(VOCAB) for _ in range(count)]
            held[slot] = held[slot][:start] + tokens
            new += tokens
        write(engine, new, starts)
        answer = engine.step(num_slots) if is_step else engine.extend(slots, counts, wanted)
        expected = [
            logits_of(held[slot])[-count:]
            for slot, count in zip(slots, wanted, strict=True)
            if count
        ]
        assert (answer is None) == (not expected)
        if expected:
            assert answer.is_contiguous()
            yield answer, torch.cat(expected)


class LoRA(nn.Module):
    """What people put in the place of a Linear."""

    def __init__(self, linear):
        super().__init__()
        self.linear = linear
        self.a = nn.Parameter(torch.randn(4, linear.in_features))
        self.b = nn.Parameter(torch.randn(linear.out_features, 4))

    def forward(self, x):
        return self.linear(x) + x @ self.a.t() @ self.b.t()


# --- The cached engine ---


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("is_stock", [True, False])
def test_whatever_the_loop_asks_the_logits_are_those_of_the_whole_text(seed, is_stock):
    rng = random.Random(seed)
    model = make_model(
        seed,
        emb_dim=rng.choice([16, 32, 64]),
        n_layers=rng.randint(1, 3),
        qkv_bias=rng.random() < 0.5,
    )
    if not is_stock:
        model.trf_blocks[0].att.W_value = LoRA(model.trf_blocks[0].att.W_value)
    engine = make_engine(model, slots=rng.choice([1, 2, 3, 7]), context_size=CONTEXT)
    assert isinstance(engine, TorchEngine)
    for answer, expected in random_calls(engine, lambda ids: model(torch.tensor([ids]))[0], seed):
        torch.testing.assert_close(answer, expected, atol=3e-5, rtol=1e-4)


@pytest.mark.parametrize("pos", FUSED + BY_LAYER)
@pytest.mark.parametrize("seed", range(3))
def test_whatever_kind_the_positions_are_the_logits_are_those_of_the_whole_text(pos, seed):
    model = make_model(seed, pos=pos, n_heads=3, emb_dim=24)
    assert (DecodeWeights.of(model, torch.float32) is not None) == (pos in FUSED)
    engine = make_engine(model, slots=1 + seed * 2, context_size=CONTEXT)
    assert engine.name == "torch"
    for answer, expected in random_calls(engine, lambda ids: model(torch.tensor([ids]))[0], seed):
        torch.testing.assert_close(answer, expected, atol=3e-5, rtol=1e-4)


@pytest.mark.parametrize("seed", SEEDS)
def test_whatever_the_loop_asks_of_a_memory_the_logits_are_those_of_the_segments(seed):
    rng = random.Random(seed)
    lengths = {"context_length": rng.randint(1, 6), "memory_length": rng.randint(1, 7)}
    model = make_model(seed, pos="transformer_xl", **lengths)
    engine = make_engine(model, slots=rng.choice([1, 2, 3]), context_size=CONTEXT)
    for answer, expected in random_calls(engine, partial(by_segments, model), seed):
        torch.testing.assert_close(answer, expected, atol=3e-5, rtol=1e-4)


@pytest.mark.parametrize("seed", SEEDS)
def test_prompts_of_any_lengths_together_get_the_tokens_that_each_gets_alone(seed):
    model, prompts = make_model(seed), make_prompts(seed, count=1 + seed % 9)
    engine = make_engine(model, slots=len(prompts), context_size=CONTEXT)
    assert greedy(engine, prompts, 12) == greedy_without_engine(model, prompts, 12)


def doubled(module, args, output):
    return 2 * output


class Doubled(nn.Module):
    def forward(self, x):
        return 2 * x


def replace_a_linear(model):
    model.trf_blocks[1].att.W_query = LoRA(model.trf_blocks[1].att.W_query)


def replace_the_head(model):
    model.out_head = nn.Sequential(nn.Linear(32, 16), nn.ReLU(), nn.Linear(16, VOCAB))


def hook_a_norm(model):
    model.trf_blocks[0].norm1.register_forward_hook(doubled)


def hook_the_head(model):
    model.out_head.register_forward_hook(lambda module, args, output: output.roll(1, -1))


def hook_a_block_before_it_runs(model):
    model.trf_blocks[1].register_forward_pre_hook(lambda module, args: (args[0] * 2, *args[1:]))


def parametrize_a_linear(model):
    parametrize.register_parametrization(model.trf_blocks[0].ff.layers[0], "weight", Doubled())


def swap_the_activation(model):
    model.trf_blocks[0].ff.layers[1] = nn.ReLU()


def lengthen_the_feed_forward(model):
    model.trf_blocks[0].ff.layers.append(Doubled())


def give_a_norm_its_own_forward(model):
    model.final_norm.forward = lambda x: x.tanh()


def replace_the_embedding(model):
    model.tok_emb = nn.Embedding(VOCAB, 32)
    model.tok_emb.register_forward_hook(doubled)


def take_a_bias_away(model):
    for block in model.trf_blocks:
        nn.init.constant_(block.att.W_query.bias, 3)
        block.att.W_value.bias = None


def take_another_scale(model):
    model.trf_blocks[1].att.scale = 2.0


def cap_the_embeddings(model):
    model.tok_emb.max_norm = 0.5


CHANGES = [
    take_a_bias_away,
    take_another_scale,
    cap_the_embeddings,
    replace_a_linear,
    replace_the_head,
    hook_a_norm,
    hook_the_head,
    hook_a_block_before_it_runs,
    parametrize_a_linear,
    swap_the_activation,
    lengthen_the_feed_forward,
    give_a_norm_its_own_forward,
    replace_the_embedding,
]


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("when", ["before the engine", "between two prompts"])
def test_a_layer_that_is_not_the_stock_one_is_called(change, when):
    model, prompts = make_model(), make_prompts(3)
    before = greedy_without_engine(model, prompts, 8)
    engine = make_engine(model, slots=len(prompts), context_size=CONTEXT)
    if when == "between two prompts":
        assert greedy(engine, prompts, 8) == before
    torch.manual_seed(5)
    change(model)
    if when == "before the engine":
        engine = make_engine(model, slots=len(prompts), context_size=CONTEXT)
    after = greedy_without_engine(model, prompts, 8)
    assert after != before
    assert greedy(engine, prompts, 8) == after


def hook_the_bias(model):
    model.pos_bias.register_forward_hook(doubled)


def replace_the_bias(model):
    model.pos_bias = T5Bias(2, 40)
    nn.init.normal_(model.pos_bias.weight)


def write_the_bias(model):
    with torch.no_grad():
        model.pos_bias.weight.mul_(-1)


def take_the_bias_away(model):
    model.pos_bias = None


@pytest.mark.parametrize(
    "change", [hook_the_bias, replace_the_bias, write_the_bias, take_the_bias_away]
)
def test_a_bias_that_changes_is_seen(change):
    model, prompts = make_model(pos="t5"), make_prompts(3)
    engine = make_engine(model, slots=len(prompts), context_size=CONTEXT)
    before = read(engine, prompts).clone()
    change(model)
    expected = torch.stack([model(torch.tensor([prompt]))[0, -1] for prompt in prompts])
    torch.testing.assert_close(read(engine, prompts), expected, atol=1e-5, rtol=1e-5)
    assert not torch.allclose(before, expected, atol=1e-3)


def test_a_hook_that_is_removed_leaves_the_fused_pass_as_it_was():
    model, prompts = make_model(), make_prompts(0)
    engine = make_engine(model, slots=len(prompts), context_size=CONTEXT)
    handle = model.trf_blocks[0].register_forward_hook(doubled)
    assert DecodeWeights.of(model, torch.float32) is None
    assert greedy(engine, prompts, 4) == greedy_without_engine(model, prompts, 4)
    handle.remove()
    assert DecodeWeights.of(model, torch.float32) is not None
    assert greedy(engine, prompts, 4) == greedy_without_engine(model, prompts, 4)


def add_in_place(model):
    with torch.no_grad():
        model.trf_blocks[0].att.W_key.weight.add_(0.3)


def write_through_data(model):
    model.trf_blocks[1].att.W_value.weight.data.mul_(-1)


def set_data(model):
    linear = model.trf_blocks[1].ff.layers[0]
    linear.weight.data = linear.weight.data.roll(1, 0).clone()


def replace_a_parameter(model):
    linear = model.trf_blocks[0].att.out_proj
    linear.weight = nn.Parameter(linear.weight.detach().flip(0))


def load_other_weights(model):
    model.load_state_dict(make_model(9).state_dict())


def take_a_training_step(model):
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    model(torch.tensor([[1, 2, 3]])).logsumexp(-1).sum().backward()
    optimizer.step()


@pytest.mark.parametrize(
    "change",
    [
        add_in_place,
        write_through_data,
        set_data,
        replace_a_parameter,
        load_other_weights,
        take_a_training_step,
    ],
)
@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
def test_weights_that_change_are_read_again(change, dtype):
    model, prompts = make_model(), make_prompts(2)
    engine = make_engine(model, slots=len(prompts), context_size=CONTEXT, dtype=dtype)
    before = read(engine, prompts).clone()
    change(model)
    after = read(engine, prompts).clone()
    assert not torch.equal(after, before)
    fresh = make_model()
    fresh.load_state_dict(model.state_dict())
    fresh_engine = make_engine(fresh, slots=len(prompts), context_size=CONTEXT, dtype=dtype)
    assert torch.equal(after, read(fresh_engine, prompts))


def test_a_change_between_two_steps_is_seen_too():
    model = make_model()
    engine = make_engine(model, slots=1, context_size=CONTEXT)
    read(engine, [[1, 2, 3]])
    write(engine, [4], [3])
    before = engine.step(1).clone()
    add_in_place(model)
    write(engine, [4], [3])
    assert not torch.equal(engine.step(1), before)


def test_copies_of_weights_are_shared_by_engines_and_die_with_the_model():
    model = make_model()
    weights = DecodeWeights.of(model, torch.float32)
    assert DecodeWeights.of(model, torch.float32) is weights
    engine = make_engine(model, slots=1, context_size=CONTEXT)
    read(engine, [[1]])
    assert engine._weights is weights
    # All that is not fused is the model's own memory.
    up = model.trf_blocks[0].ff.layers[0].weight
    assert weights.layers[0].up.weight.data_ptr() == up.data_ptr()
    reference = weakref.ref(model)
    del model, engine, weights, up
    gc.collect()
    assert reference() is None


def test_weights_made_in_inference_mode_have_no_versions_and_are_compared():
    with torch.inference_mode():
        model = make_model()
    engine = make_engine(model, slots=1, context_size=CONTEXT)
    with torch.inference_mode():
        before = read(engine, [[1, 2]]).clone()
        model.trf_blocks[0].att.W_query.weight.mul_(-1)
    assert not torch.equal(read(engine, [[1, 2]]), before)


@pytest.mark.parametrize("seed", SEEDS)
def test_in_bfloat16_the_logits_are_near_those_of_a_bfloat16_model(seed):
    model, prompts = make_model(seed), make_prompts(seed)
    engine = make_engine(model, slots=len(prompts), context_size=CONTEXT, dtype="bfloat16")
    assert engine.name == "torch bfloat16"
    answer = read(engine, prompts)
    assert answer.dtype is torch.bfloat16
    assert model.out_head.weight.dtype is torch.float32
    expected = torch.stack([model(torch.tensor([prompt]))[0, -1] for prompt in prompts])
    # Eight bits of mantissa, through two layers.
    torch.testing.assert_close(answer.float(), expected, atol=0.05, rtol=0.05)
    lower = make_model(seed).to(torch.bfloat16)
    own = torch.stack([lower(torch.tensor([prompt]))[0, -1] for prompt in prompts])
    assert (answer.float() - expected).abs().mean() <= 1.2 * (own.float() - expected).abs().mean()


@pytest.mark.parametrize("pos", FUSED + BY_LAYER)
@pytest.mark.parametrize("seed", range(3))
def test_in_bfloat16_every_kind_of_positions_is_near_the_exact_one(pos, seed):
    model, prompts = make_model(seed, pos=pos), make_prompts(seed)
    engine = make_engine(model, slots=len(prompts), context_size=CONTEXT, dtype="bfloat16")
    answer = read(engine, prompts)
    assert (engine.name, answer.dtype) == ("torch bfloat16", torch.bfloat16)
    expected = torch.stack([model(torch.tensor([prompt]))[0, -1] for prompt in prompts])
    torch.testing.assert_close(answer.float(), expected, atol=0.1, rtol=0.1)


def test_a_replaced_layer_computes_in_bfloat16_where_that_was_asked():
    model, prompts = make_model(), make_prompts(1)
    replace_a_linear(model)
    engine = make_engine(model, slots=len(prompts), context_size=CONTEXT, dtype=torch.bfloat16)
    expected = torch.stack([model(torch.tensor([prompt]))[0, -1] for prompt in prompts])
    torch.testing.assert_close(read(engine, prompts).float(), expected, atol=0.1, rtol=0.1)


def test_a_bfloat16_model_computes_in_float32_where_that_was_asked():
    model, prompts = make_model().to(torch.bfloat16), make_prompts(1)
    exact = make_model()
    exact.load_state_dict(model.state_dict())
    engine = make_engine(model, slots=len(prompts), context_size=CONTEXT, dtype="float32")
    expected = torch.stack([exact(torch.tensor([prompt]))[0, -1] for prompt in prompts])
    torch.testing.assert_close(read(engine, prompts), expected, atol=1e-5, rtol=1e-5)
    # What must be called computes in what it has.
    model.trf_blocks[0].ff.layers[1].register_forward_hook(lambda *args: None)
    torch.testing.assert_close(read(engine, prompts).float(), expected, atol=0.1, rtol=0.1)


def test_nothing_is_answered_where_nothing_is_wanted():
    model = make_model()
    engine = make_engine(model, slots=2, context_size=CONTEXT)
    calls = []
    for change in (lambda model: None, replace_the_head, replace_a_linear):
        change(model)
        model.out_head.register_forward_hook(lambda *args: calls.append(1))
        assert read(engine, [[1, 2], [3]], wanted=[0, 0]) is None
    assert not calls


@pytest.mark.parametrize(
    ("dtype", "answered"),
    [
        (torch.float16, torch.float16),
        (torch.bfloat16, torch.bfloat16),
        (torch.float64, torch.float32),
    ],
)
def test_a_model_of_any_dtype_keeps_it_and_answers_what_the_sampler_reads(dtype, answered):
    model, prompts = make_model().to(dtype), make_prompts(4)
    engine = make_engine(model, slots=len(prompts), context_size=CONTEXT)
    answer = read(engine, prompts)
    assert answer.dtype is answered
    expected = torch.stack([model(torch.tensor([prompt]))[0, -1] for prompt in prompts])
    torch.testing.assert_close(answer.float(), expected.float(), atol=0.02, rtol=0.02)


def test_under_autocast_the_layers_are_called():
    model, prompts = make_model(), make_prompts(5)
    engine = make_engine(model, slots=len(prompts), context_size=CONTEXT)
    with torch.autocast("cpu", torch.bfloat16):
        answer = read(engine, prompts)
    assert answer.dtype is torch.bfloat16
    torch.testing.assert_close(answer.float(), read(engine, prompts), atol=0.05, rtol=0.05)


def test_dropout_draws_and_so_there_is_no_cache():
    engine = make_engine(make_model().train(), slots=2, context_size=CONTEXT)
    assert engine.name == "torch, no cache: dropout is on"
    prompts = [[1, 2], [3, 4]]
    assert not torch.equal(read(engine, prompts), read(engine, prompts))
    still = make_engine(make_model(drop_rate=0.0).train(), slots=2, context_size=CONTEXT)
    assert still.name == "torch"


@pytest.mark.parametrize("seed", SEEDS)
def test_steps_of_fixed_shape_say_the_same(seed, monkeypatch):
    # Inductor would take its time: two runs are traced for it, the others only use fixed shapes.
    traced = partial(torch.compile, backend="eager")
    monkeypatch.setattr(torch, "compile", traced if seed < 2 else lambda function, **_: function)
    torch.compiler.reset()
    fixed_steps._compiled_logits.cache_clear()
    model, prompts = make_model(seed, n_layers=1), make_prompts(seed, count=1 + seed % 3)
    engine = make_engine(model, slots=len(prompts), context_size=CONTEXT, compile=True)
    assert greedy(engine, prompts, 6) == greedy_without_engine(model, prompts, 6)
    assert engine._steps is not None
    replace_the_head(model)
    assert greedy(engine, prompts, 6) == greedy_without_engine(model, prompts, 6)
    fixed_steps._compiled_logits.cache_clear()


@pytest.mark.parametrize("pos", FUSED)
@pytest.mark.parametrize("backend", [None, "aot_eager"])
def test_steps_of_fixed_shape_know_every_place(pos, backend, monkeypatch):
    traced = partial(torch.compile, backend=backend) if backend else lambda function, **_: function
    monkeypatch.setattr(torch, "compile", traced)
    torch.compiler.reset()
    fixed_steps._compiled_logits.cache_clear()
    model, prompts = make_model(pos=pos, n_layers=1), make_prompts(1, count=3)
    engine = make_engine(model, slots=3, context_size=CONTEXT, compile=True)
    assert greedy(engine, prompts, 8) == greedy_without_engine(model, prompts, 8)
    assert engine._steps is not None
    fixed_steps._compiled_logits.cache_clear()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("bias", [True, False])
def test_weights_first_computes_a_linear_layer(dtype, bias):
    for seed in SEEDS:
        torch.manual_seed(seed)
        linear, x = nn.Linear(24, 40, bias=bias).to(dtype), torch.randn(1 + seed, 24).to(dtype)
        found = weights_first(x, linear.weight, linear.bias)
        torch.testing.assert_close(found, F.linear(x, linear.weight, linear.bias))


# --- Memory ---


def test_no_memory_for_the_cache_is_said_before_anything_is_computed(monkeypatch):
    monkeypatch.setattr(memory, "available_bytes", lambda device: 10**6)
    with pytest.raises(GenerationError) as error:
        make_engine(make_model(), slots=1000, context_size=CONTEXT)
    assert str(error.value) == (
        "a key-value cache of 1000 rows of 24 tokens takes 0.01 GB; 0.00 GB are available"
    )
    with pytest.raises(GenerationError, match=r"1000 rows of 24 tokens takes 0\.01 GB"):
        make_engine(tiny_gpt2(0), slots=1000, context_size=CONTEXT)


def test_memory_that_the_system_refuses_is_a_generation_error(monkeypatch):
    monkeypatch.setattr(memory, "available_bytes", lambda device: None)
    with pytest.raises(GenerationError, match=r"a tensor takes 1,125,899\.91 GB: "):
        memory.zeros((2**50,), torch.uint8, torch.device("cpu"), "a tensor")


def test_this_machine_knows_how_much_memory_is_left():
    available = memory.available_bytes(torch.device("cpu"))
    assert available is None or 2**20 < available < 2**50


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_zeros_are_zero_aligned_and_ordinary(dtype):
    with torch.inference_mode():
        found = memory.zeros((3, 5, 7), dtype, torch.device("cpu"), "a tensor")
    assert found.shape == (3, 5, 7)
    assert found.dtype is dtype
    assert not found.any()
    assert found.data_ptr() % 64 == 0
    found += 1
    assert memory.zeros((0, 2), dtype, torch.device("cpu"), "none").shape == (0, 2)


# --- Answers ---


@pytest.mark.parametrize("seed", SEEDS)
def test_candidates_are_the_largest_logits_and_the_whole_rows_log_sum_exp(seed):
    logits = np.random.default_rng(seed).normal(size=(3, 500)).astype(np.float32)
    ids, values, log_sum_exp = reduce_to_candidates(torch.from_numpy(logits), 20)
    assert ids.dtype is torch.int64
    assert values.is_contiguous()
    for row in range(3):
        order = np.argsort(-logits[row], kind="stable")[: ids.shape[1]]
        assert sorted(ids[row].tolist()) == sorted(order.tolist())
        np.testing.assert_array_equal(values[row], logits[row][ids[row]])
        np.testing.assert_allclose(
            log_sum_exp[row], np.log(np.exp(logits[row].astype(np.float64)).sum()), rtol=1e-6
        )


def test_where_candidates_may_have_left_out_a_tie_whole_rows_are_answered():
    logits = torch.randn(2, 500)
    logits[1, 100:200] = 9.0
    assert reduce_to_candidates(logits, 10) is None
    logits[1, 105:200] = -1.0  # Five tie now, well inside.
    assert reduce_to_candidates(logits, 10) is not None
    logits[0, 3] = torch.nan
    assert reduce_to_candidates(logits, 10) is None
    assert reduce_to_candidates(torch.randn(1, 20), 10) is None


def test_who_chooses_sees_the_logits_and_has_the_last_word():
    model, prompts = make_model(), make_prompts(6)
    seen = []

    def choose(logits):
        seen.append(logits.div_(2).clone())  # An ordinary tensor: it may be written.
        return torch.full((len(logits), 1), 5)

    engine = make_engine(model, slots=len(prompts), context_size=CONTEXT, choose=choose)
    ids, values, log_sum_exp = read(engine, prompts)
    assert ids.tolist() == [[5]] * len(prompts)
    assert ids.dtype is torch.int64
    assert values.shape == (len(prompts), 1)
    assert log_sum_exp.shape == (len(prompts),)
    expected = torch.stack([model(torch.tensor([prompt]))[0, -1] for prompt in prompts])
    torch.testing.assert_close(seen[0] * 2, expected, atol=1e-5, rtol=1e-5)


def test_the_loop_finds_what_it_writes_to():
    for model in (make_model(), lambda ids: torch.zeros(*ids.shape, VOCAB), tiny_gpt2(0)):
        engine = make_engine(model, slots=3, context_size=8, prefill_tokens=50)
        assert (engine.slots, engine.context_length) == (3, 8)
        assert engine.vocab_size in (None, VOCAB)
        for tensor, size in ((engine.tokens, 53), (engine.starts, 3)):
            assert tensor.shape == (size,)
            assert tensor.dtype is torch.int64
            assert tensor.is_contiguous()
            assert tensor.device.type == "cpu"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"context_size": 0}, "context_size is at least 1, found 0"),
        ({"dtype": "float7"}, "unknown dtype 'float7'"),
    ],
)
def test_bad_arguments_say_what_was_asked_and_what_was_found(arguments, message):
    with pytest.raises(ConfigError, match=message):
        make_engine(make_model(), **{"slots": 1, "context_size": 8, **arguments})


# --- Any callable ---


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("has_fields", [True, False])
def test_a_callable_is_called_with_whole_windows(seed, has_fields):
    model = make_model(seed)

    def call(ids):
        logits = model(ids)
        return SimpleNamespace(logits=logits) if has_fields else logits

    engine = make_engine(call, slots=1 + seed % 5, context_size=CONTEXT)
    assert isinstance(engine, PlainEngine)
    assert engine.name == "torch, no cache: a callable has none"
    for answer, expected in random_calls(engine, lambda ids: model(torch.tensor([ids]))[0], seed):
        torch.testing.assert_close(answer, expected, atol=1e-5, rtol=1e-5)


def test_windows_of_equal_length_are_one_call():
    shapes = []

    def call(ids):
        shapes.append(tuple(ids.shape))
        return torch.zeros(*ids.shape, VOCAB)

    engine = make_engine(call, slots=4, context_size=CONTEXT)
    read(engine, [[1, 2], [3, 4], [5], [6, 7]], wanted=[1, 1, 1, 0])
    assert shapes == [(2, 2), (1, 1)]


# --- transformers ---


def tiny_gpt2(seed):
    torch.manual_seed(seed)
    config = transformers.GPT2Config(
        vocab_size=VOCAB, n_positions=64, n_embd=32, n_layer=2, n_head=4, bos_token_id=0
    )
    config.eos_token_id = None
    return sharpened(transformers.GPT2LMHeadModel(config))


def tiny_llama(seed):
    return tiny("Llama", seed)


def tiny_mistral(seed):
    return tiny("Mistral", seed, sliding_window=5)


def tiny_neox(seed):
    return tiny("GPTNeoX", seed)


def tiny(name, seed, **changes):
    torch.manual_seed(seed)
    config = getattr(transformers, f"{name}Config")(
        vocab_size=VOCAB,
        max_position_embeddings=64,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        **({} if name == "GPTNeoX" else {"num_key_value_heads": 2}),
        **changes,
    )
    return sharpened(getattr(transformers, f"{name}ForCausalLM")(config))


def sharpened(model):
    """Far from a draw, and from always saying the same."""
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(8)
    return model.eval()


@pytest.mark.parametrize("make", [tiny_gpt2, tiny_llama, tiny_mistral, tiny_neox])
def test_transformers_models_write_what_their_generate_writes(make):
    model, prompts = make(0), make_prompts(11, count=20)
    engine = make_engine(model, slots=20, context_size=40)
    assert isinstance(engine, TransformersEngine)
    assert engine.name == "transformers"
    expected = [
        model.generate(
            torch.tensor([prompt]),
            attention_mask=torch.ones(1, len(prompt)),
            max_new_tokens=12,
            do_sample=False,
            eos_token_id=None,
            pad_token_id=0,
        )[0, len(prompt) :].tolist()
        for prompt in prompts
    ]
    assert greedy(engine, prompts, 12) == expected
    assert len({token for row in expected for token in row}) > 10


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("make", [tiny_gpt2, tiny_llama])
def test_whatever_the_loop_asks_transformers_logits_are_those_of_the_whole_text(make, seed):
    model = make(seed)
    engine = make_engine(model, slots=1 + seed % 4, context_size=CONTEXT)

    def logits_of(ids):
        with torch.no_grad():
            return model(input_ids=torch.tensor([ids]), use_cache=False).logits[0]

    for answer, expected in random_calls(engine, logits_of, seed, num_calls=8):
        torch.testing.assert_close(answer, expected, atol=1e-3, rtol=1e-3)


def tiny_neo(seed):
    torch.manual_seed(seed)
    config = transformers.GPTNeoConfig(
        vocab_size=VOCAB,
        max_position_embeddings=64,
        hidden_size=32,
        num_layers=2,
        num_heads=4,
        attention_types=[[["global", "local"], 1]],
        window_size=5,
    )
    return sharpened(transformers.GPTNeoForCausalLM(config))


def tiny_falcon_with_alibi(seed):
    torch.manual_seed(seed)
    config = transformers.FalconConfig(
        vocab_size=VOCAB, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, alibi=True
    )
    return sharpened(transformers.FalconForCausalLM(config))


def tiny_phi3_with_longrope(seed):
    factors = {"short_factor": [1.0] * 4, "long_factor": [0.1] * 4}
    rope = {"rope_type": "longrope", "rope_theta": 1e4, "original_max_position_embeddings": 12}
    length = {"original_max_position_embeddings": 12}
    return tiny("Phi3", seed, pad_token_id=0, rope_parameters=rope | factors, **length)


def tiny_roberta(seed):
    torch.manual_seed(seed)
    config = transformers.RobertaConfig(
        vocab_size=VOCAB,
        max_position_embeddings=66,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        pad_token_id=1,
        is_decoder=True,
    )
    return sharpened(transformers.RobertaForCausalLM(config))


@pytest.mark.parametrize(
    ("make", "name"),
    [
        (tiny_neo, "transformers"),
        (tiny_falcon_with_alibi, "transformers"),
        (
            tiny_phi3_with_longrope,
            "transformers, no cache: its positions turn otherwise in a longer text",
        ),
        (tiny_roberta, "transformers, no cache: it counts positions from its padding id on"),
    ],
)
def test_prompts_of_any_lengths_together_get_what_transformers_gives_each_alone(make, name):
    # Ids beside RoBERTa's padding, which it takes for no text.
    model = make(0)
    prompts = [[2 + token % (VOCAB - 2) for token in row] for row in make_prompts(5, longest=14)]
    engine = make_engine(model, slots=len(prompts), context_size=40)
    assert engine.name == name

    def alone(ids):
        with torch.no_grad():
            return model(input_ids=ids, use_cache=False).logits

    plain = make_engine(alone, slots=len(prompts), context_size=40)
    assert greedy(engine, prompts, 8) == greedy(plain, prompts, 8)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_either_of_transformers_attentions_takes_the_mask(attention):
    model, prompts = tiny_llama(3), make_prompts(8)
    model.set_attn_implementation(attention)
    engine = make_engine(model, slots=len(prompts), context_size=40)
    plain = make_engine(lambda ids: model(ids), slots=len(prompts), context_size=40)
    assert greedy(engine, prompts, 6) == greedy(plain, prompts, 6)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (
            lambda model: setattr(model, "_is_stateful", True),
            "its memory is a state, not a list of tokens",
        ),
        (lambda model: model.register_forward_hook(lambda *args: None), "hooks wait on the model"),
        (
            lambda model: setattr(model.config, "layer_types", ["linear_attention"] * 2),
            "it has layers of linear_attention",
        ),
    ],
)
def test_models_that_no_cache_fits_are_called_and_say_why(change, reason):
    model, prompts = tiny_llama(0), make_prompts(7)
    expected = greedy(make_engine(model, slots=5, context_size=40), prompts, 5)
    change(model)
    engine = make_engine(model, slots=5, context_size=40)
    assert engine.name == f"transformers, no cache: {reason}"
    if "linear" not in reason:  # Such a Llama cannot run at all.
        assert greedy(engine, prompts, 5) == expected


def test_a_transformers_model_computes_in_bfloat16_where_that_was_asked():
    model, prompts = tiny_gpt2(1), make_prompts(9)
    engine = make_engine(model, slots=len(prompts), context_size=40, dtype=torch.bfloat16)
    assert engine.name == "transformers bfloat16"
    answer = read(engine, prompts)
    exact = read(make_engine(model, slots=len(prompts), context_size=40), prompts)
    assert F.cosine_similarity(answer.float(), exact).min() > 0.99
    # Single tokens behind prompts of different lengths, masked.
    write(engine, [1] * len(prompts), list(map(len, prompts)))
    assert engine.step(len(prompts)).isfinite().all()
