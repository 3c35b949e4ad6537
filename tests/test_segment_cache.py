"""Transformer-XL's memory: what a token sees does not depend on how the tokens were cut."""

import random
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from gptrs import GPTModel
from gptrs.errors import ConfigError, GenerationError
from gptrs.model.layers import Attend, MultiHeadAttention
from gptrs.model.positions import TransformerXLKey
from gptrs.model.segment_cache import SegmentCache

VOCAB = 41
SEEDS = range(20)
FIXTURE = Path(__file__).parent / "fixtures" / "transformer_xl.npz"
NUM_CASES = 24

close = partial(torch.testing.assert_close, atol=1e-5, rtol=1e-5)


def make_model(seed, segment_length, memory_length, **changes):
    torch.manual_seed(seed)
    config = {
        "vocab_size": VOCAB,
        "context_length": segment_length,
        "emb_dim": 16,
        "n_heads": 2,
        "n_layers": 2,
        "pos": "transformer_xl",
        "memory_length": memory_length,
    }
    model = GPTModel(config | changes).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" not in name:
                parameter.normal_(std=0.3)  # As initialised, u and v do nothing.
    return model


def any_model(seed):
    rng = random.Random(seed)
    segment_length, memory_length = rng.randint(1, 6), rng.randint(1, 9)
    clamp = rng.choice([None, rng.randint(1, 8)])
    return make_model(seed, segment_length, memory_length, rel_max_distance=clamp), rng


def tokens(rng, count):
    return [rng.randrange(VOCAB) for _ in range(count)]


