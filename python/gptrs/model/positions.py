"""How tokens know their places: every kind of `GPTConfig.pos` but the learned table.

    kind                 what it does                                   where it is from
    learned              + a row of a table, per position               Radford et al. 2019
    sinusoidal           + sines and cosines of the position            Vaswani et al. 2017, 3.5
    rope                 q and k turned by angles of their positions    Su et al. 2021, 3.4.2
    alibi                score - slope * distance                       Press et al. 2022, 3
    t5                   score + a learned number per distance, head    Raffel et al. 2020, 2.1
    relative_key         q.(k + E[distance])                            Shaw et al. 2018, as in BERT
    relative_key_query   q.k + q.E[distance] + k.E[distance]            Huang et al. 2020, method 4
    transformer_xl       (q + u).k + (q + v).W_r R[distance]            Dai et al. 2019, 3.3
    none                 nothing: causal attention alone                Haviv et al. 2022

Formulas and tables only: what is added to the embeddings (`SinusoidalEmbedding`), what turns
queries and keys (`rotation`), what all layers add to their scores (`AlibiBias`, `T5Bias`), what a
layer adds by itself (`RelativeKey`, `TransformerXLKey`). Knows nothing of models, caches or masks:
numbers for tokens that a causal layer may not see are arbitrary. Nothing here is a buffer, so a
model on the meta device has only parameters to fill.
"""

# Tensor names end in their shape: B batch, T new tokens, S tokens attended to (the T are the last
# of them), H heads, K head_dim, D emb_dim.

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gptrs.config import T5_BUCKETS, T5_EXACT_DISTANCES, GPTConfig
from gptrs.model.linear import Linear

BASE = 10000.0
"""Ratio of the longest wavelength to the shortest, about: of sinusoids and of RoPE."""
RELATIVE_STD = 0.02
"""Tables of distances are drawn from N(0, 0.02), whatever the model's init: as in BERT."""


