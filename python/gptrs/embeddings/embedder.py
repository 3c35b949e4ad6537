"""Vectors for texts: a model's hidden states, pooled to one vector a text.

    texts ─► tokens ─► windows, sorted by length ─► batches ─► hidden states ─► pooled [N, D]

`embed` takes what fits into memory, `embed_iter` a stream of any length; an `Embedder` keeps the
model for both, and has the methods of sentence-transformers. Blocks after the wanted layer, and the
output layer, are never computed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from itertools import pairwise
from os import PathLike
from pathlib import Path
from typing import Any, Final, TypedDict, Unpack, get_args

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from tqdm.auto import tqdm

from gptrs.costs.params import shape
from gptrs.devices import choose_precision
from gptrs.embeddings.pooling import Pool, batches_of, windows_of
from gptrs.embeddings.pooling_kinds import Pooling
from gptrs.embeddings.sentence_methods import SentenceMethods, Vectors, normalized
from gptrs.errors import ConfigError, DataError
from gptrs.model.eval_mode import evaluating
from gptrs.model.facts import device_of
from gptrs.model.gpt import GPTModel
from gptrs.model.trunk import fingerprint, trunk_of
from gptrs.text.named_tokenizers import get_tokenizer
from gptrs.text.prompts import PromptReader
from gptrs.weights.pretrained import from_pretrained, tokenizer_beside

ModelLike = GPTModel | str | PathLike[str]
OnTexts = Callable[[int], object]
"""Is told how many more texts are done."""

BATCH_TOKENS: Final = 8192
# A block of texts has about as many batches: enough to sort into little padding, and so much is
# read ahead of what is yielded.
BATCHES_IN_BLOCK: Final = 32
CHARS_IN_TOKEN: Final = 4
# A batch has a price besides that of its tokens: reading the weights, or launching the kernels.
MOST_PADDING: Final = {"cpu": 256, "cuda": 4096}
MOST_TEXTS: Final = 1 << 14


class Settings(TypedDict, total=False):
    """How an Embedder makes vectors; see there."""

    tokenizer: Any
    pooling: Pooling
    layer: int
    normalize: bool
    batch_tokens: int
    stride: int | None
    dtype: torch.dtype | str | None
    allow_special: bool
    device: str | torch.device


def embed(
    model: ModelLike,
    texts: Iterable[str],
    *,
    progress: bool = False,
    **settings: Unpack[Settings],
) -> Vectors:
    """A vector for each text: float32 [N, D], in the order of the texts.

    >>> vectors = embed("runs/demo-001", ["A class is a thing.", "Modules have names."])
    >>> vectors @ vectors.T  # How alike they are, by cosine.

    A text is a sentence or a book: what is longer than context_length is read in windows, and every
    token counts once. (Transformer-XL's memory is not used.)

    Args:
        model: a GPTModel, or what `GPTModel.from_pretrained` reads.
        progress: show a bar.
        settings: as of Embedder: tokenizer, pooling, layer, normalize, batch_tokens, stride, dtype,
            allow_special, device.
    Raises:
        DataError: a text is empty or not a str; the message has its number, counted from 0.
        ConfigError, CheckpointError, TokenizerError: as of Embedder.
    """
    return Embedder(model, **settings).embed(texts, progress=progress)


def embed_iter(
    model: ModelLike,
    texts: Iterable[str],
    *,
    progress: bool = False,
    **settings: Unpack[Settings],
) -> Iterator[Vectors]:
    """What `embed` gives, in blocks float32 [n, D], for more texts than memory holds.

    Reads about a megabyte of text ahead. Arguments and errors as of `embed`.
    """
    return Embedder(model, **settings).embed_iter(texts, progress=progress)


class Embedder(SentenceMethods):
    """Makes vectors of texts with one model.

    Args:
        model: a GPTModel, or what `GPTModel.from_pretrained` reads (the folder of a checkpoint or a
            run, or of transformers' GPT-2). It computes where it is, in eval mode.
        tokenizer: ours, tiktoken's or transformers'. None: the one in the model's folder, else
            GPT-2's.
        pooling: what becomes of the hidden states of a text's tokens. "mean": their mean. "last":
            the last token's, the only one that has seen all of the text. "max": the largest of each
            number. "cls": the first token's; a causal model's first token has seen nothing but
            itself, so this is for models that were trained to begin with a special token, or to
            compare. "weighted_mean": token i of n, counted from 1, weighs i / (1 + ... + n), since
            later tokens have seen more (SGPT, Muennighoff 2022).
        layer: which hidden states, as `forward(return_hidden=True)` numbers them: 0 the embeddings,
            n_layers those after `final_norm`, which no other has passed; -1 is the last.
        normalize: scale vectors to length 1, so that a product is a cosine.
        batch_tokens: tokens in a batch, padding included: the price of speed is memory.
        stride: how far the windows of a text are apart that is longer than context_length. Tokens
            that two windows share count once, where they have seen more. None: context_length, so
            that they share none.
        dtype: what matmuls compute in: a torch dtype, its name, or "auto" for what the device likes
            best. Sums stay float32. None: the weights' own.
        allow_special: take `<|endoftext|>` and its like in a text for special tokens.
        device: where to, for a model that is read; one that is given stays where it is.
    Raises:
        ConfigError: a setting is out of its range, or the tokenizer has ids that the model does not
            know.
        CheckpointError: the folder has no model, or a damaged one.
        TokenizerError: the folder has a tokenizer that is not supported.
    """

    def __init__(
        self,
        model: ModelLike,
        *,
        tokenizer: Any = None,
        pooling: Pooling = "mean",
        layer: int = -1,
        normalize: bool = True,
        batch_tokens: int = BATCH_TOKENS,
        stride: int | None = None,
        dtype: torch.dtype | str | None = None,
        allow_special: bool = False,
        device: str | torch.device = "cpu",
    ) -> None:
        self.path: str | None = None
        if isinstance(model, str | PathLike):
            self.path = str(Path(model).resolve())
            tokenizer = tokenizer_beside(Path(model)) if tokenizer is None else tokenizer
            model = from_pretrained(model, device=device)
        if not isinstance(model, GPTModel):
            raise ConfigError(
                "a model is a GPTModel, or the folder of one or of transformers' GPT-2; "
                f"found a {type(model).__name__}"
            )
        if pooling not in get_args(Pooling):
            raise ConfigError(
                f"pooling is one of {', '.join(get_args(Pooling))}; found {pooling!r}"
            )
        self.model = model
        self.tokenizer = get_tokenizer("gpt2") if tokenizer is None else tokenizer
        self.pooling: Pooling = pooling
        self.layer = _layer(layer, len(model.trf_blocks))
        self.normalize = normalize
        self.batch_tokens = _within("batch_tokens", batch_tokens, None)
        self.context_length = model.cfg.context_length
        stride = None if stride is None else _within("stride", stride, self.context_length)
        self.stride = None if stride == self.context_length else stride
        self.allow_special = allow_special
        self._autocast_dtype = _autocast_dtype(model, dtype)
        n_vocab = PromptReader(self.tokenizer).n_vocab
        if n_vocab is not None and n_vocab > model.cfg.vocab_size:
            raise ConfigError(
                f"the tokenizer has {n_vocab} ids, and the model knows {model.cfg.vocab_size}"
            )

    def embed(
        self,
        texts: Iterable[str],
        *,
        progress: bool = False,
        on_texts: OnTexts | None = None,
    ) -> Vectors:
        """Vectors float32 [N, D], in the order of the texts; errors as of `gptrs.embed`."""
        blocks = list(self.embed_iter(texts, progress=progress, on_texts=on_texts))
        if not blocks:
            return np.empty((0, self.model.cfg.emb_dim), dtype=np.float32)
        return np.concatenate(blocks)

    def embed_iter(
        self,
        texts: Iterable[str],
        *,
        progress: bool = False,
        on_texts: OnTexts | None = None,
    ) -> Iterator[Vectors]:
        """The same in blocks float32 [n, D], as soon as each is done; `texts` may be endless."""
        if isinstance(texts, str | bytes) or not isinstance(texts, Iterable):
            what = f"one {type(texts).__name__}"
            raise DataError(f"texts are an iterable of str, such as a list of them; found {what}")
        return self._embed_iter(texts, progress, on_texts)

    @property
    def dtype(self) -> torch.dtype:
        """What matmuls compute in."""
        return self._autocast_dtype or self.model.tok_emb.weight.dtype

    def identity(self) -> dict[str, str]:
        """Which model this is: `name`, `path` if it was read from one, and `fingerprint`.

        The name is its shape. The fingerprint differs where weights or ids do that count here.
        """
        trunk = self._trunk()
        found = {"name": shape(self.model.cfg), "fingerprint": fingerprint(trunk, self.tokenizer)}
        return found if self.path is None else found | {"path": self.path}

    def _embed_iter(
        self, texts: Iterable[str], progress: bool, on_texts: OnTexts | None
    ) -> Iterator[Vectors]:
        total = len(texts) if isinstance(texts, Sequence) else None
        first = 0
        with tqdm(total=total, unit=" texts", delay=0.2, disable=not progress) as bar:
            for block in _blocks(texts, self.batch_tokens * BATCHES_IN_BLOCK * CHARS_IN_TOKEN):
                yield self._embed_block(block, first, on_texts or bar.update)
                first += len(block)

    def _embed_block(self, texts: list[str], first: int, on_texts: OnTexts) -> Vectors:
        ids = self._encode(texts)
        lengths = [len(row) for row in ids]
        if 0 in lengths:
            raise DataError(f"text {first + lengths.index(0)} is empty: it has no tokens to pool")
        stride = self.stride or self.context_length
        windows = [
            window
            for text, length in enumerate(lengths)
            for window in windows_of(text, length, self.context_length, stride)
        ]
        device = device_of(self.model)
        pool = Pool(self.pooling, lengths, self.model.cfg.emb_dim, device)
        trunk = self._trunk()
        with evaluating(self.model), torch.no_grad(), self._autocast(device):
            most_padding = MOST_PADDING.get(device.type, MOST_PADDING["cuda"])
            for batch in batches_of(windows, self.batch_tokens, most_padding):
                ids_BT = _padded([ids[each.text][each.start : each.end] for each in batch])
                pool.add(trunk.hidden_states(ids_BT.to(device)), batch)
                on_texts(sum(each.end == lengths[each.text] for each in batch))
        vectors: Vectors = pool.vectors().numpy()
        return normalized(vectors) if self.normalize else vectors

    def _encode(self, texts: list[str]) -> list[npt.NDArray[Any]]:
        """Each text's ids."""
        tokenizer, special = self.tokenizer, frozenset[str]()
        if self.allow_special:
            special = getattr(tokenizer, "special_tokens_set", special)
        if hasattr(tokenizer, "encode_batch_to_numpy"):
            ids, offsets = tokenizer.encode_batch_to_numpy(
                texts, allowed_special=special, disallowed_special=()
            )
            return [ids[start:end] for start, end in pairwise(offsets.tolist())]
        encode = tokenizer.encode
        if hasattr(tokenizer, "encode_ordinary"):  # tiktoken's, too
            encode = partial(encode, allowed_special=special, disallowed_special=())
        return [np.asarray(encode(text), dtype=np.int64) for text in texts]

    def _trunk(self) -> GPTModel:
        return trunk_of(self.model, self.layer + len(self.model.trf_blocks) + 1)

    def _autocast(self, device: torch.device) -> AbstractContextManager[Any]:
        if self._autocast_dtype is None:
            return nullcontext()
        return torch.autocast(device.type, self._autocast_dtype)


def _blocks(texts: Iterable[str], num_chars: int) -> Iterator[list[str]]:
    """Texts that follow each other, of so many characters or little more; checked to be texts."""
    block: list[str] = []
    room = num_chars
    for number, text in enumerate(texts):
        if not isinstance(text, str):
            raise DataError(
                f"text {number} is of type {type(text).__name__}, not str: {text!r:.80}"
            )
        block.append(text)
        room -= len(text)
        if room <= 0 or len(block) == MOST_TEXTS:
            yield block
            block, room = [], num_chars
    if block:
        yield block


def _padded(rows: Sequence[npt.NDArray[Any]]) -> Tensor:
    """int64 [B, T], as long as the first row. What is behind the end no token before it sees."""
    ids_BT = np.zeros((len(rows), len(rows[0])), dtype=np.int64)
    for padded, row in zip(ids_BT, rows, strict=True):
        padded[: len(row)] = row
    return torch.from_numpy(ids_BT)


def _layer(layer: Any, n_layers: int) -> int:
    """Its number from the end, so that -1 is the last of a model of any depth."""
    is_int = isinstance(layer, int) and not isinstance(layer, bool)
    if not is_int or not -n_layers - 1 <= layer <= n_layers:
        raise ConfigError(
            f"layer is {layer!r}; the model has hidden states 0..{n_layers}, or "
            f"{-n_layers - 1}..-1 from the end"
        )
    from_end: int = layer if layer < 0 else layer - n_layers - 1
    return from_end


def _within(name: str, value: Any, most: int | None) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ConfigError(f"{name} is {value!r}; it must be an int, 1 or more")
    if most is not None and value > most:
        raise ConfigError(f"{name} is {value}, more than the model's context_length {most}")
    return value


def _autocast_dtype(model: GPTModel, asked: torch.dtype | str | None) -> torch.dtype | None:
    """What to let autocast compute in; None: nothing else than the weights' own."""
    own = model.tok_emb.weight.dtype
    if isinstance(asked, str):
        asked = choose_precision(asked, device_of(model)).dtype
    if asked is None or asked == own:
        return None
    if asked == torch.float32:
        raise ConfigError(
            f"dtype is {asked}, but the weights are {own}: load them with "
            "GPTModel.from_pretrained(path, dtype=torch.float32)"
        )
    if asked not in (torch.bfloat16, torch.float16):
        raise ConfigError(f"dtype is {asked}; matmuls compute in float32, bfloat16 or float16")
    return asked
