"""The way of a text through a model, step by step, as it is computed.

    text ─► ids ─► embeddings ─► blocks: norm, heads, feed-forward ─► norm ─► logits ─► next token

One forward pass is watched by hooks; `explain` turns what the modules were given and what they
returned into sections, which are data: `sections` prints them. Names are the book's.
"""

# Tensor names end in their shape: T tokens, D emb_dim, H heads, K head_dim, V vocab_size.

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from functools import partial
from typing import Any

import torch
from torch import Tensor

from gptrs.eval_mode import evaluating
from gptrs.model import GPTModel, GPTOutput
from gptrs.prompts import PromptReader
from gptrs.sampling import Sampler
from gptrs.sampling_config import SamplingConfig
from gptrs.sections import WIDTH, Cell, Section, Share, cell_text

SHOWN_TOKENS = 8
SHOWN_VALUES = 5
SHOWN_BEHIND = 16
TOP = 5
# The number that a draw is made with is seen to so many parts.
_UNIFORM_PARTS = 10**6
_IN_A_BLOCK = ("norm1", "att.W_query", "att.W_key", "att.W_value", "att.out_proj", "norm2", "ff",
               "ff.layers.1")  # fmt: skip


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
        DataError: it has more than context_length.
        TokenIdError: the model does not know the tokenizer's ids.
    """
    ids = PromptReader(tokenizer).ids(text)
    way = _Way(model, tokenizer, ids, min(blocks, model.cfg.n_layers))
    yield from _of_text(way, text)
    yield from _of_embeddings(way)
    for index in range(way.num_blocks):
        yield from _of_attention(way, index)
        yield from _of_feed_forward(way, index)
    yield from _of_stream(way)
    yield from _of_logits(way)
    yield _of_draw(way, seed)


class _Way:
    """What the modules were given and returned, on the way of one text.

    Attributes:
        ids: the text's tokens; `pieces`: theirs, quoted.
        shape: of the stream, in words.
        inputs, outputs: by module name, float32 and without the batch dimension.
        attention: [H, T, T] of every block.
        logits_TV: float32.
    """

    def __init__(self, model: GPTModel, tokenizer: Any, ids: list[int], num_blocks: int) -> None:
        self.model, self.cfg, self.tokenizer = model, model.cfg, tokenizer
        self.ids, self.num_blocks = ids, num_blocks
        self.pieces = [self.piece(token) for token in ids]
        self.shape = f"[1, {len(ids)}, {self.cfg.emb_dim}]"
        self.inputs: dict[str, Tensor] = {}
        self.outputs: dict[str, Tensor] = {}
        names = ["tok_emb", "pos_emb", "drop_emb", "final_norm"]
        names += [f"trf_blocks.{index}" for index in range(self.cfg.n_layers)]
        names += [
            f"trf_blocks.{index}.{name}" for index in range(num_blocks) for name in _IN_A_BLOCK
        ]
        device = model.tok_emb.weight.device
        with ExitStack() as stack:
            stack.enter_context(evaluating(model))
            stack.enter_context(torch.no_grad())
            for name in names:
                hook = partial(self._note, name)
                stack.enter_context(model.get_submodule(name).register_forward_hook(hook))
            in_idx = torch.tensor([ids], device=device)
            output: GPTOutput = model(in_idx, return_attention=True)
        self.attention = [_plain(weights) for weights in output.attention or ()]
        self.logits_TV = _plain(output.logits)

    def piece(self, token: int) -> str:
        """A token's text, quoted."""
        return repr(self.tokenizer.decode([token]))

    def last(self, count: int) -> range:
        """The last `count` positions, or as many as there are."""
        return range(max(0, len(self.ids) - count), len(self.ids))

    def _note(self, name: str, _: object, inputs: tuple[Any, ...], output: Tensor) -> None:
        self.outputs[name] = _plain(output)
        if inputs[0].is_floating_point():
            self.inputs[name] = _plain(inputs[0])


def _of_text(way: _Way, text: str) -> Iterator[Section]:
    characters = f"{len(text):,} characters"
    yield Section(title="text", tensor=characters, formula=_cut(repr(text), WIDTH - 4))
    yield Section(
        title="token ids",
        tensor=f"in_idx [1, {len(way.ids)}]",
        formula="in_idx = tokenizer.encode(text), a batch of one",
        header=("position", "token", "id"),
        rows=[(t, _cut(way.pieces[t], 40), way.ids[t]) for t in way.last(SHOWN_TOKENS)],
        note=_left_out(way),
    )


