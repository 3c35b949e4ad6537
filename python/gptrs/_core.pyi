"""The compiled half of gptrs."""

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, Literal, final

import numpy as np
from numpy.typing import NDArray

@final
class Tokenizer:
    @staticmethod
    def gpt2() -> Tokenizer: ...
    @staticmethod
    def from_json(json: bytes) -> Tokenizer: ...
    def to_json(self) -> str: ...
    def fingerprint(self) -> str: ...
    @property
    def kind(self) -> Literal["bpe", "char"]: ...
    @property
    def n_vocab(self) -> int: ...
    @property
    def special_tokens(self) -> list[str]: ...
    def encode(
        self, text: str, allowed_special: Sequence[str], disallowed_special: Sequence[str]
    ) -> list[int]: ...
    def encode_to_numpy(
        self,
        text: str,
        allowed_special: Sequence[str],
        disallowed_special: Sequence[str],
        threads: int | None,
    ) -> NDArray[np.uint16]: ...
    def encode_batch_to_numpy(
        self,
        texts: Sequence[str],
        allowed_special: Sequence[str],
        disallowed_special: Sequence[str],
        threads: int | None,
    ) -> tuple[NDArray[np.uint16], NDArray[np.int64]]: ...
    def count(
        self, text: str, allowed_special: Sequence[str], disallowed_special: Sequence[str]
    ) -> int: ...
    def decode_bytes(self, ids: Iterable[int]) -> bytes: ...
    def decode_with_offsets(self, ids: Iterable[int]) -> tuple[bytes, list[int]]: ...
    def ranks(self) -> list[bytes]: ...

@final
class FileEncoder:
    def __new__(
        cls,
        tokenizer: Tokenizer,
        path: str | Path,
        allowed_special: Sequence[str],
        disallowed_special: Sequence[str],
        *,
        replace: bool,
        threads: int | None,
    ) -> FileEncoder: ...
    def __iter__(self) -> FileEncoder: ...
    def __next__(self) -> NDArray[np.uint16]: ...
    def rest(self) -> NDArray[np.uint16]: ...

def train_bpe(
    files: Sequence[Path],
    vocab_size: int,
    special_tokens: Sequence[str],
    *,
    threads: int | None,
    on_progress: Callable[[int], object] | None,
) -> Tokenizer: ...
def train_char(
    files: Sequence[Path], vocab_size: int | None, special_tokens: Sequence[str]
) -> Tokenizer: ...

@final
class TokenStore:
    @staticmethod
    def open(
        path: str | Path, tokenizer: tuple[str, str, int, int | None] | None
    ) -> TokenStore: ...
    def __len__(self) -> int: ...
    @property
    def dtype(self) -> Literal["uint16", "uint32"]: ...
    @property
    def n_vocab(self) -> int: ...
    @property
    def fingerprint(self) -> str: ...
    def manifest(self) -> str: ...
    def read(self, start: int, stop: int) -> NDArray[np.uint16] | NDArray[np.uint32]: ...
    def num_documents(self) -> int: ...
    def document(self, index: int) -> tuple[int, int]: ...
    def verify(
        self, *, threads: int | None, on_progress: Callable[[int], object] | None
    ) -> None: ...
    def token_counts(
        self,
        start: int,
        stop: int,
        *,
        threads: int | None,
        on_progress: Callable[[int], object] | None,
    ) -> NDArray[np.uint64]: ...
    def document_lengths(self) -> tuple[int, int, list[tuple[int, int]]]: ...

def convert_store(
    store: TokenStore,
    out: str | Path,
    target: str,
    *,
    tokenizer_json: bytes | None,
    shard_tokens: int,
    on_progress: Callable[[int], object] | None,
) -> None: ...

@final
class StoreBuilder:
    def __new__(
        cls,
        out: str | Path,
        tokenizer: Tokenizer,
        name: str,
        inputs: Sequence[tuple[str, str]],
        *,
        text_key: str,
        split_on: str | None,
        skip_invalid: bool,
        replace_invalid: bool,
        allow_special: bool,
        min_chars: int,
        deduplicate: bool,
        val_fraction: float,
        task: tuple[int, int] | None,
        shard_tokens: int,
        memory: int,
        threads: int | None,
    ) -> StoreBuilder: ...
    def next_input(self) -> int | None: ...
    @property
    def rows_done(self) -> int: ...
    def add_files(self, on_progress: Callable[[], object] | None = None) -> None: ...
    def add_rows(self, texts: Sequence[object], first: int) -> None: ...
    def end_rows(self) -> None: ...
    def progress(self) -> dict[str, int]: ...
    def finish(self) -> None: ...
    def close(self) -> None: ...

def merge_stores(
    parts: Sequence[str | Path],
    out: str | Path,
    *,
    deduplicate: bool,
    memory: int = ...,
    on_progress: Callable[[dict[str, int]], object] | None = None,
) -> None: ...

@final
class Windows:
    def __new__(
        cls, tokens: NDArray[np.uint16] | NDArray[np.uint32], length: int, stride: int
    ) -> Windows: ...
    def __len__(self) -> int: ...
    def fill(
        self,
        indices: NDArray[np.int64],
        inputs: NDArray[np.int64],
        targets: NDArray[np.int64],
    ) -> None: ...

@final
class WindowBatches:
    def __new__(
        cls,
        store: TokenStore,
        *,
        max_length: int,
        stride: int,
        boundary: str,
        seed: int | None,
        batch_size: int,
        rank: int,
        world_size: int,
        drop_last: bool,
        return_positions: bool,
    ) -> WindowBatches: ...
    @property
    def num_windows(self) -> int: ...
    @property
    def batches_per_epoch(self) -> int: ...
    @property
    def dropped_windows(self) -> int: ...
    @property
    def dropped_tokens(self) -> int: ...
    @property
    def order(self) -> str: ...
    def stream(
        self,
        epoch: int,
        position: int,
        *,
        end_epoch: int,
        skip: int,
        step: int,
        prefetch: int,
    ) -> BatchStream: ...

@final
class BatchStream:
    def __iter__(self) -> BatchStream: ...
    def __next__(self) -> tuple[NDArray[Any], ...]: ...
    def close(self) -> None: ...
    @property
    def cursor(self) -> tuple[int, int]: ...
    @property
    def has_ended(self) -> bool: ...

@final
class StoreWindows:
    def __new__(cls, store: TokenStore, length: int, stride: int) -> StoreWindows: ...
    def __len__(self) -> int: ...
    def fill(
        self,
        indices: NDArray[np.int64],
        inputs: NDArray[np.int64],
        targets: NDArray[np.int64],
    ) -> None: ...

@final
class Sampler:
    def __new__(
        cls, *, temperature: float, top_k: int | None = None, top_p: float | None = None
    ) -> Sampler: ...
    def sample(
        self,
        logits: NDArray[np.float32],
        seeds: NDArray[np.uint64],
        sequences: NDArray[np.uint64],
        positions: NDArray[np.uint64],
    ) -> NDArray[np.int64]: ...

@final
class Generation:
    def __new__(
        cls,
        engine: Any,
        prompts: Sequence[Sequence[int]],
        *,
        max_new_tokens: int,
        window: int,
        eos_id: int | None,
        temperature: float,
        top_k: int | None,
        top_p: float | None,
        seeds: Sequence[int],
        sequences: Sequence[int],
    ) -> Generation: ...
    def run(self) -> list[tuple[list[int], Literal["stop", "length"]]]: ...
    def step(self) -> list[tuple[int, int | None, Literal["stop", "length"] | None]]: ...
