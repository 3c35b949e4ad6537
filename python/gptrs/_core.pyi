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
class SamplingConfig:
    def __new__(
        cls,
        *,
        temperature: float = 1.0,
        top_k: int | None = None,
        top_p: float | None = None,
        min_p: float | None = None,
        typical_p: float | None = None,
        repetition_penalty: float = 1.0,
        frequency_penalty: float = 0.0,
        presence_penalty: float = 0.0,
        no_repeat_ngram_size: int | None = None,
        logit_bias: Sequence[tuple[int, float]] = ...,
        bad_words: Sequence[Sequence[int]] = ...,
        min_new_tokens: int = 0,
        end_ids: Sequence[int] = ...,
    ) -> SamplingConfig: ...

@final
class Sampler:
    def __new__(
        cls,
        configs: Sequence[SamplingConfig],
        seeds: Sequence[int],
        *,
        threads: int | None = None,
    ) -> Sampler: ...
    def sample(
        self,
        logits: Any,
        *,
        sequences: Sequence[int] | None = None,
        positions: Sequence[int] | None = None,
        history: Sequence[tuple[Sequence[int], Sequence[int]]]
        | tuple[Any, Sequence[int], int]
        | None = None,
    ) -> NDArray[np.int64]: ...
    def probabilities(
        self,
        logits: Any,
        *,
        sequences: Sequence[int] | None = None,
        history: Sequence[tuple[Sequence[int], Sequence[int]]]
        | tuple[Any, Sequence[int], int]
        | None = None,
    ) -> NDArray[np.float32]: ...
    def log_probs(
        self, logits: Any, ids: Sequence[int], *, top: int = 0
    ) -> tuple[NDArray[np.float32], NDArray[np.int64], NDArray[np.float32]]: ...

_Finish = Literal["stop", "length", "context", "cancelled"]
_LogProbs = tuple[float, list[tuple[int, float]]]

@final
class TokenBytes:
    def __new__(cls, tokens: Sequence[bytes]) -> TokenBytes: ...
    @staticmethod
    def of_tokenizer(tokenizer: Tokenizer) -> TokenBytes: ...
    def __len__(self) -> int: ...
    def __getitem__(self, index: int, /) -> bytes: ...

@final
class Grammar:
    @staticmethod
    def regex(pattern: str, tokens: TokenBytes) -> Grammar: ...
    @staticmethod
    def choices(choices: Sequence[str], tokens: TokenBytes) -> Grammar: ...
    def check_budget(self, max_new_tokens: int) -> None: ...
    def start(self) -> Matcher: ...

@final
class Matcher:
    def allowed(self, tokens_left: int) -> tuple[NDArray[np.bool_], bool]: ...
    def push(self, token: int) -> None: ...

@final
class StopStrings:
    def __new__(cls, stops: Sequence[str], tokens: TokenBytes) -> StopStrings: ...

@final
class Digest:
    def __new__(cls) -> Digest: ...
    def update(self, part: Any) -> None: ...
    def hexdigest(self) -> str: ...

@final
class PackedWeights:
    @staticmethod
    def of_parts(
        weights: Any, parts: Sequence[tuple[NDArray[np.uint8], NDArray[np.float32]]]
    ) -> PackedWeights: ...
    def parts(self) -> list[tuple[NDArray[np.uint8], NDArray[np.float32]]]: ...

@final
class NativeModel:
    def __new__(
        cls,
        weights: Any,
        *,
        slots: int,
        context_length: int,
        threads: int,
        int8: bool = False,
        kernels: str | None = None,
        packed: PackedWeights | None = None,
    ) -> NativeModel: ...
    @staticmethod
    def available_kernels() -> list[str]: ...
    @staticmethod
    def available_threads() -> int: ...
    @property
    def kernels(self) -> str: ...
    @property
    def is_free(self) -> bool: ...
    @property
    def packed(self) -> PackedWeights | None: ...
    def extend(
        self,
        tokens: Sequence[int],
        slots: Sequence[int],
        starts: Sequence[int],
        counts: Sequence[int],
        wanted: Sequence[int],
    ) -> NDArray[np.float32]: ...
    def copy(self, source: int, target: int, length: int) -> None: ...
    def set_weights(self, weights: Any) -> None: ...

