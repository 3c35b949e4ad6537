"""The book's dataset and loader over one token array: Rust copies the windows a batch asks for.

    txt ─► tokenizer ─► tokens [N], one NumPy array ─► windows (arithmetic) ─► int64 batches
    a TokenStore, on disk ──────────────────────────┘

Where the book keeps two tensors a window, this keeps the tokens alone. Order and draws are the
DataLoader's own, so they are the book's.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, overload, runtime_checkable

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, default_collate

from gptrs import _core
from gptrs.errors import ConfigError, DataError, StoreError
from gptrs.store.token_store import BIN_SUFFIXES, TokenStore
from gptrs.text.given_tokenizer import check_tokenizer
from gptrs.text.named_tokenizers import get_tokenizer
from gptrs.text.tokenizer import END_OF_TEXT, Tokenizer

if TYPE_CHECKING:
    from numpy.typing import NDArray

# Linux refuses longer paths; a text beyond it was never meant as one.
_LONGEST_PATH = 4096


@runtime_checkable
class SupportsEncode(Protocol):
    """A tokenizer, ours or a `tiktoken.Encoding`."""

    def encode(self, text: str, *, allowed_special: Any = ...) -> list[int]:
        """Token ids of a text, in which the allowed special tokens are one id each."""


class GPTDatasetV1(Dataset[tuple[Tensor, Tensor]]):
    """The (input, target) windows of a text; target is the input one token later.

    Window i is tokens i * stride .. i * stride + max_length; there are
    ceil((N - max_length) / stride) of them, as many as the book's range has steps.

    Args:
        txt: the text itself, never a path. `<|endoftext|>` in it is the special token, if the
            tokenizer has it.
        tokenizer: ours, or anything with tiktoken's `encode`.
        max_length: tokens a window.
        stride: tokens from one window's start to the next.
    Raises:
        DataError: the text is shorter than one window, or the tokenizer's ids are no token ids.
        ConfigError: max_length or stride is below 1, or tokenizer cannot encode, as a name cannot.
        TypeError: txt is not a str.
    """

    tokenizer: SupportsEncode | None
    """What made the tokens; None where they were given."""

    def __init__(self, txt: str, tokenizer: SupportsEncode, max_length: int, stride: int) -> None:
        _refuse_paths(txt)
        check_tokenizer(tokenizer, "encode")
        self.tokenizer = tokenizer
        self._set_windows(_encode(txt, tokenizer), max_length, stride)

    @classmethod
    def from_tokens(
        cls, tokens: NDArray[Any] | TokenStore, max_length: int, stride: int
    ) -> GPTDatasetV1:
        """The same over token ids, kept and not copied: uint16 or uint32 [N], or a store.

        With a store the dataset travels to other processes by the store's path.
        """
        dataset = cls.__new__(cls)
        dataset.tokenizer = None
        dataset._set_windows(tokens, max_length, stride)
        return dataset

    def _set_windows(self, tokens: NDArray[Any] | TokenStore, max_length: int, stride: int) -> None:
        self.tokens = tokens
        self.max_length = max_length
        self.stride = stride
        self._windows = _windows(tokens, max_length, stride)
        if len(self) == 0:
            whose = "store" if isinstance(tokens, TokenStore) else "text"
            raise DataError(
                f"the {whose} has {len(tokens)} tokens; one window of max_length {max_length} and "
                f"its target need at least {max_length + 1}"
            )

    @property
    def input_ids(self) -> Sequence[Tensor]:
        """The inputs, int64 [max_length] each, indexed as the book's list is."""
        return _Column(self, 0)

    @property
    def target_ids(self) -> Sequence[Tensor]:
        """The targets, int64 [max_length] each, indexed as the book's list is."""
        return _Column(self, 1)

    def __len__(self) -> int:
        return len(self._windows)

    def __getitem__(self, idx: int) -> tuple[Tensor, Tensor]:
        """Window `idx` and its target, int64 [max_length] each; negative counts from the end.

        Raises:
            WindowError: there is no such window.
        """
        inputs, targets = self.fill([idx])
        return inputs[0], targets[0]

    def __getitems__(self, indices: list[int]) -> WindowBatch:
        """What a DataLoader asks for: a sequence of pairs that `collate_windows` takes whole."""
        return WindowBatch(self, indices)

    def fill(self, indices: Sequence[int] | NDArray[np.int64]) -> tuple[Tensor, Tensor]:
        """Inputs and targets of several windows, int64 [B, max_length] each, by one call into Rust.

        Raises:
            WindowError: there is no such window.
        """
        index = np.array(indices, dtype=np.int64)
        inputs = torch.empty(len(index), self.max_length, dtype=torch.int64)
        targets = torch.empty_like(inputs)
        self._windows.fill(index, inputs.numpy(), targets.numpy())
        return inputs, targets

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_windows"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._windows = _windows(self.tokens, self.max_length, self.stride)

    def __repr__(self) -> str:
        return (
            f"GPTDatasetV1({len(self)} windows of {self.max_length} over {len(self.tokens)} "
            f"tokens, stride {self.stride})"
        )


