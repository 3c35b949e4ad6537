"""What pictures show of a model and a text: arrays and strings, which `plots` draws.

text ─► one watched forward pass (`way`) ─┬─► inputs: tokens + positions
                                          ├─► attention maps
                                          ├─► the logit lens: what each layer would say
                                          └─► the next token, sampling step by step
model ─► what its positions are, or add to the scores by distance
"""

# Tensor names end in their shape: L layers, H heads, T tokens, D emb_dim, V vocab_size, N positions
# or distances, K head_dim.

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from gptrs.errors import ConfigError
from gptrs.explain.way import Way
from gptrs.model.eval_mode import evaluating
from gptrs.model.gpt import GPTModel
from gptrs.model.positions import SinusoidalEmbedding, rotate, rotation
from gptrs.plots import token_label
from gptrs.sampling.config import SamplingConfig
from gptrs.sampling.sampler import Sampler
from gptrs.text.prompts import PromptReader, known_ids

if TYPE_CHECKING:
    import numpy.typing as npt

    Array = npt.NDArray[np.float32]

ADDED_TO_EMBEDDINGS = ("learned", "sinusoidal")
"""The kinds of `GPTConfig.pos` that have a vector for each position."""
NEED_A_TEXT = ("relative_key", "relative_key_query", "transformer_xl")
"""The kinds whose scores by distance depend on queries."""
# What they would do without a step that switches them on.
_NO_STEPS = ("seed", "eos_token_id")


@dataclass(frozen=True, slots=True)
class Inputs:
    """What the first block is given, as two parts."""

    labels: list[str]
    tokens: Array
    """float32 [T, D]."""
    positions: Array
    """float32 [T, D]."""


@dataclass(frozen=True, slots=True)
class Attention:
    """Attention weights of a text."""

    labels: list[str]
    weights: Array
    """float32 [L, H, T, T], of the layers and heads that were asked for."""


@dataclass(frozen=True, slots=True)
class Lens:
    """What each layer would say behind each token."""

    labels: list[str]
    guesses: list[list[str]]
    """[L + 1][T], the embeddings' first."""
    probabilities: Array
    """float32 [L + 1, T], of the guesses."""


@dataclass(frozen=True, slots=True)
class NextToken:
    """The distribution of the token behind a text, sampling step by step."""

    steps: dict[str, Array]
    """What was done, and float32 [V] after it."""
    ids: list[int]
    """The likeliest tokens, the likeliest first."""
    labels: list[str]


def token_labels(tokenizer: Any, ids: Sequence[int]) -> list[str]:
    """Each token as `token_label` shows it: of any tokenizer with `decode_bytes` or `decode`.

    Ids that only the model has are shown as numbers.
    """
    decode = getattr(tokenizer, "decode_bytes", tokenizer.decode)
    known = known_ids(tokenizer)
    return [token_label(decode([token])) if token in known else f"<{token}>" for token in ids]


def token_vectors(model: GPTModel, ids: Sequence[int]) -> Array:
    """The rows of a model's token embeddings: float32 [N, D]."""
    weight = model.tok_emb.weight.detach()
    return _array(weight[list(ids)])


def inputs_of(model: GPTModel, tokenizer: Any, text: str) -> Inputs:
    """Token embeddings and positional embeddings of a text.

    Raises:
        ConfigError: the model's positions are no vectors that are added.
        DataError, GenerationError: the text is too long, or has no tokens.
    """
    if model.cfg.pos not in ADDED_TO_EMBEDDINGS:
        raise ConfigError(
            f'pos is "{model.cfg.pos}": no vectors are added to the tokens\'; '
            f"{' and '.join(ADDED_TO_EMBEDDINGS)} have some"
        )
    way = _way(model, tokenizer, text)
    positions_TD = way.outputs["pos_emb"]
    return Inputs(
        token_labels(tokenizer, way.ids), way.outputs["tok_emb"].numpy(), positions_TD.numpy()
    )


def attention_of(
    model: GPTModel,
    tokenizer: Any,
    text: str,
    *,
    layer: int | None = None,
    head: int | None = None,
) -> Attention:
    """The attention weights of a text: of all layers and heads, or of one; both count from 0.

    Raises:
        ConfigError: there is no such layer or head.
        DataError, GenerationError: the text is too long, or has no tokens.
    """
    layers = _one_of("layer", layer, model.cfg.n_layers)
    heads = _one_of("head", head, model.cfg.n_heads)
    way = _way(model, tokenizer, text)
    weights_LHTT = torch.stack([way.attention[index] for index in layers])[:, list(heads)]
    return Attention(token_labels(tokenizer, way.ids), weights_LHTT.numpy())


def logit_lens(model: GPTModel, tokenizer: Any, text: str) -> Lens:
    """`out_head(final_norm(x))` of the stream behind each block: nostalgebraist's logit lens, 2020.

    The last row is what the model does say.

    Raises:
        DataError, GenerationError: the text is too long, or has no tokens.
    """
    way = _way(model, tokenizer, text)
    names = ["drop_emb", *(f"trf_blocks.{index}" for index in range(model.cfg.n_layers))]
    guesses, probabilities = [], []
    with evaluating(model), torch.no_grad():
        for name in names:
            x_TD = way.outputs[name].to(model.tok_emb.weight)
            logits_TV: Tensor = model.out_head(model.final_norm(x_TD))
            best = logits_TV.float().softmax(dim=-1).max(dim=-1)
            guesses.append(token_labels(tokenizer, best.indices.tolist()))
            probabilities.append(best.values.cpu().numpy())
    return Lens(token_labels(tokenizer, way.ids), guesses, np.stack(probabilities))