def _of_embeddings(way: _Way) -> Iterator[Section]:
    V, N, D = way.cfg.vocab_size, way.cfg.context_length, way.cfg.emb_dim
    pos_TD = way.outputs["pos_emb"]
    yield _vectors(
        way, "token embeddings", f"tok_emb {way.shape}", way.outputs["tok_emb"],
        f"tok_emb(in_idx): each id's row of a table [{V}, {D}]; length: sqrt(sum of squares)",
    )  # fmt: skip
    yield _vectors(
        way, "positional embeddings", f"pos_emb {list(pos_TD.shape)}", pos_TD,
        f"pos_emb(arange({len(way.ids)})): each position's row of a table [{N}, {D}]",
    )  # fmt: skip
    yield _vectors(
        way, "input embeddings", f"x {way.shape}", way.outputs["drop_emb"],
        "x = tok_emb + pos_emb   (dropout changes nothing outside of training)",
    )  # fmt: skip


def _of_attention(way: _Way, index: int) -> Iterator[Section]:
    """From the block's input to its first shortcut."""
    H, K, T = way.cfg.n_heads, way.cfg.head_dim, len(way.ids)
    block = f"trf_blocks.{index}"
    x_TD = way.inputs[f"{block}.norm1"]
    yield _normed(way, f"{block}.norm1", x_TD)
    heads = {
        name: way.outputs[f"{block}.att.W_{name}"].view(T, H, K).transpose(0, 1)
        for name in ("query", "key", "value")
    }
    last = _cut(way.pieces[-1], 24)
    yield Section(
        title="queries, keys, values",
        tensor=f"{block}.att [1, {H}, {T}, {K}] each",
        formula=f"W_query(norm1), W_key(norm1), W_value(norm1), cut into {H} heads of {K}",
        header=("token", "head 0", *_value_names(K), "length"),
        rows=[(last, name, *_values(heads[name][0, -1])) for name in heads],
    )
    scores_HTT = heads["query"] @ heads["key"].transpose(1, 2) / math.sqrt(K)
    yield _who_sees_whom(
        way, "attention scores", f"{block}.att [1, {H}, {T}, {T}]", scores_HTT[0],
        f"query @ key / sqrt({K}), later tokens hidden; head 0, a row sees columns",
    )  # fmt: skip
    yield _who_sees_whom(
        way, "attention weights", f"{block}.att [1, {H}, {T}, {T}]", way.attention[index][0],
        "softmax of the scores: a row sums to 1; head 0, and all heads' mean for the last token",
        mean=way.attention[index].mean(dim=0),
    )  # fmt: skip
    yield _vectors(
        way, "context vectors", f"{block}.att {way.shape}", way.outputs[f"{block}.att.out_proj"],
        f"out_proj(weights @ value, the {H} heads side by side)",
    )  # fmt: skip
    yield _vectors(
        way, "first shortcut", f"x {way.shape}", way.inputs[f"{block}.norm2"],
        "x = x + context vectors",
    )  # fmt: skip


def _of_feed_forward(way: _Way, index: int) -> Iterator[Section]:
    """From the first shortcut to the block's end."""
    D, block = way.cfg.emb_dim, f"trf_blocks.{index}"
    yield _normed(way, f"{block}.norm2", way.inputs[f"{block}.norm2"])
    open_T = (way.inputs[f"{block}.ff.layers.1"] > 0).float().mean(dim=1)
    yield _vectors(
        way, "feed forward", f"{block}.ff {way.shape}", way.outputs[f"{block}.ff"],
        f"Linear {D} to {4 * D}, GELU, Linear {4 * D} to {D}; open: share that GELU lets through",
        extra={"open": open_T},
    )  # fmt: skip
    yield _vectors(
        way, "second shortcut", f"{block} {way.shape}", way.outputs[block],
        "x = x + feed forward: the block's output, the next one's input",
    )  # fmt: skip