class WindowBatch(Sequence[tuple[Tensor, Tensor]]):
    """Some windows of a dataset: a sequence of (input, target) pairs, filled when first looked at.

    A `Subset` and the default collate function see pairs; `collate_windows` takes both tensors.
    """

    def __init__(self, dataset: GPTDatasetV1, indices: list[int]) -> None:
        self._dataset = dataset
        self._indices = indices
        self._pairs: list[tuple[Tensor, Tensor]] | None = None

    def tensors(self) -> tuple[Tensor, Tensor]:
        """Inputs and targets, int64 [B, max_length] each."""
        return self._dataset.fill(self._indices)

    def __len__(self) -> int:
        return len(self._indices)

    @overload
    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]: ...
    @overload
    def __getitem__(self, index: slice) -> list[tuple[Tensor, Tensor]]: ...
    def __getitem__(self, index: Any) -> Any:
        if self._pairs is None:
            self._pairs = list(zip(*self.tensors(), strict=True))
        return self._pairs[index]


class _Column(Sequence[Tensor]):
    """One half of every pair, made on request: reads as the book's list of tensors does."""

    def __init__(self, dataset: GPTDatasetV1, half: int) -> None:
        self._dataset = dataset
        self._half = half

    def __len__(self) -> int:
        return len(self._dataset)

    @overload
    def __getitem__(self, index: int) -> Tensor: ...
    @overload
    def __getitem__(self, index: slice) -> list[Tensor]: ...
    def __getitem__(self, index: int | slice) -> Tensor | list[Tensor]:
        if isinstance(index, slice):
            return list(self._dataset.fill(range(len(self))[index])[self._half])
        return self._dataset[index][self._half]

    def __iter__(self) -> Iterator[Tensor]:
        return (self[i] for i in range(len(self)))


def collate_windows(batch: Sequence[tuple[Tensor, Tensor]]) -> Any:
    """Pairs to (inputs, targets), int64 [B, max_length]; a WindowBatch by one call into Rust."""
    return batch.tensors() if isinstance(batch, WindowBatch) else default_collate(list(batch))


