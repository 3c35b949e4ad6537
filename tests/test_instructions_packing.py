"""Instructions as tokens, several in a row: none lost, none twice, none seen by another."""

import json
from functools import cache
from itertools import pairwise
from typing import get_args

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

import gptrs
from gptrs.config import Pos
from gptrs.errors import ConfigError, DataError
from gptrs.training.instructions.batches import (
    InstructionSource,
    PackedInstructions,
    instruction_batches,
)
from gptrs.training.instructions.dataset import InstructionDataset, custom_collate_fn
from gptrs.training.instructions.packing import pack
from gptrs.training.instructions.template import format_prompt
from gptrs.training.instructions.tokens import encode_instructions, hold_out

TEXTS = st.text(st.characters(exclude_categories=["Cs"]), min_size=1).filter(str.strip)
ENTRY = st.fixed_dictionaries({"instruction": TEXTS, "input": st.text(max_size=9), "output": TEXTS})
TOKENIZER = gptrs.get_tokenizer("gpt2")
LENGTH = 128


def sums(count):
    """Entries whose answers have one to eight tokens."""
    return [
        {"instruction": "Count.", "input": str(i), "output": " ".join(map(str, range(1 + i % 8)))}
        for i in range(count)
    ]


def encoded(count=40, length=LENGTH, **options):
    return encode_instructions(sums(count), TOKENIZER, max_length=length, **options)


def source(count=40, length=LENGTH, rows=3, **options):
    return InstructionSource(encoded(count, length), length, rows * length, seed=5, **options)


def parts(batch):
    """Each document of a batch: its inputs and targets; without what is only padding."""
    bounds = batch.cu_seqlens.tolist()
    for start, end in pairwise(bounds):
        inputs, targets = (tensor.flatten()[start:end] for tensor in batch[:2])
        if (targets != -100).any():
            yield inputs, targets


@settings(deadline=None)
@given(st.lists(ENTRY, min_size=1, max_size=4), st.sampled_from(["ours", "tiktoken"]))
def test_with_the_loss_on_all_each_entry_is_the_books(entries, whose):
    tokenizer = TOKENIZER if whose == "ours" else TOKENIZER.as_tiktoken()
    found = encode_instructions(entries, tokenizer, max_length=10_000, loss_on="all")
    for number, text in enumerate(InstructionDataset(entries, TOKENIZER)):
        tokens = found.tokens[found.offsets[number] : found.offsets[number + 1]].tolist()
        inputs, targets = custom_collate_fn([text])
        assert (tokens[:-1], tokens[1:]) == (inputs[0].tolist(), targets[0].tolist())
    assert not found.num_masked.any()
    assert (found.num_cut, found.num_dropped) == (0, 0)


@settings(deadline=None)
@given(st.lists(ENTRY, min_size=1, max_size=4))
def test_what_counts_is_the_response_and_the_end_of_text(entries):
    found = encode_instructions(entries, TOKENIZER, max_length=10_000)
    for number, entry in enumerate(entries):
        tokens = found.tokens[found.offsets[number] : found.offsets[number + 1]]
        counted = tokens[1 + found.num_masked[number] :].tolist()
        text = TOKENIZER.decode_bytes(counted)
        response = entry["output"].encode() + b"<|endoftext|>"
        if entry["output"][0].isspace():
            # The prompt's last line end and the blanks may be one token.
            assert text.endswith(response)
            assert len(text) - len(response) <= len("\n")
        else:
            assert text == response
        before = TOKENIZER.decode_bytes(tokens[: 1 + found.num_masked[number]])
        assert before + text == format_prompt(entry).encode() + response


def test_an_entry_cannot_forge_an_end_of_text():
    entries = [{"instruction": "Go on.", "input": "", "output": "a<|endoftext|>b"}]
    (end,) = np.flatnonzero(encode_instructions(entries, TOKENIZER, max_length=99).tokens == 50256)
    assert end + 1 == len(encode_instructions(entries, TOKENIZER, max_length=99).tokens)


def test_what_is_too_long_is_cut_or_dropped_and_counted():
    whole = encoded()
    # The prompt has one token more in 30 of the 40, and the response up to 15.
    length = int(whole.num_masked.min()) + 4
    cut, dropped = encoded(length=length), encoded(length=length, too_long="drop")
    is_long = whole.lengths > length
    assert (cut.num_cut, cut.num_dropped) == (is_long.sum(), 0)
    assert (dropped.num_cut, dropped.num_dropped) == (0, is_long.sum())
    assert len(dropped) == 40 - is_long.sum()
    for number in range(40):
        tokens, wanted = (
            side.tokens[side.offsets[number] : side.offsets[number + 1]] for side in (cut, whole)
        )
        assert tokens.tolist() == wanted[: length + 1].tolist()
    assert f"{is_long.sum()} too long and cut" in str(cut)
    assert f"{is_long.sum()} too long and dropped" in str(dropped)


