"""The way of a text through a model, step by step, as it is computed.

    text ─► ids ─► embeddings ─► blocks: norm, heads, feed-forward ─► norm ─► logits ─► next token

`way` watches one forward pass; `explain` turns what its modules were given and what they returned
into sections, which are data: `sections` prints them. Places are told by `explain_positions`. Names
are the book's.
"""

# Tensor names end in their shape: T tokens, D emb_dim, H heads, K head_dim, V vocab_size.

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch

from gptrs.explain.positions import input_formula, positional_vectors, positions_in_block, scores
from gptrs.explain.sections import WIDTH, Cell, Section, Share, cell_text
from gptrs.explain.way import (
    SHOWN_TOKENS,
    Way,
    cut,
    left_out,
    normed,
    value_names,
    values,
    vectors,
    who_sees_whom,
)
from gptrs.model.gpt import GPTModel
from gptrs.sampling.config import SamplingConfig
from gptrs.sampling.sampler import Sampler
from gptrs.text.prompts import PromptReader

SHOWN_BEHIND = 16
TOP = 5
# The number that a draw is made with is seen to so many parts.
_UNIFORM_PARTS = 10**6


def explain(
    model: GPTModel, tokenizer: Any, text: str, seed: int = 0, blocks: int = 1
) -> Iterator[Section]:
    """The steps from `text` to the token after it.

    Args:
        tokenizer: the model's; anything with `encode` and `decode`.
        seed: of the draw. The token is the one that a Generator draws with this seed and
            temperature 1.
        blocks: how many blocks to look into, from the first; of the others, the result alone.
    Raises:
        GenerationError: the text has no tokens, or the logits are not finite.
        DataError: it has more than the model takes.
        TokenIdError: the model does not know the tokenizer's ids.
    """
    ids = PromptReader(tokenizer).ids(text)
    way = Way(model, tokenizer, ids, min(blocks, model.cfg.n_layers))
    yield from _of_text(way, text)
    yield from _of_embeddings(way)
    for index in range(way.num_blocks):
        yield from _of_attention(way, index)
        yield from _of_feed_forward(way, index)
    yield from _of_stream(way)
    yield from _of_logits(way)
    yield _of_draw(way, seed)


def _of_text(way: Way, text: str) -> Iterator[Section]:
    characters = f"{len(text):,} characters"
    yield Section(title="text", tensor=characters, formula=cut(repr(text), WIDTH - 4))
    yield Section(
        title="token ids",
        tensor=f"in_idx [1, {len(way.ids)}]",
        formula="in_idx = tokenizer.encode(text), a batch of one",
        header=("position", "token", "id"),
        rows=[(t, cut(way.pieces[t], 40), way.ids[t]) for t in way.last(SHOWN_TOKENS)],
        note=left_out(way),
    )


def _of_embeddings(way: Way) -> Iterator[Section]:
    V, D = way.cfg.vocab_size, way.cfg.emb_dim
    yield vectors(
        way, "token embeddings", f"tok_emb {way.shape}", way.outputs["tok_emb"],
        f"tok_emb(in_idx): each id's row of a table [{V}, {D}]; length: sqrt(sum of squares)",
    )  # fmt: skip
    yield positional_vectors(way)
    yield vectors(
        way, "input embeddings", f"x {way.shape}", way.outputs["drop_emb"],
        input_formula(way),
    )  # fmt: skip


def _of_attention(way: Way, index: int) -> Iterator[Section]:
    """From the block's input to its first shortcut."""
    H, K, T = way.cfg.n_heads, way.cfg.head_dim, len(way.ids)
    block = f"trf_blocks.{index}"
    x_TD = way.inputs[f"{block}.norm1"]
    yield normed(way, f"{block}.norm1", x_TD)
    heads = {
        name: way.outputs[f"{block}.att.W_{name}"].view(T, H, K).transpose(0, 1)
        for name in ("query", "key", "value")
    }
    last = cut(way.pieces[-1], 24)
    yield Section(
        title="queries, keys, values",
        tensor=f"{block}.att [1, {H}, {T}, {K}] each",
        formula=f"W_query(norm1), W_key(norm1), W_value(norm1), cut into {H} heads of {K}",
        header=("token", "head 0", *value_names(K), "length"),
        rows=[(last, name, *values(heads[name][0, -1])) for name in heads],
    )
    yield from positions_in_block(way, index, heads)
    scores_HTT, formula = scores(way, index, heads)
    yield who_sees_whom(
        way, "attention scores", f"{block}.att [1, {H}, {T}, {T}]", scores_HTT[0],
        f"{formula}, later tokens hidden; head 0, a row sees columns",
    )  # fmt: skip
    yield who_sees_whom(
        way, "attention weights", f"{block}.att [1, {H}, {T}, {T}]", way.attention[index][0],
        "softmax of the scores: a row sums to 1; head 0, and all heads' mean for the last token",
        mean=way.attention[index].mean(dim=0),
    )  # fmt: skip
    yield vectors(
        way, "context vectors", f"{block}.att {way.shape}", way.outputs[f"{block}.att.out_proj"],
        f"out_proj(weights @ value, the {H} heads side by side)",
    )  # fmt: skip
    yield vectors(
        way, "first shortcut", f"x {way.shape}", way.inputs[f"{block}.norm2"],
        "x = x + context vectors",
    )  # fmt: skip


