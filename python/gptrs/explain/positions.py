"""How a text's tokens know their places, in sections: each kind of `GPTConfig.pos`.

    at the start      learned, sinusoidal: vectors that are added      alibi, t5: what scores get
    in each block     rope: queries turned     relative_key, transformer_xl: scores of distances

Formulas are those of `positions`, and so are the values.
"""

# Tensor names end in their shape: T tokens, H heads, K head_dim.

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from gptrs.explain.sections import Section
from gptrs.explain.way import SHOWN_TOKENS, SHOWN_VALUES, Way, cut, left_out, vectors, who_sees_whom
from gptrs.model.positions import BASE, rotate, rotation

_ELSEWHERE = {
    "rope": "no vectors are added: each block turns queries and keys by their positions",
    "relative_key": "no vectors are added: each block's scores depend on distances",
    "relative_key_query": "no vectors are added: each block's scores depend on distances",
    "transformer_xl": "no vectors are added: each block's scores depend on distances",
    "none": "nothing is added: that a token sees those before it is all there is to know places by",
}
_SCORE_BIAS = {
    "alibi": "-slope * distance, for all blocks; head 0, a row sees columns",
    "t5": "weight[bucket of the distance], learned, for all blocks; head 0, a row sees columns",
}
_DISTANCES = {
    "relative_key": "query @ E[distance] * scale; head 0, a row sees columns",
    "relative_key_query": "(query @ E[distance] + key @ E[distance]) * scale; head 0, a row sees "
    "columns",
    "transformer_xl": "(query + v) @ W_r(R[distance]) * scale, R sines and cosines; head 0, a row "
    "sees columns",
}
_SCORES = {
    "rope": "turned query @ turned key * scale",
    "alibi": "query @ key * scale + pos_bias",
    "t5": "query @ key + pos_bias",
    "relative_key": "query @ key * scale + distances' scores",
    "relative_key_query": "query @ key * scale + distances' scores",
    "transformer_xl": "(query + u) @ key * scale + distances' scores",
}


class Scores(NamedTuple):
    """What a block's queries and keys come to."""

    scores_HTT: Tensor
    formula: str


def positional_vectors(way: Way) -> Section:
    """What tokens get to know their places by before the first block."""
    pos, T, N, D = way.cfg.pos, len(way.ids), way.cfg.context_length, way.cfg.emb_dim
    if pos in _SCORE_BIAS:
        bias_HTT = way.outputs["pos_bias"]
        tensor = f"pos_bias {list(bias_HTT.shape)}"
        return who_sees_whom(way, "positions", tensor, bias_HTT[0], _SCORE_BIAS[pos])
    if pos in _ELSEWHERE:
        return Section(title="positions", tensor=f'pos="{pos}"', formula=_ELSEWHERE[pos])
    formula = f"pos_emb(arange({T})): "
    formula += (
        f"each position's row of a table [{N}, {D}]"
        if pos == "learned"
        else f"[2i] sin(position / {BASE:.0f}^(2i / {D})), [2i + 1] its cosine; not learned"
    )
    pos_TD = way.outputs["pos_emb"]
    title = "positional embeddings"
    return vectors(way, title, f"pos_emb {list(pos_TD.shape)}", pos_TD, formula)


def input_formula(way: Way) -> str:
    """How the first block's input is made."""
    added = " + pos_emb" if "pos_emb" in way.outputs else ""
    return f"x = tok_emb{added}   (dropout changes nothing outside of training)"


def positions_in_block(way: Way, index: int, heads: dict[str, Tensor]) -> Iterator[Section]:
    """What one block does with places; nothing with most kinds.

    Args:
        heads: "query" and "key", [H, T, K] each.
    """
    block, pos = f"trf_blocks.{index}", way.cfg.pos
    if pos == "rope":
        yield _turned(way, block, heads["query"])
        yield _of_distances_alone(way, block, heads["query"][0, -1], heads["key"][0, -1])
    if pos in _DISTANCES:
        terms_HTT = way.outputs[f"{block}.att.positions"] * _scale(way, index)
        tensor = f"{block}.att.positions {[1, *terms_HTT.shape]}"
        formula = _in_words(_DISTANCES[pos], way)
        yield who_sees_whom(way, "scores of distances", tensor, terms_HTT[0], formula)


def scores(way: Way, index: int, heads: dict[str, Tensor]) -> Scores:
    """A block's scores, before later tokens are hidden, and how they are computed."""
    block, pos, scale = f"trf_blocks.{index}", way.cfg.pos, _scale(way, index)
    q_HTK, k_HTK = heads["query"], heads["key"]
    if pos == "rope":
        turn = rotation(torch.arange(len(way.ids)), way.cfg.head_dim)
        q_HTK, k_HTK = rotate(q_HTK, turn), rotate(k_HTK, turn)
    if pos in _DISTANCES:
        q_HTK = way.queries[f"{block}.att.positions"]
    scores_HTT = q_HTK @ k_HTK.transpose(1, 2) * scale
    if pos in _SCORE_BIAS:
        scores_HTT = scores_HTT + way.outputs["pos_bias"]
    if pos in _DISTANCES:
        scores_HTT = scores_HTT + way.outputs[f"{block}.att.positions"] * scale
    return Scores(scores_HTT, _in_words(_SCORES.get(pos, "query @ key * scale"), way))


def _turned(way: Way, block: str, q_HTK: Tensor) -> Section:
    """Angles, and queries that keep their lengths."""
    H, T, K = q_HTK.shape
    angles = torch.arange(T)[:, None] / BASE ** (torch.arange(0, K, 2) / K)
    turned_TK = rotate(q_HTK[0], rotation(torch.arange(T), K))
    pairs = range(min(K // 2, SHOWN_VALUES))
    return Section(
        title="turned queries",
        tensor=f"{block}.att [1, {H}, {T}, {K}]",
        formula=f"the pair [i], [i + {K // 2}] of a query or key is turned by position / "
        f"{BASE:.0f}^(2i / {K}); head 0",
        header=("token", "position", *(f"angle {i}" for i in pairs), "length", "turned"),
        rows=[
            (
                cut(way.pieces[t], 14), t, *angles[t, : len(pairs)].tolist(),
                q_HTK[0, t].norm().item(), turned_TK[t].norm().item(),
            )
            for t in way.last(SHOWN_TOKENS)
        ],
        note=left_out(way),
    )  # fmt: skip


def _of_distances_alone(way: Way, block: str, q_K: Tensor, k_K: Tensor) -> Section:
    """The same query and key, as far from each other at two places."""
    T, K = len(way.ids), len(q_K)
    distances = torch.arange(min(T, SHOWN_TOKENS))

    def products(position: int) -> Tensor:
        turned_K = rotate(q_K[None], rotation(torch.tensor([position]), K))[0]
        return rotate(k_K.expand(len(distances), K), rotation(position - distances, K)) @ turned_K

    here, there = T - 1, 2 * T
    return Section(
        title="only distances count",
        tensor=f"{block}.att",
        formula="turned query @ turned key: the last token's, if its key stood so far before it; "
        "head 0",
        header=("distance", f"query at {here}", f"query at {there}"),
        rows=list(
            zip(distances.tolist(), products(here).tolist(), products(there).tolist(), strict=True)
        ),
    )


def _in_words(formula: str, way: Way) -> str:
    return formula.replace("* scale", f"/ sqrt({way.cfg.head_dim})")


def _scale(way: Way, index: int) -> float:
    attention: Any = way.model.get_submodule(f"trf_blocks.{index}.att")
    return float(attention.scale)
