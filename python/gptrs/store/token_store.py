"""Token stores: long streams of token ids on disk, read where they lie. No torch here.

>>> store = TokenStore.open("data")
>>> store
<TokenStore 'data': 1,234,567 tokens in 890 documents, gpt2>
>>> store[:4]
array([15496,   11,  314,  716], dtype=uint16)
>>> store.tokenizer.decode(store.document(7))
'…'

`build_store` and `gptrs build` make such folders. The files of nanoGPT, llm.c and Megatron are read
in place:

>>> store = TokenStore.open("train.bin")
"""

from __future__ import annotations

import json
import operator
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal, get_args, overload

from gptrs import _core
from gptrs.errors import ConfigError, PositionError, StoreError, TokenizerError
from gptrs.text.named_tokenizers import get_tokenizer
from gptrs.text.tokenizer import END_OF_TEXT, Tokenizer
from gptrs.text.tokenizer import FILE_NAME as TOKENIZER_FILE

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    import tiktoken

    AnyTokenizer = Tokenizer | tiktoken.Encoding
    Ids = npt.NDArray[np.uint16] | npt.NDArray[np.uint32]

FOLDER_FORMAT: Final = "gptrs-store"
"""What a manifest of ours calls itself; another program's files have that program's name."""

SHARD_TOKENS: Final = 1 << 28
"""Tokens in a full shard: half a gigabyte of uint16."""

BIN_SUFFIXES: Final = (".bin", ".idx")
"""Of other programs' files."""

Target = Literal["gptrs", "nanogpt", "llmc", "megatron"]
"""What a store can be converted to."""


