"""The book's instruction dataset and collate function (chapter 7), with its names and numbers.

Any DataLoader and the book's training loop take them. For many short entries in a row, and for a
loss on the responses alone, see `gptrs.training.instructions.batches`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import count
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from gptrs.data.dataset import SupportsEncode
from gptrs.errors import ConfigError, DataError
from gptrs.model.loss import IGNORE_INDEX
from gptrs.training.instructions.template import format_prompt

PAD_TOKEN_ID = 50256
"""GPT-2's `<|endoftext|>`."""


class InstructionDataset(Dataset[list[int]]):
    """The token ids of entries, each with its prompt and its response in the book's template.

    Args:
        data: entries with `instruction`, `output` and, if there is one, `input`.
        tokenizer: ours, or anything with tiktoken's `encode`.
    Raises:
        DataError: an entry has no instruction or no output.
    """

    def __init__(self, data: Sequence[Mapping[str, Any]], tokenizer: SupportsEncode) -> None:
        self.data = data
        self.encoded_texts = [tokenizer.encode(text) for text in map(_full_text, count(), data)]

    def __getitem__(self, index: int) -> list[int]:
        return self.encoded_texts[index]

    def __len__(self) -> int:
        return len(self.data)


def _full_text(number: int, entry: Mapping[str, Any]) -> str:
    try:
        text: str = format_prompt(entry) + entry["output"]
    except (AttributeError, KeyError, TypeError) as error:
        raise DataError(
            f"entry {number} is no instruction with its output: {error!r}; found {entry!r:.80}"
        ) from error
    return text


def custom_collate_fn(
    batch: Sequence[Sequence[int]],
    pad_token_id: int = PAD_TOKEN_ID,
    ignore_index: int = IGNORE_INDEX,
    allowed_max_length: int | None = None,
    device: str | torch.device = "cpu",
) -> tuple[Tensor, Tensor]:
    """Inputs and targets of a batch of texts, padded to the longest: int64 [B, T] each.

    Of a row's targets that are `pad_token_id`, the first stays: it is where the text ends. The
    others become `ignore_index`.

    Args:
        batch: token ids of texts, without an end-of-text.
        allowed_max_length: T at most; what is longer is cut.
        device: where the tensors are.
    Raises:
        DataError: the batch is empty.
        ConfigError: allowed_max_length is below 1.
    """
    if not len(batch):
        raise DataError("the batch is empty: there is nothing to put together")
    if allowed_max_length is not None and allowed_max_length < 1:
        raise ConfigError(f"allowed_max_length is at least 1, found {allowed_max_length}")
    longest = max(map(len, batch))
    ids = torch.full((len(batch), longest + 1), pad_token_id, dtype=torch.int64)
    for row, text in zip(ids, batch, strict=True):
        row[: len(text)] = torch.as_tensor(text, dtype=torch.int64)
    inputs, targets = ids[:, :-1], ids[:, 1:].clone()
    ends = targets == pad_token_id
    targets[ends & (ends.cumsum(dim=1) > 1)] = ignore_index
    length = allowed_max_length or longest
    return inputs[:, :length].contiguous().to(device), targets[:, :length].contiguous().to(device)
