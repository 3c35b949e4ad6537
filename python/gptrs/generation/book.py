"""The book's `generate` functions, by one call into the Rust sampling loop.

ids [B, T] ─► Rust loop ◄─► engine (Rust or PyTorch) ; new ids ─► ids [B, T + n]
"""

from __future__ import annotations

from numbers import Integral
from typing import Any, Final

import torch
from torch import Tensor, nn

from gptrs import _core
from gptrs.engines.choice import Choose, Model, make_engine
from gptrs.errors import ConfigError, GenerationError
from gptrs.model.eval_mode import grad_mode_kept
from gptrs.sampling.config import SamplingConfig
from gptrs.sampling.requests import count
from gptrs.text.given_tokenizer import check_tokenizer
from gptrs.text.tokenizer import END_OF_TEXT

_NO_ID: Final = 2**32
"""Ids are below this in every vocabulary."""


def text_to_token_ids(text: str, tokenizer: Any) -> Tensor:
    """Token ids of a text, int64 [1, T]; where `<|endoftext|>` is a special token, it is one id.

    Raises:
        ConfigError: tokenizer cannot encode; its name is not enough.
    """
    check_tokenizer(tokenizer, "encode")
    ids = tokenizer.encode(text, allowed_special={END_OF_TEXT})
    return torch.tensor(ids, dtype=torch.int64).unsqueeze(0)


def token_ids_to_text(token_ids: Tensor, tokenizer: Any) -> str:
    """The text of token ids [1, T] or [T].

    Raises:
        GenerationError: they have another shape: a batch has a text for each row.
        ConfigError: tokenizer cannot decode; its name is not enough.
    """
    check_tokenizer(tokenizer, "decode")
    if token_ids.ndim > 2 or (token_ids.ndim == 2 and len(token_ids) != 1):
        raise GenerationError(
            f"token_ids has shape {list(token_ids.shape)}, expected [1, tokens] or [tokens]"
        )
    text: str = tokenizer.decode(token_ids.flatten().tolist())
    return text


def generate_text_simple(
    model: Model, idx: Tensor, max_new_tokens: int, context_size: int
) -> Tensor:
    """The most probable next tokens, one after the other.

    Args:
        model: a GPTModel, or any callable from ids [B, T] to logits [B, T, V].
        idx: int [B, T], at least one token a row.
        max_new_tokens: how many tokens every row gets.
        context_size: the model sees this many of the newest tokens.
    Returns:
        idx and the new tokens, [B, T + max_new_tokens].
    Raises:
        ConfigError, GenerationError, TokenIdError: see `generate`.
    """
    return generate(model, idx, max_new_tokens, context_size)


def generate(
    model: Model,
    idx: Tensor,
    max_new_tokens: int,
    context_size: int,
    temperature: float = 0.0,
    top_k: int | None = None,
    eos_id: int | None = None,
) -> Tensor:
    """The book's `generate`: above temperature 0, torch's own generator draws, once a step.

    Args:
        model: a GPTModel, or any callable from ids [B, T] to logits [B, T, V].
        idx: int [B, T], at least one token a row.
        max_new_tokens: how many tokens a row gets at most.
        context_size: the model sees this many of the newest tokens.
        temperature: divides the logits; 0 takes the largest.
        top_k: draw from the k largest logits, and what ties with the k-th.
        eos_id: ends a row and is not appended; shorter rows are filled with it. One that no token
            has, such as -1, ends nothing.
    Returns:
        idx and the new tokens, [B, T + at most max_new_tokens].
    Raises:
        ConfigError: a setting is out of its range.
        GenerationError: no prompt tokens, or logits that nothing can be drawn from.
        TokenIdError: idx has an id outside the vocabulary.
        TypeError: idx is no tensor, or one of numbers with a fraction.
    """
    _check_ids(idx)
    max_new_tokens = count("max_new_tokens", _plain(max_new_tokens), 0)
    context_size = count("context_size", _plain(context_size), 1)
    end = _plain(eos_id)
    if not isinstance(end, Integral | None):
        raise ConfigError(f"eos_id is a token id or None, found {end!r}")
    SamplingConfig(temperature=temperature, top_k=top_k)
    choose = _torch_draw(temperature, top_k) if temperature > 0 else None
    # No row outgrows this, so no larger cache is needed; the window is `context_size` all the same.
    longest = max(1, idx.shape[1] + max_new_tokens)
    engine = make_engine(
        _on(model, idx.device),
        slots=max(1, len(idx)),
        context_size=min(context_size, longest),
        choose=choose,
    )
    loop = _core.Generation(engine)
    # Greedy for Rust: either there is no draw, or torch has made it.
    greedy = SamplingConfig(temperature=0.0).to_core()
    stop_ids = [int(end)] if end is not None and 0 <= int(end) < _NO_ID else []
    for row, prompt in enumerate(idx.tolist()):
        loop.submit(
            prompt,
            max_new_tokens=max_new_tokens,
            window=context_size,
            sampling=greedy,
            stop_ids=stop_ids,
            row=row,
        )
    rows = [tokens for tokens, *_ in grad_mode_kept(loop.run)]
    longest = max(map(len, rows), default=0)
    # Rows differ in length only where eos_id ended one.
    filled = [row + [*stop_ids, 0][:1] * (longest - len(row)) for row in rows]
    new = torch.tensor(filled, dtype=idx.dtype, device=idx.device).view(len(idx), longest)
    return torch.cat((idx, new), dim=1)


def _check_ids(idx: object) -> None:
    if not isinstance(idx, Tensor):
        raise TypeError(f"idx is a tensor of ids [batch, tokens], found {type(idx).__name__}")
    if idx.ndim != 2:
        raise GenerationError(f"idx has shape {list(idx.shape)}, expected [batch, tokens]")
    if idx.is_floating_point() or idx.is_complex() or idx.dtype == torch.bool:
        raise TypeError(f"idx has ids, which are whole numbers, found {idx.dtype}")


def _plain(number: Any) -> Any:
    """What a tensor of one number holds; anything else as it is."""
    return number.item() if isinstance(number, Tensor) and number.ndim == 0 else number


def _on(model: Model, device: torch.device) -> Model:
    """`model`, called with ids where the caller's are; a module's are where its weights are."""
    if device.type == "cpu" or isinstance(model, nn.Module):
        return model
    return lambda ids: model(ids.to(device))


def _torch_draw(temperature: float, top_k: int | None) -> Choose:
    """The book's filter and draw, for a batch of any size."""

    def choose(logits_NV: Tensor) -> Tensor:
        if top_k is not None:
            largest = torch.topk(logits_NV, min(top_k, logits_NV.shape[-1])).values
            logits_NV = logits_NV.masked_fill(logits_NV < largest[:, -1:], -torch.inf)
        probs_NV = torch.softmax(logits_NV / temperature, dim=-1)
        if probs_NV.isnan().any():
            raise GenerationError("the logits have NaN or inf, or nothing but -inf")
        return torch.multinomial(probs_NV, num_samples=1)

    return choose