def test_an_entry_of_which_only_the_prompt_would_be_left_is_dropped_and_not_cut():
    long = {"instruction": "word " * 100, "output": "yes"}
    found = encode_instructions([*sums(3), long], TOKENIZER, max_length=LENGTH)
    assert (len(found), found.num_cut, found.num_dropped) == (3, 0, 1)
    found = encode_instructions([*sums(3), long], TOKENIZER, max_length=LENGTH, loss_on="all")
    assert (len(found), found.num_cut, found.num_dropped) == (4, 1, 0)


def test_where_all_are_too_long_the_error_has_the_shortest():
    with pytest.raises(DataError, match=r"all 5 .* longer than 8 tokens: the shortest has 40$"):
        encoded(5, length=8)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_length": 0}, "max_length is at least 1, found 0"),
        ({"max_length": 9, "loss_on": "prompt"}, "loss_on is one of response, all; found 'prompt'"),
        ({"max_length": 9, "too_long": "keep"}, "too_long is one of cut, drop; found 'keep'"),
    ],
)
def test_a_setting_that_makes_no_sense_is_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        encode_instructions(sums(1), TOKENIZER, **options)


def test_a_tokenizer_without_an_end_of_text_is_refused():
    class Bytes:
        def encode(self, text):
            return list(text.encode())

    with pytest.raises(ConfigError, match=r"has no <\|endoftext\|>.*Bytes"):
        encode_instructions(sums(1), Bytes(), max_length=99)


@cache
def fewest_rows(lengths, room):
    """By trying all ways."""

    def fill(rest, rows):
        if not rest:
            return len(rows)
        first, *others = rest
        tried = {left for left in rows if left >= first}
        found = [
            fill(others, tuple(sorted([*rows[:at], left - first, *rows[at + 1 :]])))
            for left in tried
            for at in [rows.index(left)]
        ]
        return min([*found, fill(others, (*rows, room - first))])

    return fill(list(lengths), ())


@settings(deadline=None)
@given(st.lists(st.integers(1, 10), min_size=1, max_size=7), st.integers(0, 2**64 - 1))
def test_packing_takes_hardly_more_rows_than_the_best_there_is(lengths, seed):
    rows = pack(np.array(lengths), 10, seed)
    assert len(rows) <= 11 / 9 * fewest_rows(tuple(lengths), 10) + 1


@settings(deadline=None)
@given(st.lists(st.integers(1, 30), min_size=1, max_size=200), st.integers(0, 2**64 - 1))
def test_every_entry_is_in_one_row_once_and_no_two_overlap(lengths, seed):
    lengths = np.array(lengths)
    rows = pack(lengths, 30, seed)
    assert sorted(rows.entries.tolist()) == list(range(len(lengths)))
    assert rows.bounds[0] == 0
    assert rows.bounds[-1] == len(lengths)
    for first, last in pairwise(rows.bounds):
        ends = rows.starts[first:last] + lengths[rows.entries[first:last]]
        assert rows.starts[first:last].tolist() == [0, *ends[:-1].tolist()]
        assert ends[-1] <= 30


def test_a_batch_has_each_entry_from_its_beginning_with_its_own_targets():
    found = encoded()
    packed = PackedInstructions(found, LENGTH)
    batch = packed.batch(np.arange(len(packed)))
    wanted = []
    for number in range(40):
        tokens = found.tokens[found.offsets[number] : found.offsets[number + 1]].tolist()
        masked = int(found.num_masked[number])
        wanted.append((tokens[:-1], [-100] * masked + tokens[1 + masked :]))
    got = [(inputs.tolist(), targets.tolist()) for inputs, targets in parts(batch)]
    assert sorted(got) == sorted(wanted)
    assert batch.num_targets == found.num_targets
    used = sum(len(inputs) for inputs, _ in got) / batch.inputs.numel()
    assert packed.density == pytest.approx(used)
    assert batch.inputs.shape == batch.targets.shape == (len(packed), LENGTH)
    assert batch.cu_seqlens.dtype == torch.int32