class SinusoidalEmbedding(nn.Module):
    """Fixed positions: sin(p / 10000^(2i / D)) at 2i, its cosine at 2i + 1. No end, no weights."""

    def __init__(self, emb_dim: int) -> None:
        super().__init__()
        self.emb_dim = emb_dim

    def forward(self, position_ids: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
        """Position ids, int [...], to vectors [..., emb_dim]."""
        sin, cos = _sines(position_ids, self.emb_dim)
        return torch.stack((sin, cos), dim=-1).flatten(-2).to(dtype)

    def extra_repr(self) -> str:
        """For people."""
        return f"emb_dim={self.emb_dim}"


class Rotation(NamedTuple):
    """Cosines and sines of RoPE's angles: float32 [T, K], or [B, 1, T, K]."""

    cos: Tensor
    sin: Tensor


def rotation(position_ids: Tensor, head_dim: int) -> Rotation:
    """RoPE's angles for position ids [T] or [B, T]: number i and i + K/2 of a head are a pair.

    In float32, as everywhere else: a model sees the angles that it was trained with.
    """
    exponents = torch.arange(0, head_dim, 2, device=position_ids.device, dtype=torch.float32)
    angles = position_ids[..., None].float() * (1.0 / BASE ** (exponents / head_dim))
    angles = torch.cat((angles, angles), dim=-1)
    if angles.ndim == 3:
        angles = angles[:, None]
    return Rotation(angles.cos(), angles.sin())


def rotate(x_BHTK: Tensor, turn: Rotation) -> Tensor:
    """Queries or keys, turned in float32 at least; their dtype is kept."""
    first, second = x_BHTK.chunk(2, dim=-1)
    turned_BHTK = torch.cat((-second, first), dim=-1)
    return (x_BHTK * turn.cos + turned_BHTK * turn.sin).to(x_BHTK.dtype)


class AlibiBias(nn.Module):
    """-slope * distance: a head's slopes fall by powers of two, and nothing is learned."""

    def __init__(self, n_heads: int) -> None:
        super().__init__()
        self.n_heads = n_heads

    def forward(
        self, num_queries: int, num_keys: int, starts: Tensor | None, like: Tensor
    ) -> Tensor:
        """What is added to the scores: [H, T, S]; with `starts`, as in `distances`, [B, H, T, S].

        In the dtype and on the device of `like`.
        """
        distance = distances(num_queries, num_keys, starts, like.device)
        slopes_H11 = alibi_slopes(self.n_heads, like.device)[:, None, None]
        return (-slopes_H11 * distance.unsqueeze(-3)).to(like.dtype)

    def extra_repr(self) -> str:
        """For people."""
        return f"n_heads={self.n_heads}"


def alibi_slopes(n_heads: int, device: torch.device | str = "cpu") -> Tensor:
    """float32 [H]: 2^(-8/n), 2^(-16/n), ... for n = 2^k heads; between two such, every other of 2n.

    That is the authors' rule for numbers of heads that are no power of two.
    """
    power = 2 ** int(math.log2(n_heads))
    heads = torch.arange(1, n_heads + 1, device=device, dtype=torch.float32)
    extra = 2 * (heads - power) - 1  # 1, 3, 5, ... of 2 * power heads
    return torch.where(heads <= power, -8 * heads / power, -4 * extra / power).exp2()


class T5Bias(nn.Module):
    """A learned number for each head and bucket of distances, shared by all layers.

    Sixteen buckets hold one distance each, sixteen more grow with its logarithm up to
    `max_distance`. Scores are not divided by sqrt(head_dim).
    """

    def __init__(self, n_heads: int, max_distance: int) -> None:
        super().__init__()
        self.max_distance = max_distance
        self.weight = nn.Parameter(torch.empty(T5_BUCKETS, n_heads))
        nn.init.normal_(self.weight, std=RELATIVE_STD)

    def forward(
        self, num_queries: int, num_keys: int, starts: Tensor | None, like: Tensor
    ) -> Tensor:
        """What is added to the scores: [H, T, S]; with `starts`, as in `distances`, [B, H, T, S].

        In the dtype and on the device of `like`.
        """
        buckets_S = t5_buckets(_falling(num_keys, like.device), self.max_distance)
        by_distance_HS = F.embedding(buckets_S, self.weight).t().to(like.dtype)
        by_distance = by_distance_HS[:, None].expand(-1, num_queries, -1)
        if starts is not None:
            by_distance = by_distance.expand(len(starts), -1, -1, -1)
        return to_places(by_distance, starts)

    def extra_repr(self) -> str:
        """For people."""
        buckets, heads = self.weight.shape
        return f"{buckets} buckets, n_heads={heads}, max_distance={self.max_distance}"


def t5_buckets(distance: Tensor, max_distance: int) -> Tensor:
    """The bucket of each distance, int64: 0 to 15 exactly, then by logarithm, 31 from the end."""
    exact = T5_EXACT_DISTANCES
    scale = (T5_BUCKETS - exact) / math.log(max_distance / exact)
    far = exact + ((distance.clamp(min=1).float() / exact).log() * scale).long()
    return torch.where(distance < exact, distance, far.clamp(max=T5_BUCKETS - 1))


class RelativeKey(nn.Module):
    """One layer's vectors for distances, E, shared by its heads, as in BERT.

    A causal layer looks back only: E is the half of BERT's table that it would read.

    Args:
        head_dim: K.
        num_distances: rows of E; larger distances share the last.
        with_query: add k.E as well (BERT's "relative_key_query").
    """

    def __init__(self, head_dim: int, num_distances: int, *, with_query: bool = False) -> None:
        super().__init__()
        self.with_query = with_query
        self.distance_embedding = nn.Embedding(num_distances, head_dim)
        nn.init.normal_(self.distance_embedding.weight, std=RELATIVE_STD)

    def forward(
        self, q_BHTK: Tensor, k_BHSK: Tensor, starts: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """The queries, and what is added to q.k before scaling, [B, H, T, S]."""
        num_keys = k_BHSK.shape[2]
        falling_S = _falling(num_keys, q_BHTK.device)
        last = self.distance_embedding.num_embeddings - 1
        E_SK = self.distance_embedding(falling_S.clamp(max=last))
        terms_BHTS = to_places(q_BHTK @ E_SK.t(), starts)
        if self.with_query:
            terms_BHTS = terms_BHTS + _keys_with_distances(k_BHSK, E_SK, q_BHTK.shape[2], starts)
        return q_BHTK, terms_BHTS


class TransformerXLKey(nn.Module):
    """One layer's u, v and W_r: content and distance, each with a query of its own.

    Args:
        emb_dim: D, the width of the sinusoids R.
        n_heads: H.
        max_distance: larger distances count as this one (`clamp_len`); None: all are told apart.
    """

    def __init__(self, emb_dim: int, n_heads: int, max_distance: int | None = None) -> None:
        super().__init__()
        self.emb_dim, self.n_heads, self.max_distance = emb_dim, n_heads, max_distance
        self.W_r = Linear(emb_dim, emb_dim, bias=False)
        self.u = nn.Parameter(torch.zeros(n_heads, emb_dim // n_heads))
        self.v = nn.Parameter(torch.zeros(n_heads, emb_dim // n_heads))

    def forward(
        self, q_BHTK: Tensor, k_BHSK: Tensor, starts: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """The queries plus u, and what is added to (q + u).k before scaling, [B, H, T, S]."""
        falling_S = _falling(k_BHSK.shape[2], q_BHTK.device)
        if self.max_distance is not None:
            falling_S = falling_S.clamp(max=self.max_distance)
        # Sines first, then cosines: other than in `SinusoidalEmbedding`.
        R_SD = torch.cat(_sines(falling_S, self.emb_dim), dim=-1).to(self.W_r.weight.dtype)
        r_HKS = self.W_r(R_SD).view(len(falling_S), self.n_heads, -1).permute(1, 2, 0)
        terms_BHTS = to_places((q_BHTK + self.v[:, None]) @ r_HKS, starts)
        return q_BHTK + self.u[:, None], terms_BHTS

    def extra_repr(self) -> str:
        """For people."""
        return f"max_distance={self.max_distance}"


PositionEmbedding = nn.Embedding | SinusoidalEmbedding
"""Adds a vector to each token's."""
ScoreBias = AlibiBias | T5Bias
"""Adds numbers to the scores of all layers."""
LayerPositions = RelativeKey | TransformerXLKey
"""Adds numbers to one layer's scores that depend on its queries and keys."""


def position_embedding(cfg: GPTConfig) -> PositionEmbedding | None:
    """What is added to the token embeddings."""
    if cfg.pos == "learned":
        return nn.Embedding(cfg.context_length, cfg.emb_dim)
    return SinusoidalEmbedding(cfg.emb_dim) if cfg.pos == "sinusoidal" else None


def score_bias(cfg: GPTConfig) -> ScoreBias | None:
    """What is added to the scores of all layers."""
    if cfg.pos == "t5" and cfg.num_distances is not None:
        return T5Bias(cfg.n_heads, cfg.num_distances)
    return AlibiBias(cfg.n_heads) if cfg.pos == "alibi" else None


def layer_positions(cfg: GPTConfig) -> LayerPositions | None:
    """What one layer adds to its scores."""
    if cfg.pos == "transformer_xl":
        return TransformerXLKey(cfg.emb_dim, cfg.n_heads, cfg.rel_max_distance)
    if cfg.pos.startswith("relative_key") and cfg.num_distances is not None:
        with_query = cfg.pos == "relative_key_query"
        return RelativeKey(cfg.head_dim, cfg.num_distances, with_query=with_query)
    return None


# --- Distances: token t of the new ones stands at start + t, token s at s ---


def distances(
    num_queries: int, num_keys: int, starts: Tensor | None, device: torch.device
) -> Tensor:
    """How far s lies before t, start + t - s: int64 [T, S], or [B, T, S] with `starts`.

    Args:
        starts: int64 [B], how many tokens of each row precede the new ones. None: num_keys -
            num_queries in each.
    """
    keys_S = torch.arange(num_keys, device=device)
    queries_T = torch.arange(num_queries, device=device)
    if starts is None:
        return (queries_T + (num_keys - num_queries))[:, None] - keys_S
    return (starts[:, None] + queries_T)[..., None] - keys_S


def to_places(by_distance: Tensor, starts: Tensor | None) -> Tensor:
    """Numbers by distance to numbers by place, [..., T, S] both: each row is shifted.

    Args:
        by_distance: column m is for the distance S - 1 - m.
        starts: as in `distances`; `by_distance` then is [B, H, T, S].
    """
    num_queries, num_keys = by_distance.shape[-2:]
    if starts is not None:
        distance = distances(num_queries, num_keys, starts, by_distance.device)
        columns_B1TS = (num_keys - 1 - distance).clamp(max=num_keys - 1)[:, None]
        return by_distance.gather(-1, columns_B1TS.expand(by_distance.shape))
    if num_queries == 1:
        return by_distance
    # One number before each row, then rows one shorter: row t has moved T - 1 - t to the left.
    lead = by_distance.shape[:-2]
    padded = F.pad(by_distance, (1, 0)).reshape(*lead, num_keys + 1, num_queries)
    return padded[..., 1:, :].reshape(*lead, num_queries, num_keys)


def _keys_with_distances(
    k_BHSK: Tensor, E_SK: Tensor, num_queries: int, starts: Tensor | None
) -> Tensor:
    """k[s].E[distance of t and s]: [B, H, T, S]."""
    num_keys = k_BHSK.shape[2]
    if starts is None and num_queries == 1:
        return (k_BHSK * E_SK).sum(-1)[:, :, None]
    by_distance_BHSS = k_BHSK @ E_SK.t()
    if starts is not None:
        distance = distances(num_queries, num_keys, starts, k_BHSK.device)
        columns_BST = (num_keys - 1 - distance).clamp(max=num_keys - 1).transpose(1, 2)
        shape = (*k_BHSK.shape[:3], num_queries)
        return by_distance_BHSS.gather(-1, columns_BST[:, None].expand(shape)).transpose(2, 3)
    # Rows one longer: row s has moved s to the left. Its first T columns then are the queries,
    # from the last one back.
    flat = F.pad(by_distance_BHSS.flatten(2), (0, num_keys))
    shifted_BHST: Tensor = flat.unflatten(2, (num_keys, num_keys + 1))[..., :num_queries]
    return shifted_BHST.flip(-1).transpose(2, 3)


def _falling(num_keys: int, device: torch.device) -> Tensor:
    """The distances S - 1, ..., 1, 0: int64 [S]."""
    return torch.arange(num_keys - 1, -1, -1, device=device)


def _sines(positions: Tensor, emb_dim: int) -> tuple[Tensor, Tensor]:
    """Sine and cosine of p / 10000^(2i / D), i = 0..D/2 - 1: float32 [..., D/2] each.

    The angles are float64: float32 leaves an error of 1e-4 at position 2,000.
    """
    exponents = torch.arange(0, emb_dim, 2, device=positions.device, dtype=torch.float64)
    angles = positions[..., None].double() * BASE ** (-exponents / emb_dim)
    return angles.sin().float(), angles.cos().float()