class TokenStore:
    """Tokens on disk: `len(store)` of them, and where the documents among them end.

    Made by `TokenStore.open` and `build_store`. Threads may share it; in another process it opens
    the same path again. Nothing is read before it is asked for, and a file that is then missing,
    damaged or not what it should be is a `StoreError` that names it.
    """

    def __init__(
        self, core: _core.TokenStore, path: Path, tokenizer: AnyTokenizer | None = None
    ) -> None:
        self._core = core
        self._given_tokenizer = tokenizer
        self.path = path
        """What was opened."""

    @classmethod
    def open(
        cls,
        path: str | os.PathLike[str],
        tokenizer: str | os.PathLike[str] | AnyTokenizer | None = None,
    ) -> TokenStore:
        """Opens a folder that gptrs built, or another program's file; neither is read yet.

        Args:
            path: a folder with a `manifest.json`; a `.bin` of nanoGPT or llm.c; one of Megatron's
                `.bin` and `.idx`, or what their names begin with.
            tokenizer: what made the ids, or its name as for `get_tokenizer`. A folder knows it;
                another program's file is taken for GPT-2's, llm.c's of uint32 for Llama 3's.

        Raises:
            StoreError: there is no such store, a file of it is missing or has another size, or
                another tokenizer made it.
            TokenizerError: there is no such tokenizer.
            TypeError: path is no path.
        """
        if not isinstance(path, str | os.PathLike):
            raise TypeError(
                f"a store is on the disk, and opened by its path; found {type(path).__name__}; "
                "tokens in memory are for GPTDatasetV1.from_tokens"
            )
        if isinstance(tokenizer, str | os.PathLike):
            tokenizer = get_tokenizer(tokenizer)
        info = None if tokenizer is None else _info(tokenizer)
        return cls(_core.TokenStore.open(os.fspath(path), info), Path(path), tokenizer)

    def __len__(self) -> int:
        return len(self._core)

    @property
    def num_tokens(self) -> int:
        """`len(store)`."""
        return len(self._core)

    @property
    def num_documents(self) -> int:
        """How many documents there are.

        In a file of nanoGPT or llm.c they are counted the first time, which reads all of it.
        """
        return self._core.num_documents()

    @property
    def dtype(self) -> np.dtype[Any]:
        """uint16 or uint32, as the ids are stored."""
        import numpy as np

        return np.dtype(self._core.dtype)

    @property
    def n_vocab(self) -> int:
        """The number of ids that the tokenizer has."""
        return self._core.n_vocab

    @property
    def fingerprint(self) -> str:
        """What tells this store from every other, wherever it lies: 16 hexadecimal digits."""
        return self._core.fingerprint

    @property
    def format(self) -> str:
        """`gptrs-store`, `nanogpt`, `llm.c` or `megatron`."""
        return str(self.manifest["format"])

    @cached_property
    def manifest(self) -> dict[str, Any]:
        """What `manifest.json` says; for another program's files, what it would say.

        These have no checksums, and 0 for the numbers that they do not tell: of documents, and of
        bytes of text.
        """
        manifest: dict[str, Any] = json.loads(self._core.manifest())
        return manifest

    @cached_property
    def tokenizer(self) -> AnyTokenizer:
        """What made the ids: the folder's own, or what `open` was given, or GPT-2's.

        Raises:
            StoreError: the folder's `tokenizer.json` is missing, or of another tokenizer; or this
                is a file of a tokenizer that gptrs does not have, and `open` was given none.
        """
        if self._given_tokenizer is not None:
            return self._given_tokenizer
        info = self.manifest["tokenizer"]
        if self.format != FOLDER_FORMAT and info["name"] == "gpt2":
            return get_tokenizer("gpt2")
        file = self.path / TOKENIZER_FILE
        if self.format != FOLDER_FORMAT or not file.exists():
            raise StoreError(
                f"{self.path}: its tokenizer, {info['name']!r}, is not beside it: "
                "open it with tokenizer=..."
            )
        try:
            tokenizer = Tokenizer.load(file)
        except TokenizerError as error:
            raise StoreError(str(error)) from error
        if tokenizer._core.fingerprint() != info["fingerprint"]:
            raise StoreError(f"{file}: is another tokenizer than the one that made the tokens")
        return get_tokenizer("gpt2") if tokenizer == get_tokenizer("gpt2") else tokenizer

    @overload
    def __getitem__(self, index: int) -> int: ...
    @overload
    def __getitem__(self, index: slice) -> Ids: ...
    def __getitem__(self, index: int | slice) -> int | Ids:
        """A token, or an array of them: uint16 or uint32 [n].

        `store[i:j]` lies in the memory map of its file and cannot be written to, if one file has
        all of it; else it is a copy. The ids are checked, so all of them are read.

        Raises:
            PositionError: there is no such token.
            StoreError: a file is missing or damaged, or has ids that the vocabulary does not have.
        """
        if isinstance(index, slice):
            return self._slice(range(len(self))[index])
        position = _position(index, len(self), "token")
        return int(self._core.read(position, position + 1)[0])

    def _slice(self, places: range) -> Ids:
        if not places:
            return self._core.read(0, 0)
        first, last = min(places[0], places[-1]), max(places[0], places[-1])
        ids = self._core.read(first, last + 1)
        return ids if places.step == 1 else ids[:: places.step]

    def document(self, index: int) -> Ids:
        """The tokens of document `index`, its end-of-text included; arrays as `store[i:j]` gives.

        Raises:
            PositionError: there is no such document.
        """
        return self._core.read(*self.document_range(index))

    def document_range(self, index: int) -> tuple[int, int]:
        """The tokens of document `index` are `store[start:stop]`.

        Raises:
            PositionError: there is no such document.
        """
        return self._core.document(_position(index, self.num_documents, "document"))

    def documents(self) -> Iterator[Ids]:
        """The tokens of every document, one after the other."""
        for index in range(self.num_documents):
            yield self._core.read(*self._core.document(index))

    def verify(self, *, threads: int | None = None, progress: bool = False) -> None:
        """Reads every file anew: sizes, headers, checksums, ids and document ends.

        Another program's files have no checksums: their sizes and ids are checked, and Megatron's
        index.

        Args:
            threads: how many threads read; None is one for each processor.
            progress: shows a bar.

        Raises:
            StoreError: something is wrong; the message has the file and what it is.
        """
        with count_along("verifying", len(self), shown=progress) as on_progress:
            self._core.verify(threads=threads, on_progress=on_progress)

    def __repr__(self) -> str:
        manifest = self.manifest
        documents = manifest["num_documents"]
        of_documents = f" in {documents:,} documents" if documents else ""
        return (
            f"<TokenStore {str(self.path)!r}: {len(self):,} tokens{of_documents}, "
            f"{manifest['tokenizer']['name']}>"
        )

    def __reduce__(self) -> tuple[Any, ...]:
        return TokenStore.open, (self.path.absolute(), self._given_tokenizer)


