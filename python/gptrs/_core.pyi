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
