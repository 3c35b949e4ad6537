r"""Instructions as tokens: prompt, response and end-of-text of each, and which of them count.

    prompt                          response
    Below is ... ### Response: \n   5 <|endoftext|>
    ·     ·  ·   ·   ·       ·   5   <|endoftext|>          targets; · does not count

NumPy alone: how they become batches is in `gptrs.training.instructions.batches`.
"""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from gptrs.errors import ConfigError, DataError
from gptrs.text.given_tokenizer import end_of_text_id
from gptrs.training.instructions.packing import Numbers, drawn
from gptrs.training.instructions.template import Entry, check_entries, format_prompt

Tokens = NDArray[np.integer[Any]]
LossOn = Literal["response", "all"]
"""What is learned: the responses, or, as in the book, the prompts too."""
TooLong = Literal["cut", "drop"]
_TEXTS_TOGETHER = 1 << 14
_OF_SPLIT = (1 << 64) - 2
"""An order's number that is no epoch's."""


@dataclass(frozen=True, slots=True)
class EncodedInstructions:
    """Entries as tokens, one after the other.

    Entry i has `tokens[offsets[i] : offsets[i + 1]]`. The first so many but one are inputs, and
    each one's target is the next; the first `num_masked[i]` targets do not count.
    """

    tokens: Tokens
    """uint16 or uint32 [N]."""
    offsets: Numbers
    """[number of entries + 1]."""
    num_masked: Numbers
    """[number of entries]."""
    end_of_text: int
    num_cut: int
    """How many of the entries lost their ends."""
    num_dropped: int
    """How many further entries were left out."""

    def __len__(self) -> int:
        return len(self.num_masked)

    @property
    def lengths(self) -> Numbers:
        """How many inputs, hence targets, each entry has."""
        return np.diff(self.offsets) - 1

    @property
    def num_targets(self) -> int:
        """How many targets count."""
        return int((self.lengths - self.num_masked).sum())

    @property
    def fingerprint(self) -> str:
        """By which the same entries, in the same order and encoding, are known again."""
        digest = hashlib.sha256()
        for array in (self.tokens, self.offsets, self.num_masked):
            digest.update(f"{array.dtype.str}{array.shape}".encode())
            digest.update(np.ascontiguousarray(array).data)
        return digest.hexdigest()

    def __str__(self) -> str:
        text = f"{len(self):,} instructions, {self.num_targets:,} tokens to learn"
        if self.num_cut:
            text += f"; {self.num_cut:,} too long and cut"
        return text + f"; {self.num_dropped:,} too long and dropped" * bool(self.num_dropped)


def encode_instructions(
    entries: Sequence[Mapping[str, Any]],
    tokenizer: Any,
    *,
    max_length: int,
    loss_on: LossOn = "response",
    too_long: TooLong = "cut",
) -> EncodedInstructions:
    """The tokens of entries in the book's template, an end-of-text after each.

    `<|endoftext|>` in an entry is split like any other text: data cannot forge an end.

    Args:
        entries: as `read_instructions` gives them.
        tokenizer: ours, or anything with tiktoken's `encode` and an `<|endoftext|>`.
        max_length: inputs that an entry may have. The context_length of the model, or less.
        loss_on: "response" leaves out all targets that belong to the prompt; where the response
            begins inside a token, this token counts.
        too_long: "cut" keeps the beginning of what is longer, unless nothing that counts would be
            left of it; "drop" keeps nothing.
    Raises:
        DataError: an entry has no instruction or no output, or all are too long.
        ConfigError: the tokenizer has no end-of-text, or a setting makes no sense.
    """
    end_of_text = _checked_end(tokenizer, max_length, loss_on, too_long)
    kept: list[Tokens] = []
    masked: list[int] = []
    cut = 0
    dropped: list[int] = []  # Their lengths.
    for prompt, text in _encoded(check_entries(entries), tokenizer):
        num_masked = max(0, _shared(prompt, text) - 1) if loss_on == "response" else 0
        if (is_long := len(text) > max_length) and (too_long == "drop" or num_masked >= max_length):
            dropped.append(len(text))
            continue
        cut += is_long
        kept.append(np.append(text, end_of_text)[: max_length + 1])
        masked.append(num_masked)
    if not kept:
        raise DataError(
            f"all {len(dropped):,} instructions are longer than {max_length} tokens: the shortest "
            f"has {min(dropped)}"
        )
    tokens = np.concatenate(kept)
    dtype = np.uint16 if tokens.max() <= np.iinfo(np.uint16).max else np.uint32
    offsets = np.cumsum([0, *map(len, kept)])
    return EncodedInstructions(
        tokens.astype(dtype), offsets, np.array(masked), end_of_text, cut, len(dropped)
    )