def _of_stream(way: _Way) -> Iterator[Section]:
    """The stream between the blocks, and the norm at its end."""
    stream = [way.outputs["drop_emb"]]
    stream += [way.outputs[f"trf_blocks.{index}"] for index in range(way.cfg.n_layers)]
    names = ["input embeddings", *(f"trf_blocks.{index}" for index in range(way.cfg.n_layers))]
    rows: list[Sequence[Cell]] = []
    for before_TD, after_TD, name in zip([stream[0], *stream], stream, names, strict=False):
        added = (after_TD[-1] - before_TD[-1]).norm().item()
        rows.append((name, *_values(after_TD[-1]), added))
    half = SHOWN_BEHIND // 2
    is_long = len(rows) > SHOWN_BEHIND
    yield Section(
        title="all blocks",
        tensor=f"x {way.shape}",
        formula=f"{_cut(way.pieces[-1], 40)} behind each block; added: length of the block's share",
        header=("behind", *_value_names(way.cfg.emb_dim), "length", "added"),
        rows=[*rows[:half], *rows[-half:]] if is_long else rows,
        note=f"left out: {rows[half][0]} to {rows[-half - 1][0]}" if is_long else "",
    )
    yield _normed(way, "final_norm", way.inputs["final_norm"])


def _of_logits(way: _Way) -> Iterator[Section]:
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
            (_cut(way.piece(i), 40), i, logits_V[i].item(), Share(probabilities_V[i].item()))
            for i in likeliest
        ],
        note=f"the likeliest of {V:,}; by chance alone each would have {cell_text(Share(1 / V))}",
    )


def _of_draw(way: _Way, seed: int) -> Section:
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
            (how, _cut(way.piece(token), 40), token, Share(probabilities_V[token].item()))
            for how, token in (("greedy", greedy), ("drawn", drawn))
        ],
        note=f"u = {uniform:.6f} for seed {seed} at position {position}; "
        f"the drawn token reaches from {start:.6f} to {end:.6f}",
    )


def _vectors(
    way: _Way,
    title: str,
    tensor: str,
    x_TD: Tensor,
    formula: str,
    extra: dict[str, Tensor] | None = None,
) -> Section:
    """A vector for each token: the first values, and the length; columns of `extra` behind."""
    extra = extra or {}
    return Section(
        title=title,
        tensor=tensor,
        formula=formula,
        header=("token", *_value_names(x_TD.shape[1]), "length", *extra),
        rows=[
            (_cut(way.pieces[t], 14), *_values(x_TD[t]), *(x_T[t].item() for x_T in extra.values()))
            for t in way.last(SHOWN_TOKENS)
        ],
        note=_left_out(way),
    )


def _normed(way: _Way, name: str, x_TD: Tensor) -> Section:
    """A norm's output, with the mean and the standard deviation of what it was given."""
    return _vectors(
        way, "layer normalization", f"{name} {way.shape}", way.outputs[name],
        "(x - mean) / sqrt(var + 1e-5) * scale + shift, each token by itself",
        extra={"mean x": x_TD.mean(dim=1), "std x": x_TD.std(dim=1, correction=0)},
    )  # fmt: skip


def _who_sees_whom(
    way: _Way, title: str, tensor: str, x_TT: Tensor, formula: str, mean: Tensor | None = None
) -> Section:
    """A row for each token, with a column for each that it may see."""
    shown = way.last(SHOWN_TOKENS)

    def row(label: str, values: Tensor, t: int) -> list[Cell]:
        return [label, *(values[s].item() if s <= t else None for s in shown)]

    rows = [row(_cut(way.pieces[t], 14), x_TT[t], t) for t in shown]
    if mean is not None:
        rows.append(row("mean of heads", mean[-1], shown[-1]))
    header = ("token", *(_cut(way.pieces[s], 8) for s in shown))
    return Section(
        title=title, tensor=tensor, formula=formula, header=header, rows=rows, note=_left_out(way)
    )


def _plain(x: Tensor) -> Tensor:
    """A copy in float32 on the CPU, the batch of one taken off where there is one."""
    x = x.to("cpu", torch.float32, copy=True)
    return x[0] if x.ndim > 2 else x


def _value_names(width: int) -> list[str]:
    return [f"[{k}]" for k in range(min(width, SHOWN_VALUES))]


def _values(x_D: Tensor) -> list[float]:
    """A vector's first values and its length."""
    return [*x_D[:SHOWN_VALUES].tolist(), x_D.norm().item()]


def _left_out(way: _Way) -> str:
    num_tokens = len(way.ids)
    return f"the last {SHOWN_TOKENS} of {num_tokens:,} tokens" if num_tokens > SHOWN_TOKENS else ""


def _cut(text: str, width: int) -> str:
    return text if len(text) <= width else text[: width - 3] + "..."