def next_token_of(
    model: GPTModel, tokenizer: Any, text: str, config: SamplingConfig, *, shown: int = 15
) -> NextToken:
    """The next token's distribution: the model's own, then after each setting of `config`.

    Args:
        shown: how many of the likeliest tokens to name.
    Raises:
        DataError, GenerationError: the text is too long, or has no tokens.
    """
    way = _way(model, tokenizer, text)
    steps = sampling_steps(way.logits_TV[-1].numpy(), config, prompt=way.ids)
    first, *_ = steps.values()
    ids = np.argsort(-first, kind="stable")[:shown].tolist()
    return NextToken(steps, ids, token_labels(tokenizer, ids))


def sampling_steps(
    logits_V: Array, config: SamplingConfig, *, prompt: Sequence[int] = ()
) -> dict[str, Array]:
    """The distributions that a Sampler draws from as its settings come one after the other.

    Only the settings that are on; in the order in which they work, as `SamplingConfig` lists them.

    Args:
        logits_V: the model's, float32 [V].
        prompt: the ids that penalties and n-grams look at.
    Returns:
        What was done, e.g. "top_k 40", and float32 [V] after it; "the model" is the first.
    """
    so_far = SamplingConfig(eos_token_id=config.eos_token_id, seed=0)
    steps = {"the model": so_far}
    for field in fields(SamplingConfig):
        value = getattr(config, field.name)
        if field.name in _NO_STEPS or value == getattr(so_far, field.name):
            continue
        so_far = replace(so_far, **{field.name: value})
        shown = f" {value:g}" if isinstance(value, int | float) else ""
        steps[f"{field.name}{shown}"] = so_far
    history: list[Any] = [(list(prompt), [])]
    return {
        name: Sampler(settings).probabilities(logits_V[None], history=history)[0]
        for name, settings in steps.items()
    }


def position_vectors(model: GPTModel) -> Array:
    """What a model adds to the tokens' embeddings: float32 [context_length, D].

    Raises:
        ConfigError: nothing is added.
    """
    if isinstance(model.pos_emb, nn.Embedding):
        return _array(model.pos_emb.weight.detach())
    if isinstance(model.pos_emb, SinusoidalEmbedding):
        return _array(model.pos_emb(torch.arange(model.cfg.context_length)))
    raise ConfigError(f'pos is "{model.cfg.pos}": it has no vector for a position')


def position_scores(
    model: GPTModel, tokenizer: Any = None, text: str | None = None, *, layer: int = 0
) -> Array:
    """What a model's positions add to the scores of a token so far back: float32 [H, N].

    - alibi and t5: the numbers themselves, the same in all layers.
    - relative_key, relative_key_query, transformer_xl: depend on what is asked, so the mean over
      the tokens of a text, in one layer.
    - rope adds nothing: the product of two equal vectors, turned so far apart, as a share of what
      it is side by side; the same for all heads, so H is 1.

    Args:
        text: for the kinds that need one; N then is the number of its tokens, else context_length.
    Raises:
        ConfigError: the kind needs a text and there is none, or has no such scores, or there is no
            such layer.
        DataError, GenerationError: the text is too long, or has no tokens.
    """
    cfg = model.cfg
    _one_of("layer", layer, cfg.n_layers)
    if cfg.pos == "rope":
        ones_K = torch.ones(1, cfg.head_dim)
        turned_NK = rotate(ones_K, rotation(torch.arange(cfg.context_length), cfg.head_dim))
        return _array(turned_NK.mean(dim=1)[None])
    if model.pos_bias is not None:
        with torch.no_grad():
            bias_H1N = model.pos_bias(1, cfg.context_length, None, model.tok_emb.weight)
        return _array(bias_H1N[:, 0].flip(-1))  # The last key is the token itself.
    if cfg.pos not in NEED_A_TEXT:
        raise ConfigError(f'pos is "{cfg.pos}": it adds nothing to the scores')
    if not text:
        raise ConfigError(f'pos is "{cfg.pos}": its scores depend on the queries of a text')
    way = Way(model, tokenizer, PromptReader(tokenizer).ids(text), layer + 1)
    terms_HTT = way.outputs[f"trf_blocks.{layer}.att.positions"]
    attention: Any = model.get_submodule(f"trf_blocks.{layer}.att")
    means = [terms_HTT.diagonal(-distance, 1, 2).mean(dim=-1) for distance in range(len(way.ids))]
    return _array(torch.stack(means, dim=1) * attention.scale)


def _way(model: GPTModel, tokenizer: Any, text: str) -> Way:
    return Way(model, tokenizer, PromptReader(tokenizer).ids(text), num_blocks=0)


def _array(x: Tensor) -> Array:
    array: Array = x.float().cpu().numpy()
    return array


def _one_of(what: str, number: int | None, count: int) -> Sequence[int]:
    """This one, or all."""
    if number is None:
        return range(count)
    if not 0 <= number < count:
        raise ConfigError(f"{what} {number} was asked for; there are {count}, counted from 0")
    return [number]