@final
class Generation:
    def __new__(
        cls, engine: Any, *, prefill_tokens: int = 2048, queue: int | None = None
    ) -> Generation: ...
    def submit(
        self,
        prompt: Sequence[int],
        *,
        max_new_tokens: int,
        window: int,
        sampling: SamplingConfig,
        overflow: str = "slide",
        stop_ids: Sequence[int] = ...,
        stop_strings: StopStrings | None = None,
        grammar: Grammar | None = None,
        logprobs: int | None = None,
        seed: int = 0,
        sequence: int = 0,
        row: int = 0,
    ) -> int: ...
    def cancel(self, request: int | None = None) -> None: ...
    @property
    def num_waiting(self) -> int: ...
    def run(self) -> list[tuple[list[int], list[_LogProbs], bytes | None, _Finish]]: ...
    def step(
        self,
    ) -> (
        list[tuple[int, int | None, _LogProbs | None, bytes | None, _Finish | None, int | None]]
        | None
    ): ...
    def failed(self) -> list[int]: ...

def beam_search(
    engine: Any,
    prompts: Sequence[Sequence[int]],
    *,
    num_beams: int,
    num_return: int,
    max_new_tokens: int,
    window: int,
    length_penalty: float,
    early_stopping: bool | Literal["never"],
    stop_ids: Sequence[int],
    prefill_tokens: int = 2048,
) -> list[list[tuple[list[int], float, _Finish]]]: ...
def train_word2vec(
    inputs: Sequence[tuple[str, str]],
    store: TokenStore | None,
    tokenizer: Tokenizer | None,
    *,
    text_key: str,
    replace_invalid: bool,
    pattern: str | None,
    lower: bool,
    cbow: bool,
    cbow_mean: bool,
    vector_size: int,
    window: int,
    negative: int,
    epochs: int,
    alpha: float,
    min_alpha: float,
    sample: float,
    min_count: int,
    max_vocab: int | None,
    seed: int,
    threads: int | None,
    on_progress: Callable[[str, int, int], object] | None,
) -> tuple[list[str] | NDArray[np.uint32], NDArray[np.uint64], NDArray[np.float32]]: ...
def attention(
    query: object,
    key: object,
    value: object,
    out: object,
    log_sums: object,
    *,
    scale: float,
    dropout: float,
    seed: int,
    threads: int,
    kernels: str | None = None,
) -> None: ...
def attention_backward(
    query: object,
    key: object,
    value: object,
    out: object,
    grad: object,
    log_sums: object,
    to_query: object,
    to_key: object,
    to_value: object,
    *,
    scale: float,
    dropout: float,
    seed: int,
    threads: int,
    kernels: str | None = None,
) -> None: ...
def dropout(
    x: object, out: object, *, p: float, seed: int, threads: int, kernels: str | None = None
) -> None: ...
def gelu(x: object, out: object, *, threads: int, kernels: str | None = None) -> None: ...
def gelu_backward(
    x: object, grad: object, out: object, *, threads: int, kernels: str | None = None
) -> None: ...
def exp_and_sum(
    rows: object, sums: object, *, threads: int, kernels: str | None = None
) -> None: ...
def softmax_and_losses(
    rows: object, targets: object, losses: object, *, threads: int, kernels: str | None = None
) -> None: ...
def turn(source: object, target: object, *, threads: int, kernels: str | None = None) -> None: ...
def sum_of_squares(x: object, *, threads: int, kernels: str | None = None) -> float: ...
def matmul(
    left: object,
    right: object,
    out: object,
    *,
    row: object | None = None,
    adds: bool = False,
    threads: int,
    kernels: str | None = None,
) -> None: ...
def matmul_beats_mkl() -> bool: ...
