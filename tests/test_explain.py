"""What is explained is what happens: the numbers are transformers', the draw is the Generator's."""

import ast
import random
import re
from contextlib import closing
from typing import get_args

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

import gptrs
from gptrs.config import GPTConfig, Pos
from gptrs.errors import DataError, GenerationError
from gptrs.explain.sections import WIDTH, format_section
from gptrs.explain.walk import explain
from gptrs.model.gpt import GPTModel

CHARACTERS = "abcdefghij klmnopq,.rstuvwxyz"


class Letters:
    """A tokenizer of somebody's own: `explain` asks for no more."""

    n_vocab = len(CHARACTERS)

    def encode(self, text):
        return [CHARACTERS.index(character) for character in text]

    def decode(self, ids):
        return "".join(CHARACTERS[token] for token in ids)


TOKENIZER = Letters()


def random_model(seed, **settings):
    rng = random.Random(seed)
    n_heads = rng.randint(1, 4)
    cfg = {
        "vocab_size": TOKENIZER.n_vocab,
        "context_length": 24,
        "emb_dim": n_heads * rng.choice([4, 8]),
        "n_heads": n_heads,
        "n_layers": rng.randint(1, 3),
        "drop_rate": 0.1,
        "qkv_bias": True,
    }
    torch.manual_seed(seed)
    return GPTModel(GPTConfig(**cfg | settings)).eval()


def random_text(seed, length=None):
    rng = random.Random(seed)
    return "".join(rng.choices(CHARACTERS, k=length or rng.randint(1, 8)))


def sections(model, text, **settings):
    """The sections by title; of several with one title, the first."""
    by_title = {}
    for section in explain(model, TOKENIZER, text, **settings):
        by_title.setdefault(section.title, section)
    return by_title


def column(section, name):
    return [row[list(section.header).index(name)] for row in section.rows]


def transformers_twin(model):
    """GPT2LMHeadModel with the same weights."""
    cfg = model.cfg
    twin = GPT2LMHeadModel(
        GPT2Config(
            vocab_size=cfg.vocab_size,
            n_positions=cfg.context_length,
            n_embd=cfg.emb_dim,
            n_head=cfg.n_heads,
            n_layer=cfg.n_layers,
            tie_word_embeddings=False,
            attn_implementation="eager",
        )
    ).eval()
    pairs = [
        (twin.transformer.wte, model.tok_emb),
        (twin.transformer.wpe, model.pos_emb),
        (twin.lm_head, model.out_head),
    ]
    for theirs, ours in zip(twin.transformer.h, model.trf_blocks, strict=True):
        query_key_value = (ours.att.W_query, ours.att.W_key, ours.att.W_value)
        theirs.attn.c_attn.weight.data = torch.cat([w.weight for w in query_key_value]).T
        theirs.attn.c_attn.bias.data = torch.cat([w.bias for w in query_key_value])
        for conv, linear in (
            (theirs.attn.c_proj, ours.att.out_proj),
            (theirs.mlp.c_fc, ours.ff.layers[0]),
            (theirs.mlp.c_proj, ours.ff.layers[2]),
        ):
            conv.weight.data, conv.bias.data = linear.weight.T, linear.bias
    for theirs, ours in pairs:
        theirs.weight.data = ours.weight.data
    return twin  # Norms are 1 and 0 in both.


def close(values):
    return pytest.approx(values, rel=1e-4, abs=1e-5)


@pytest.mark.parametrize("seed", range(20))
def test_the_values_are_those_of_transformers(seed):
    model, text = random_model(seed), random_text(seed)
    ids = TOKENIZER.encode(text)
    with torch.no_grad():
        theirs = transformers_twin(model)(
            torch.tensor([ids]), output_hidden_states=True, output_attentions=True
        )
    found = sections(model, text)
    hidden = theirs.hidden_states
    assert column(found["token ids"], "id") == ids
    assert column(found["input embeddings"], "length") == close(hidden[0][0].norm(dim=1).tolist())
    weights = theirs.attentions[0][0]
    *rows, mean = found["attention weights"].rows
    for t, row in enumerate(rows):
        assert list(row[1 : t + 2]) == close(weights[0, t, : t + 1].tolist())
        assert set(row[t + 2 :]) <= {None}
    assert list(mean[1:]) == close(weights.mean(dim=0)[-1].tolist())
    behind = [states[0, -1].norm().item() for states in hidden[:-1]]
    assert column(found["all blocks"], "length")[:-1] == close(behind)
    logits, probabilities = theirs.logits[0, -1], theirs.logits[0, -1].softmax(dim=0)
    top = probabilities.topk(5)
    assert column(found["probabilities"], "id") == top.indices.tolist()
    assert column(found["probabilities"], "probability") == close(top.values.tolist())
    assert column(found["probabilities"], "logit") == close(logits[top.indices].tolist())
    assert [row[1] for row in found["logits"].rows] == close(
        [logits.max().item(), logits.mean().item(), logits.min().item()]
    )