def _of_feed_forward(way: Way, index: int) -> Iterator[Section]:
    """From the first shortcut to the block's end."""
    D, block = way.cfg.emb_dim, f"trf_blocks.{index}"
    yield normed(way, f"{block}.norm2", way.inputs[f"{block}.norm2"])
    open_T = (way.inputs[f"{block}.ff.layers.1"] > 0).float().mean(dim=1)
    yield vectors(
        way, "feed forward", f"{block}.ff {way.shape}", way.outputs[f"{block}.ff"],
        f"Linear {D} to {4 * D}, GELU, Linear {4 * D} to {D}; open: share that GELU lets through",
        extra={"open": open_T},
    )  # fmt: skip
    yield vectors(
        way, "second shortcut", f"{block} {way.shape}", way.outputs[block],
        "x = x + feed forward: the block's output, the next one's input",
    )  # fmt: skip


def _of_stream(way: Way) -> Iterator[Section]:
    """The stream between the blocks, and the norm at its end."""
    stream = [way.outputs["drop_emb"]]
    stream += [way.outputs[f"trf_blocks.{index}"] for index in range(way.cfg.n_layers)]
    names = ["input embeddings", *(f"trf_blocks.{index}" for index in range(way.cfg.n_layers))]
    rows: list[Sequence[Cell]] = []
    for before_TD, after_TD, name in zip([stream[0], *stream], stream, names, strict=False):
        added = (after_TD[-1] - before_TD[-1]).norm().item()
        rows.append((name, *values(after_TD[-1]), added))
    half = SHOWN_BEHIND // 2
    is_long = len(rows) > SHOWN_BEHIND
    yield Section(
        title="all blocks",
        tensor=f"x {way.shape}",
        formula=f"{cut(way.pieces[-1], 40)} behind each block; added: length of the block's share",
        header=("behind", *value_names(way.cfg.emb_dim), "length", "added"),
        rows=[*rows[:half], *rows[-half:]] if is_long else rows,
        note=f"left out: {rows[half][0]} to {rows[-half - 1][0]}" if is_long else "",
    )
    yield normed(way, "final_norm", way.inputs["final_norm"])


def _of_logits(way: Way) -> Iterator[Section]:
    V, D, T = way.cfg.vocab_size, way.cfg.emb_dim, len(way.ids)
    logits_V = way.logits_TV[-1]
    probabilities_V = logits_V.double().softmax(dim=0)
    likeliest = logits_V.topk(min(TOP, V)).indices.tolist()
    yield Section(
        title="logits",
        tensor=f"logits [1, {T}, {V}]",
        formula=f"out_head(final_norm): Linear {D} to {V}; the last row is about the next token",
        header=("of the last row", ""),
        rows=[
            ("largest", logits_V.max().item()),
            ("mean", logits_V.mean().item()),
            ("smallest", logits_V.min().item()),
        ],
    )
    yield Section(
        title="probabilities",
        tensor=f"probas [{V}]",
        formula="softmax(logits[0, -1]): exp(logit) / sum of exp(logits)",
        header=("next token", "id", "logit", "probability"),
        rows=[
            (cut(way.piece(i), 40), i, logits_V[i].item(), Share(probabilities_V[i].item()))
            for i in likeliest
        ],
        note=f"the likeliest of {V:,}; by chance alone each would have {cell_text(Share(1 / V))}",
    )


def _of_draw(way: Way, seed: int) -> Section:
    """The next token, taken both ways."""
    last_logits, position = way.logits_TV[-1:], len(way.ids)
    probabilities_V = last_logits[0].double().softmax(dim=0)
    greedy = int(Sampler(SamplingConfig(temperature=0.0))(last_logits)[0])
    sampler = Sampler(SamplingConfig(seed=seed))
    drawn = int(sampler(last_logits, sequences=[0], positions=[position])[0])
    # Among equal chances a draw takes the one at the uniform number's place.
    parts = sampler(torch.zeros(1, _UNIFORM_PARTS), sequences=[0], positions=[position])
    uniform = int(parts[0]) / _UNIFORM_PARTS
    end = probabilities_V[: drawn + 1].sum().item()
    start = end - probabilities_V[drawn].item()
    return Section(
        title="the next token",
        formula="greedy: the largest probability. drawn: all side by side in the order of ids, the "
        "one at u",
        header=("", "next token", "id", "probability"),
        rows=[
            (how, cut(way.piece(token), 40), token, Share(probabilities_V[token].item()))
            for how, token in (("greedy", greedy), ("drawn", drawn))
        ],
        note=f"u = {uniform:.6f} for seed {seed} at position {position}; "
        f"the drawn token reaches from {start:.6f} to {end:.6f}",
    )