def convert_store(
    source: TokenStore | str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    to: Target,
    shard_tokens: int = SHARD_TOKENS,
    progress: bool = False,
) -> TokenStore:
    """Writes a store as another program's file, or another program's file as a store.

    Streams, whatever the size, and writes the whole of it or nothing. Documents stay apart: where
    nanoGPT's or llm.c's file needs an end-of-text between two of them and there is none, it gets
    one.

    Args:
        out: the new file or folder; "nanogpt" and "llmc" want a name in .bin, "megatron" writes a
            .bin and an .idx.
        shard_tokens: for "gptrs", tokens a shard.
        progress: shows a bar.

    Returns:
        The new store, open.

    Raises:
        ConfigError: there is no such format, or `out` is no name for such a file.
        StoreError: a file cannot be read or written, there is something at `out`, or the format
            cannot hold the tokens.
    """
    if to not in get_args(Target):
        raise ConfigError(f"to is one of {', '.join(get_args(Target))}; found {to!r}")
    store = source if isinstance(source, TokenStore) else TokenStore.open(source)
    with count_along("converting", len(store), shown=progress) as on_progress:
        _core.convert_store(
            store._core,
            os.fspath(out),
            to,
            tokenizer_json=_tokenizer_json(store) if to == "gptrs" else None,
            shard_tokens=shard_tokens,
            on_progress=on_progress,
        )
    made = Path(out)
    if to == "megatron" and made.suffix not in BIN_SUFFIXES:
        made = made.with_name(f"{made.name}.bin")
    info = store.manifest["tokenizer"]
    named = info["name"], info["fingerprint"], info["n_vocab"], info["end_of_text"]
    given = None if to == "gptrs" else _tokenizer_of(store)
    return TokenStore(_core.TokenStore.open(os.fspath(made), named), made, given)


@contextmanager
def count_along(
    what: str, num_tokens: int, *, shown: bool
) -> Iterator[Callable[[int], object] | None]:
    """A bar of tokens, and the function that moves it."""
    if not shown:
        yield None
        return
    from tqdm.auto import tqdm

    with tqdm(desc=what, total=num_tokens, unit=" tokens", unit_scale=True, delay=0.2) as bar:
        yield lambda done: bar.update(done - bar.n)
        bar.update(num_tokens - bar.n)


def _position(index: int, count: int, what: str) -> int:
    """`index` counted from the start."""
    position = operator.index(index)
    if not -count <= position < count:
        raise PositionError(f"{what} {position} was asked for, and there are {count}")
    return position % count


def _tokenizer_of(store: TokenStore) -> AnyTokenizer | None:
    """The tokenizer, if there is one."""
    try:
        return store.tokenizer
    except StoreError:
        return None


def _tokenizer_json(store: TokenStore) -> bytes | None:
    """The content of a `tokenizer.json`, if the store's tokenizer has one."""
    tokenizer = _tokenizer_of(store)
    return tokenizer._core.to_json().encode() if isinstance(tokenizer, Tokenizer) else None


def _info(tokenizer: AnyTokenizer) -> tuple[str, str, int, int | None]:
    """Name, fingerprint, number of ids and end-of-text; tiktoken's have no fingerprint."""
    if isinstance(tokenizer, Tokenizer):
        fingerprint, end_of_text = tokenizer._core.fingerprint(), tokenizer.eot_token
    else:
        special = tokenizer.special_tokens_set
        fingerprint, end_of_text = "", None
        if END_OF_TEXT in special:
            end_of_text = tokenizer.eot_token
    return tokenizer.name, fingerprint, tokenizer.n_vocab, end_of_text