@pytest.mark.parametrize("pos", get_args(Pos))
@pytest.mark.parametrize("seed", range(20))
def test_each_step_follows_from_the_ones_before_it(seed, pos):
    found = sections(random_model(seed, pos=pos), random_text(seed))

    def first_values(title):
        return torch.tensor(column(found[title], "[0]"))

    def equal(one, other):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)

    x = first_values("token embeddings")
    if pos in ("learned", "sinusoidal"):
        x = x + first_values("positional embeddings")
    equal(x, first_values("input embeddings"))
    x = x + first_values("context vectors")
    equal(x, first_values("first shortcut"))
    x = x + first_values("feed forward")
    equal(x, first_values("second shortcut"))
    equal(x[-1], first_values("all blocks")[1])
    scores, weights = found["attention scores"].rows, found["attention weights"].rows
    for t, row in enumerate(scores):
        expected = torch.tensor(row[1 : t + 2]).softmax(dim=0)
        equal(torch.tensor(weights[t][1 : t + 2]), expected)


def lower_half(section):
    """What each token sees, a list for each."""
    return [list(row[1 : t + 2]) for t, row in enumerate(section.rows)]


@pytest.mark.parametrize("seed", range(20))
def test_what_alibi_and_t5_add_to_the_scores_is_shown(seed):
    text = random_text(seed)
    alibi = random_model(seed, pos="alibi", n_heads=4, emb_dim=16)
    shown = lower_half(sections(alibi, text)["positions"])
    assert shown == [close([-(t - s) / 4 for s in range(t + 1)]) for t in range(len(text))]
    t5 = random_model(seed, pos="t5")
    shown = lower_half(sections(t5, text)["positions"])
    # The first sixteen distances have a weight each.
    weights = t5.pos_bias.weight[:, 0].tolist()
    assert shown == [close([weights[t - s] for s in range(t + 1)]) for t in range(len(text))]


@pytest.mark.parametrize("pos", ["relative_key", "relative_key_query", "transformer_xl"])
@pytest.mark.parametrize("seed", range(20))
def test_what_distances_add_to_the_scores_is_shown(seed, pos):
    model, text = random_model(seed, pos=pos), random_text(seed)
    attention, K = model.trf_blocks[0].att, model.cfg.head_dim
    with torch.no_grad():
        if pos == "transformer_xl":
            attention.positions.v.normal_()
        x_TD = model.trf_blocks[0].norm1(model.tok_emb(torch.tensor(TOKENIZER.encode(text))))
        q_TK, k_TK = attention.W_query(x_TD)[:, :K], attention.W_key(x_TD)[:, :K]

    def term(t, s):
        if pos == "transformer_xl":
            angles = (t - s) / 10_000 ** (torch.arange(0, x_TD.shape[1], 2) / x_TD.shape[1])
            R_D = torch.cat([angles.sin(), angles.cos()])
            r_K = attention.positions.W_r(R_D)[:K]
            return (q_TK[t] + attention.positions.v[0]) @ r_K
        E_K = attention.positions.distance_embedding.weight[t - s]
        return (q_TK[t] + (k_TK[s] if pos == "relative_key_query" else 0)) @ E_K

    shown = lower_half(sections(model, text)["scores of distances"])
    expected = [[term(t, s).item() / K**0.5 for s in range(t + 1)] for t in range(len(text))]
    assert shown == [close(row) for row in expected]


@pytest.mark.parametrize("seed", range(20))
def test_turning_queries_keeps_their_lengths_and_makes_their_products_a_matter_of_distance(seed):
    model, text = random_model(seed, pos="rope"), random_text(seed)
    found = sections(model, text)
    turned = found["turned queries"]
    assert column(turned, "turned") == close(column(turned, "length"))
    assert column(turned, "angle 0") == column(turned, "position") == list(range(len(text)))
    far = column(turned, "angle 1")[-1]
    assert far == pytest.approx((len(text) - 1) / 10_000 ** (2 / model.cfg.head_dim))
    _, here, there = zip(*found["only distances count"].rows, strict=True)
    assert list(here) == close(list(there))
    last_score = found["attention scores"].rows[-1][len(text)]
    assert here[0] / model.cfg.head_dim**0.5 == close(last_score)


def test_each_kind_of_positions_says_where_it_is():
    title = {"learned": "positional embeddings", "sinusoidal": "positional embeddings"}
    for pos in get_args(Pos):
        order = [section.title for section in explain(random_model(0, pos=pos), TOKENIZER, "a b")]
        assert order[3] == title.get(pos, "positions")
    found = sections(random_model(0, pos="none"), "a b")["positions"]
    assert (found.tensor, found.rows) == ('pos="none"', ())
    assert found.formula.startswith("nothing is added")