@torch.no_grad()
def logits_of(model, ids):
    """[T, V], in one pass without a cache, by a mask that says what each token sees."""
    segment, memory = model.cfg.context_length, model.cfg.memory_length
    mask = torch.tensor(
        [
            [max(0, t // segment * segment - memory) <= s <= t for s in range(len(ids))]
            for t in range(len(ids))
        ]
    )
    x = model.tok_emb(torch.tensor([ids]))
    for block in model.trf_blocks:
        x = block(x, Attend(mask))
    return model.out_head(model.final_norm(x))[0]


@torch.no_grad()
def logits_by_hidden_states(model, ids):
    """The same, as the paper does it: a layer's memory is what went into it before."""
    segment, memory = model.cfg.context_length, model.cfg.memory_length
    mems = [torch.empty(1, 0, model.cfg.emb_dim) for _ in model.trf_blocks]
    logits = []
    for part in torch.tensor([ids]).split(segment, dim=1):
        x = model.tok_emb(part)
        for layer, block in enumerate(model.trf_blocks):
            both = torch.cat([mems[layer], x], dim=1)
            mems[layer] = both[:, -memory:]
            num_new, num_all = x.shape[1], both.shape[1]
            mask = torch.ones(num_new, num_all, dtype=torch.bool).tril(num_all - num_new)
            # A call that gets memory and segment, of which only the segment's outputs are kept.
            padded = torch.ones(num_all, num_all, dtype=torch.bool).tril()
            padded[-num_new:] = mask
            x = block(both, Attend(padded))[:, -num_new:]
        logits.append(model.out_head(model.final_norm(x)))
    return torch.cat(logits, dim=1)[0]


@pytest.mark.parametrize("case", range(NUM_CASES))
def test_a_layer_behind_a_cache_attends_as_transformers_layer_does_to_its_memory(case):
    with np.load(FIXTURE) as file:
        entries = {name: file[name] for name in file.files if name.startswith(f"case{case}.")}
    given = {name.split(".", 1)[1]: torch.tensor(value) for name, value in entries.items()}
    hidden, memory = given["hidden"].double(), given["memory"].double()
    num_heads, clamp = int(given["num_heads"]), int(given["clamp_len"])
    batch_size, segment, width = hidden.shape
    num_remembered = memory.shape[1]
    positions = TransformerXLKey(width, num_heads, None if clamp < 0 else clamp)
    att = MultiHeadAttention(width, width, None, 0.0, num_heads, positions=positions).double()
    with torch.no_grad():
        for linear, weight in zip(
            (att.W_query, att.W_key, att.W_value), given["qkv_net.weight"].chunk(3), strict=True
        ):
            linear.weight.copy_(weight)
        att.out_proj.weight.copy_(given["o_net.weight"])
        att.out_proj.bias.zero_()
        positions.W_r.weight.copy_(given["r_net.weight"])
        positions.u.copy_(given["r_w_bias"])
        positions.v.copy_(given["r_r_bias"])
    cache = SegmentCache(
        n_layers=1,
        batch_size=batch_size,
        n_heads=num_heads,
        segment_length=segment,
        memory_length=max(num_remembered, 1),
        head_dim=width // num_heads,
        dtype=torch.float64,
    )
    # Whole segments come before, so that the last one starts where a segment does.
    num_before = -(-num_remembered // segment) * segment
    junk = torch.full((batch_size, num_before - num_remembered, width), 1e3, dtype=torch.float64)
    text = torch.cat([junk, memory, hidden], dim=1)
    weights = []
    with torch.no_grad():
        for part in text.split(segment, dim=1):
            place = cache.place(batch_size, segment)
            attend = Attend(
                place.mask, place.is_causal, place.layer(0), weights, None, place.starts
            )
            output = att(part, attend)
            place.commit()
    close(output, given["output"].double())
    seen = weights[-1][..., -num_remembered - segment :]
    close(seen, given["attention"].double())
    assert not weights[-1][..., : -num_remembered - segment].any()


@pytest.mark.parametrize("seed", SEEDS)
def test_a_segment_sees_the_hidden_states_that_the_one_before_left(seed):
    model, rng = any_model(seed)
    ids = tokens(rng, 5 * model.cfg.context_length + rng.randint(0, 3))
    memory = model.new_cache(1)
    segments = torch.tensor([ids]).split(model.cfg.context_length, dim=1)
    logits = torch.cat([model(segment, cache=memory) for segment in segments], dim=1)[0]
    close(logits, logits_of(model, ids))
    close(logits, logits_by_hidden_states(model, ids))
    assert memory.lengths == [len(ids)]


@pytest.mark.parametrize("seed", SEEDS)
def test_a_token_sees_its_segment_and_the_memory_before_it_and_no_more(seed):
    rng = random.Random(seed)
    segment_length, memory_length = rng.randint(1, 6), rng.randint(1, 9)
    model = make_model(seed, segment_length, memory_length, n_layers=1)
    ids = tokens(rng, memory_length + 4 * segment_length + rng.randint(0, 5))
    last = len(ids) - 1
    first = last // segment_length * segment_length - memory_length

    def last_logits(ids):
        memory = model.new_cache(1)
        for part in torch.tensor([ids]).split(segment_length, dim=1):
            logits = model(part, cache=memory)
        return logits[0, -1]

    before = [(token + 1) % VOCAB for token in ids[:first]]
    torch.testing.assert_close(last_logits(before + ids[first:]), last_logits(ids))
    other = [*ids[:first], (ids[first] + 1) % VOCAB, *ids[first + 1 :]]
    assert (last_logits(other) - last_logits(ids)).abs().max() > 1e-3


@pytest.mark.parametrize("seed", SEEDS)
def test_however_rows_are_cut_shortened_and_copied_each_says_what_it_would_alone(seed):
    model, rng = any_model(seed)
    num_rows = rng.randint(1, 4)
    cache = model.new_cache(num_rows)
    read = [[] for _ in range(num_rows)]
    num_resumed = 0
    for _ in range(40):
        start = rng.randrange(num_rows)
        stop = rng.randint(start + 1, num_rows)
        for row in range(start, stop):
            length = rng.randint(max(0, len(read[row]) - 3), len(read[row]))
            if rng.random() < 0.2 and cache.can_resume(row, length):
                cache.lengths[row] = length
                read[row] = read[row][:length]
                num_resumed += 1
        source, target = rng.randrange(num_rows), rng.randrange(num_rows)
        length = rng.randint(0, len(read[source]))
        if rng.random() < 0.1 and cache.can_resume(source, length):
            cache.copy_row(source, target, length)
            read[target] = read[source][:length]
        num_new = rng.randint(1, model.cfg.context_length)
        new = [tokens(rng, num_new) for _ in range(start, stop)]
        logits = model(torch.tensor(new), cache=cache.rows(start, stop))
        for row, ids in enumerate(new, start):
            read[row] = read[row] + ids
            close(logits[row - start], logits_of(model, read[row])[-num_new:])
        assert cache.lengths == list(map(len, read))
    assert num_resumed


@pytest.mark.parametrize("seed", SEEDS)
def test_rows_of_one_length_may_keep_different_tokens(seed):
    model, rng = any_model(seed)
    length = 6 * model.cfg.context_length + model.cfg.memory_length
    ids = [tokens(rng, length), tokens(rng, length)]
    cache = model.new_cache(2)
    for row, step in enumerate([1, model.cfg.context_length]):
        for part in torch.tensor([ids[row]]).split(step, dim=1):
            model(part, cache=cache.rows(row, row + 1))
    assert cache.lengths == [length] * 2
    new = [tokens(rng, 1), tokens(rng, 1)]
    logits = model(torch.tensor(new), cache=cache)
    for row in range(2):
        close(logits[row, -1], logits_of(model, ids[row] + new[row])[-1])


def test_a_cache_takes_the_memory_of_two_segments_and_what_is_remembered():
    model = make_model(0, segment_length=8, memory_length=5)
    assert model.new_cache(3).storage.shape == (2, 2, 3, 2, 5 + 2 * 8, 8)
    assert model.new_cache(3, max_tokens=10).storage.shape == (2, 2, 3, 2, 10, 8)
    assert type(make_model(0, 8, 0).new_cache(1)) is not SegmentCache


def test_hidden_states_and_attention_can_be_looked_at_behind_a_memory():
    model, ids = make_model(3, 4, 6), tokens(random.Random(3), 14)
    cache = model.new_cache(1)
    for part in torch.tensor([ids[:12]]).split(4, dim=1):
        model(part, cache=cache)
    output = model(torch.tensor([ids[12:]]), cache=cache, return_attention=True)
    close(output.logits[0], logits_of(model, ids)[12:])
    # Token 12 and token 13 see 6 to 12 and 6 to 13.
    assert [(layer > 0).sum(-1).tolist() for layer in output.attention] == [[[[7, 8]] * 2]] * 2


def test_what_a_memory_cannot_do_is_said_and_nothing_changes():
    model = make_model(1, segment_length=4, memory_length=3)
    cache = model.new_cache(2)
    ids = torch.tensor([tokens(random.Random(1), 24)] * 2)
    for part in ids.split(4, dim=1):
        model(part, cache=cache)
    with pytest.raises(GenerationError, match=r"5 tokens in one pass .* a segment of 4"):
        model(ids[:, :5], cache=cache)
    with pytest.raises(GenerationError, match="the input has 1 rows, its cache has 2"):
        model(ids[:1, :2], cache=cache)
    with pytest.raises(GenerationError, match="row 0 of the cache is to go on behind 2 tokens"):
        cache.copy_row(0, 1, 2)
    with pytest.raises(GenerationError, match="30 tokens of row 1 were asked for; it holds 24"):
        cache.copy_row(1, 0, 30)
    assert cache.lengths == [24, 24]
    cache.lengths[1] = 2
    with pytest.raises(
        GenerationError, match=r"row 1 .* sees those from 0 on, .* dropped all before"
    ):
        model(ids[:, :1], cache=cache)
    cache.lengths[:] = [0, 0]
    close(model(ids[:, :4], cache=cache)[0], logits_of(model, ids[0, :4].tolist()))
    short = model.new_cache(1, max_tokens=6)
    model(ids[:1, :4], cache=short)
    with pytest.raises(GenerationError, match="read 4 tokens, and 3 more exceed max_tokens 6"):
        model(ids[:1, :3], cache=short)


@pytest.mark.parametrize(
    ("pos", "max_tokens", "message"),
    [
        ("learned", 9, 'max_tokens is 9, but the model takes at most 8 tokens: pos is "learned"'),
        ("relative_key", 9, 'pos is "relative_key" and its context_length 8'),
        ("rope", 0, "max_tokens is at least 1, found 0"),
    ],
)
def test_a_cache_for_more_tokens_than_a_model_takes_is_refused(pos, max_tokens, message):
    with pytest.raises(ConfigError, match=message):
        make_model(0, 8, 0, pos=pos).new_cache(1, max_tokens)


@pytest.mark.parametrize("pos", ["sinusoidal", "rope", "alibi", "t5", "transformer_xl", "none"])
def test_a_cache_may_be_longer_than_the_training_window_where_positions_have_no_end(pos):
    model = make_model(2, 8, 0, pos=pos)
    ids = torch.tensor([tokens(random.Random(2), 30)])
    cache = model.new_cache(1, max_tokens=30)
    logits = torch.cat([model(part, cache=cache) for part in ids.split(7, dim=1)], dim=1)
    close(logits, model(ids))