def create_dataloader_v1(
    txt: str | Path | TokenStore,
    batch_size: int = 4,
    max_length: int = 256,
    stride: int = 128,
    shuffle: bool = True,
    drop_last: bool = True,
    num_workers: int = 0,
    *,
    tokenizer: SupportsEncode | None = None,
) -> DataLoader[tuple[Tensor, Tensor]]:
    """The book's loader: batches of (inputs, targets), int64 [batch_size, max_length] each.

    A real DataLoader, so that a seed gives the book's order and leaves torch's generator where the
    book's loader leaves it. That shuffles a list of all windows: for a large store, `WindowLoader`
    has an order that needs no memory.

    Args:
        txt: the text itself, never a path if it is a `str`. Or tokens that are ready: a
            `TokenStore`, or the `pathlib.Path` of one.
        tokenizer: GPT-2's if None. A store has its own.
    Raises:
        DataError: the text is shorter than one window.
        ConfigError: max_length or stride is below 1, tokenizer cannot encode, or a store is given
            another one.
        StoreError: the store cannot be read, or the path is that of a text.
        TypeError: txt is none of these.
    """
    dataset: GPTDatasetV1
    if isinstance(txt, TokenStore | Path):
        if tokenizer is not None:
            raise ConfigError("a store's tokens are ready: leave tokenizer out")
        store = txt if isinstance(txt, TokenStore) else _store_at(txt)
        dataset = GPTDatasetV1.from_tokens(store, max_length, stride)
    else:
        dataset = GPTDatasetV1(txt, tokenizer or get_tokenizer("gpt2"), max_length, stride)
    return DataLoader(
        dataset,
        batch_size=batch_size,
        shuffle=shuffle,
        drop_last=drop_last,
        num_workers=num_workers,
        collate_fn=collate_windows,
    )


def _store_at(path: Path) -> TokenStore:
    """The store at a path, which in the book's place of the text is easily a text's."""
    if path.is_file() and path.suffix not in BIN_SUFFIXES:
        raise StoreError(
            f"{path}: a Path names a token store, and this is a file of something else; for the "
            f"text in it, give {_reading(path)}"
        )
    return TokenStore.open(path)


def _reading(path: Path) -> str:
    """The expression for the text in a file."""
    return f'Path({str(path)!r}).read_text(encoding="utf-8")'


def _windows(
    tokens: NDArray[Any] | TokenStore, max_length: int, stride: int
) -> _core.Windows | _core.StoreWindows:
    if isinstance(tokens, TokenStore):
        return _core.StoreWindows(tokens._core, max_length, stride)
    return _core.Windows(tokens, max_length, stride)


def _encode(txt: str, tokenizer: SupportsEncode) -> NDArray[np.uint16] | NDArray[np.uint32]:
    """Token ids, uint16 where they fit and uint32 else."""
    if isinstance(tokenizer, Tokenizer):
        return tokenizer.encode_to_numpy(txt, allowed_special={END_OF_TEXT}, threads=None)
    encode = getattr(tokenizer, "encode_to_numpy", tokenizer.encode)
    ids = np.asarray(encode(txt, allowed_special={END_OF_TEXT}))
    if ids.dtype == np.uint16:
        return ids
    if ids.size == 0:
        return ids.astype(np.uint16)
    lowest, highest = ids.min(), ids.max()
    if ids.dtype.kind not in "iu" or lowest < 0 or highest > np.iinfo(np.uint32).max:
        raise DataError(
            f"the tokenizer gave {ids.dtype} ids from {lowest} to {highest}; "
            "a token id is an integer from 0 to 2^32 - 1"
        )
    fits = highest <= np.iinfo(np.uint16).max
    return ids.astype(np.uint16) if fits else ids.astype(np.uint32)


def _refuse_paths(txt: object) -> None:
    """A `str` is always text; one that names a file is most likely a mistake."""
    if not isinstance(txt, str):
        raise TypeError(f"txt is the text itself, a str; found {_described(txt)}")
    # Unlike Path.is_file, answers False for what no path can be.
    if len(txt) < _LONGEST_PATH and os.path.isfile(txt):
        warnings.warn(
            f"{txt!r} is taken as the text itself, though a file has that name; "
            "pass its content to train on the file",
            stacklevel=4,
        )


def _described(txt: object) -> str:
    """What was given in the place of a text, and how the text of it is had."""
    name = type(txt).__name__
    if isinstance(txt, Path):
        return f"a path: for the text in the file, give {_reading(txt)}"
    if isinstance(txt, bytes):
        return 'bytes: the text in them is txt.decode("utf-8")'
    if isinstance(txt, TokenStore | np.ndarray):
        return f"{name}: for tokens there is GPTDatasetV1.from_tokens"
    return name