@pytest.mark.parametrize("seed", range(20))
def test_the_drawn_token_is_the_one_that_a_generator_draws(seed):
    model, text = random_model(3), random_text(seed)
    section = sections(model, text, seed=seed)["the next token"]
    with closing(gptrs.Generator(model, TOKENIZER)) as gen:
        drawn = gen(text, seed=seed, temperature=1.0, max_new_tokens=1, eos_id=None)[0].token_ids
        greedy = gen(text, temperature=0.0, max_new_tokens=1, eos_id=None)[0].token_ids
    assert column(section, "id") == [*greedy, *drawn]
    uniform, start, end = map(float, re.findall(r"\d+\.\d+", section.note))
    assert start - 2e-6 <= uniform <= end + 2e-6
    assert end - start == pytest.approx(column(section, "probability")[1], abs=2e-6)


@pytest.mark.parametrize(("blocks", "explained"), [(0, 0), (1, 1), (2, 2), (3, 3), (9, 3)])
def test_so_many_blocks_are_looked_into(blocks, explained):
    model = random_model(0, n_layers=3)
    titles = [section.title for section in explain(model, TOKENIZER, "a text", blocks=blocks)]
    assert titles.count("attention weights") == titles.count("feed forward") == explained
    assert titles.count("layer normalization") == 2 * explained + 1


def test_of_many_tokens_the_last_eight_are_shown_and_of_many_blocks_both_ends():
    model = random_model(0, n_layers=30)
    found = sections(model, random_text(1, length=20))
    assert column(found["token ids"], "position") == list(range(12, 20))
    assert found["token ids"].note == "the last 8 of 20 tokens"
    assert len(found["attention weights"].rows[0]) == 1 + 8
    behind = column(found["all blocks"], "behind")
    assert (behind[0], behind[7], behind[8], behind[-1]) == (
        "input embeddings", "trf_blocks.6", "trf_blocks.22", "trf_blocks.29",
    )  # fmt: skip
    assert found["all blocks"].note == "left out: trf_blocks.7 to trf_blocks.21"


@pytest.mark.parametrize(
    "text",
    ["a", "Hello, I am", "line\nline\ttab", "żółć 🦀 漢字\u200b\x00", "supercalifragilistic " * 30,
     "-" * 300, "'\"\\" * 10, "\u202eabc", "<|endoftext|>"],
)  # fmt: skip
def test_no_line_is_longer_than_100_columns_whatever_the_text(text):
    check_lines(text, "learned")


@pytest.mark.parametrize("pos", get_args(Pos))
def test_no_line_is_longer_than_100_columns_whatever_the_positions(pos):
    check_lines("one two three four five six seven eight nine ten", pos)


def check_lines(text, pos):
    torch.manual_seed(0)
    model = GPTModel(
        {"context_length": 256, "emb_dim": 24, "n_heads": 3, "n_layers": 2, "pos": pos}
    )
    with torch.no_grad():
        model.trf_blocks[0].ff.layers[2].weight.mul_(1e6)
    for section in explain(model, gptrs.get_tokenizer("gpt2"), text, blocks=2):
        lines = format_section(section).split("\n")
        assert len(lines[0]) <= WIDTH - 4  # A number stands before it.
        assert max(map(len, lines)) <= WIDTH
        assert all(line.isprintable() for line in lines)


@pytest.mark.parametrize("text", ["日本語 😀", "żółć 🦀 漢字"])
def test_pieces_of_a_character_are_told_apart_by_their_bytes(text):
    torch.manual_seed(0)
    model = GPTModel({"context_length": 32, "emb_dim": 8, "n_heads": 2, "n_layers": 1}).eval()
    tokenizer = gptrs.get_tokenizer("gpt2")
    ids = tokenizer.encode(text)
    shown = {}
    for section in explain(model, tokenizer, text):
        if section.title == "token ids":
            shown = dict(zip(column(section, "id"), column(section, "token"), strict=True))
    assert {*shown} == {*ids[-8:]}
    assert len({*shown.values()}) == len(shown)
    assert not any("\N{REPLACEMENT CHARACTER}" in piece for piece in shown.values())
    for token, piece in shown.items():
        spelled = re.sub(
            "<0x(..)>", lambda byte: chr(0xDC00 + int(byte[1], 16)), ast.literal_eval(piece)
        )
        assert spelled.encode("utf-8", "surrogateescape") == tokenizer.decode_bytes([token])


@pytest.mark.parametrize("pos", get_args(Pos))
def test_the_model_is_left_as_it_was(pos):
    model = random_model(0, pos=pos).train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    state = torch.random.get_rng_state()
    found = [list(explain(model, TOKENIZER, "a text")) for _ in range(2)]
    assert found[0] == found[1]
    assert all(module.training for module in model.modules())
    assert not any(module._forward_hooks for module in model.modules())
    assert torch.equal(torch.random.get_rng_state(), state)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize("pos", get_args(Pos))
def test_a_model_in_bfloat16_is_explained_too(pos):
    model = random_model(0, pos=pos).bfloat16()
    assert len(sections(model, "a text")["attention weights"].rows) == 7


def test_a_text_without_tokens_or_with_too_many_is_refused():
    model = random_model(0)
    with pytest.raises(GenerationError, match="no tokens"):
        list(explain(model, TOKENIZER, ""))
    with pytest.raises(DataError, match="25 tokens, more than context_length 24"):
        list(explain(model, TOKENIZER, "a" * 25))
