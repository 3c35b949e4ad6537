"""The compiled half of gptrs."""

from collections.abc import Iterable, Sequence
from typing import Any, ClassVar, Literal, final

import numpy as np
from numpy.typing import NDArray

@final
class Gpt2Tokenizer:
    N_VOCAB: ClassVar[int]
    END_OF_TEXT: ClassVar[str]
    END_OF_TEXT_ID: ClassVar[int]
    def __new__(cls) -> Gpt2Tokenizer: ...
    def encode(
        self,
        text: str,
        allowed_special: Sequence[str] = ...,
        disallowed_special: Sequence[str] = ...,
    ) -> list[int]: ...
    def encode_to_numpy(
        self,
        text: str,
        allowed_special: Sequence[str] = ...,
        disallowed_special: Sequence[str] = ...,
    ) -> NDArray[np.uint16]: ...
    def decode_bytes(self, ids: Iterable[int]) -> bytes: ...
    def ranks(self) -> list[bytes]: ...
    def merges(self) -> list[tuple[int, int]]: ...

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