@pytest.mark.parametrize("pos", get_args(Pos))
def test_a_packed_row_gives_the_loss_and_the_gradient_of_each_entry_alone(pos):
    torch.manual_seed(1)
    shape = {"vocab_size": 50257, "context_length": LENGTH, "emb_dim": 16, "n_heads": 2,
             "n_layers": 2, "drop_rate": 0.0, "qkv_bias": False, "pos": pos}  # fmt: skip
    model = gptrs.GPTModel(shape).double()
    batch = next(source(count=9, rows=2).micro_batches(0))
    assert len([*parts(batch)]) > len(batch.inputs)
    logits = model(batch.inputs, cu_seqlens=batch.cu_seqlens)
    packed = F.cross_entropy(logits.flatten(0, 1), batch.targets.flatten())
    packed_gradient = torch.autograd.grad(packed, model.trf_blocks[0].att.W_key.weight)[0]
    total, count = 0.0, 0
    for inputs, targets in parts(batch):
        total += F.cross_entropy(model(inputs[None])[0], targets, reduction="sum")
        count += int((targets != -100).sum())
    alone = total / count
    gradient = torch.autograd.grad(alone, model.trf_blocks[0].att.W_key.weight)[0]
    torch.testing.assert_close(packed, alone)
    torch.testing.assert_close(packed_gradient, gradient)


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 60), st.integers(1, 5), st.integers(1, 4), st.integers(1, 5))
def test_each_epoch_has_every_entry_once_whatever_the_ranks_and_micro_batches(
    count, rows_per_rank, world_size, micro_batch
):
    rows = rows_per_rank * world_size
    whole = source(count, rows=rows)
    ranks = [
        source(count, rows=rows, rank=rank, world_size=world_size).cut(micro_batch)
        for rank in range(world_size)
    ]
    for step in (7, 0):
        wanted = next(whole.micro_batches(step))
        batches = [batch for rank in ranks for batch in rank.micro_batches(step)]
        assert torch.equal(torch.cat([batch.inputs for batch in batches]), wanted.inputs)
        assert torch.equal(torch.cat([batch.targets for batch in batches]), wanted.targets)
        assert max(len(batch.inputs) for batch in batches) <= micro_batch
    num_rows = len(whole.packed)
    every = sorted(whole.packed.batch(np.arange(num_rows)).targets.tolist())
    steps = range(-(-2 * num_rows // rows))
    seen = torch.cat([next(whole.micro_batches(step)).targets for step in steps])
    for epoch in seen[: 2 * num_rows].split(num_rows):
        assert sorted(epoch.tolist()) == every
    assert whole.epochs_before(num_rows) == rows


def test_validation_has_every_entry_once_in_the_same_batches_each_time():
    found = encoded()
    one, other = (instruction_batches(found, LENGTH, batch_size=4) for _ in range(2))
    assert sum(batch.num_targets for batch in one) == found.num_targets
    assert {len(batch.inputs) for batch in one[:-1]} == {4}
    for batch, again in zip(one, other, strict=True):
        assert all(map(torch.equal, batch, again))
    some = instruction_batches(found, LENGTH, batch_size=4, max_rows=6)
    assert [len(batch.inputs) for batch in some] == [4, 2]
    assert torch.equal(some[0].inputs, one[0].inputs)


def test_epochs_have_orders_of_their_own_and_so_have_seeds():
    one, other = source(400, rows=8), InstructionSource(encoded(400), LENGTH, 8 * LENGTH, seed=6)
    steps = [next(one.micro_batches(step)).inputs.tolist() for step in (0, len(one.packed) // 8)]
    assert steps[0] != steps[1]
    assert next(other.micro_batches(0)).inputs.tolist() != steps[0]


def test_what_a_resume_compares_is_json_and_differs_where_the_data_does():
    described = source().describe()
    assert json.loads(json.dumps(described)) == described
    assert source(rank=1, world_size=2).cut(1).describe() == described
    entries = sums(40)
    entries[17]["output"] = "otherwise"
    changed = encode_instructions(entries, TOKENIZER, max_length=LENGTH)
    others = [
        source(rows=4),
        source(length=256),
        InstructionSource(encoded(), LENGTH, 3 * LENGTH, seed=6),
        InstructionSource(changed, LENGTH, 3 * LENGTH, seed=5),
        InstructionSource(encoded(loss_on="all"), LENGTH, 3 * LENGTH, seed=5),
        source(held_out=changed),
    ]
    assert all(other.describe() != described for other in others)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"context_length": 32, "batch_tokens": 64}, "rows have 32 tokens, and an instruction has"),
        ({"batch_tokens": 200}, "not a multiple of context_length 128: take 128 or 256"),
        ({"batch_tokens": 256, "world_size": 3}, "too few for 3 processes"),
    ],
)
def test_an_impossible_batch_is_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        InstructionSource(encoded(), **{"context_length": LENGTH, "seed": 0, **options})


@settings(deadline=None)
@given(st.integers(2, 50), st.floats(0.01, 0.99), st.integers(0, 9))
def test_what_is_held_out_is_drawn_and_the_rest_is_kept_in_order(count, fraction, seed):
    entries = sums(count)
    train, validation = hold_out(entries, fraction, seed)
    assert hold_out(entries, fraction, seed) == (train, validation)
    places = [[entries.index(entry) for entry in part] for part in (train, validation)]
    assert all(part == sorted(part) and part for part in places)
    assert sorted(places[0] + places[1]) == list(range(count))
    assert abs(len(validation) - fraction * count) <= 1


@pytest.mark.parametrize(
    ("count", "fraction", "error"),
    [(1, 0.5, DataError), (5, 0.0, ConfigError), (5, 1.0, ConfigError)],
)
def test_what_cannot_be_divided_is_refused(count, fraction, error):
    with pytest.raises(error, match=r"two instructions at least|0 < it < 1"):
        hold_out(sums(count), fraction)