def _checked_end(tokenizer: Any, max_length: int, loss_on: str, too_long: str) -> int:
    """The tokenizer's end-of-text, if it has one and the settings make sense."""
    for name, value, kinds in (("loss_on", loss_on, LossOn), ("too_long", too_long, TooLong)):
        if value not in get_args(kinds):
            raise ConfigError(f"{name} is one of {', '.join(get_args(kinds))}; found {value!r}")
    if max_length < 1:
        raise ConfigError(f"max_length is at least 1, found {max_length}")
    end_of_text = end_of_text_id(tokenizer)
    if end_of_text is None:
        raise ConfigError(
            "the tokenizer has no <|endoftext|>: a model could not learn where a response ends; "
            f"found {tokenizer!r}"
        )
    return end_of_text


def _encoded(entries: Sequence[Mapping[str, Any]], tokenizer: Any) -> Iterator[tuple[Tokens, ...]]:
    """The ids of each entry's prompt alone, and of its prompt and response."""
    for start in range(0, len(entries), _TEXTS_TOGETHER):
        some = entries[start : start + _TEXTS_TOGETHER]
        prompts = [format_prompt(entry) for entry in some]
        texts = [prompt + entry["output"] for prompt, entry in zip(prompts, some, strict=True)]
        yield from zip(_ids(prompts, tokenizer), _ids(texts, tokenizer), strict=True)


def _ids(texts: Sequence[str], tokenizer: Any) -> Iterable[Tokens]:
    if hasattr(tokenizer, "encode_batch_to_numpy"):
        ids, offsets = tokenizer.encode_batch_to_numpy(texts, disallowed_special=())
        return np.split(ids, offsets[1:-1])
    # tiktoken's name, and ours.
    takes_special = "disallowed_special" in inspect.signature(tokenizer.encode).parameters
    options = {"disallowed_special": ()} if takes_special else {}
    return (np.array(tokenizer.encode(text, **options), dtype=np.int64) for text in texts)


def _shared(one: Tokens, other: Tokens) -> int:
    """How many tokens both begin with."""
    length = min(len(one), len(other))
    differ = np.flatnonzero(one[:length] != other[:length])
    return int(differ[0]) if len(differ) else length


def hold_out(
    entries: Sequence[Entry], fraction: float, seed: int = 0
) -> tuple[list[Entry], list[Entry]]:
    """The entries to train on, and the share of them to validate on, drawn; both in their order.

    Of each there is one at least.

    Raises:
        DataError: there are fewer than two entries.
        ConfigError: fraction is not between 0 and 1.
    """
    if not 0 < fraction < 1:
        raise ConfigError(f"the share to validate on is 0 < it < 1, found {fraction}")
    if len(entries) < 2:
        raise DataError(f"to hold some out takes two instructions at least, found {len(entries)}")
    number = min(max(1, round(fraction * len(entries))), len(entries) - 1)
    held = {*drawn(len(entries), seed, _OF_SPLIT)[:number].tolist()}
    train = [entry for place, entry in enumerate(entries) if place not in held]
    return train, [entries[place] for place in sorted(held)]
