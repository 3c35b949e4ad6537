"""Tokenizers: text to ids and back, in Rust. GPT-2's, whose vocabulary is compiled in, or trained.

>>> from gptrs import get_tokenizer
>>> tokenizer = get_tokenizer("gpt2")
>>> tokenizer.encode("Hello, I am")
[15496, 11, 314, 716]
>>> tokenizer.decode([15496, 11, 314, 716])
'Hello, I am'

GPT-2's ids equal those of `tiktoken.get_encoding("gpt2")` for every text, and the methods are named
as tiktoken's, so either works wherever gptrs takes a tokenizer. Nothing here uses the network, and
importing this module imports neither NumPy nor tiktoken nor torch.
"""

from __future__ import annotations

import os
from codecs import BOM_UTF8

from gptrs import _core
from gptrs.errors import ConfigError, TokenizerError
from gptrs.text.encoding_arguments import checked_text, plain_ids, repaired, strings
from gptrs.text.tiktoken_names import TiktokenNames

# What is imported here, every command waits for: typing and pathlib take longer than all the rest.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator, Sequence
    from pathlib import Path
    from typing import Any, Final, Literal

    import numpy as np
    import numpy.typing as npt
    import tiktoken

    from gptrs.text.encoding_arguments import SupportsToList

    Special = Literal["all"] | Collection[str]
    """A set of strings, or "all"."""

END_OF_TEXT: Final = "<|endoftext|>"
"""GPT-2's one special token as it is written in a text; trained tokenizers have it by default."""

FILE_NAME: Final = "tokenizer.json"
"""The file in which Hugging Face's libraries keep a tokenizer."""

# GPT-2's pattern as tiktoken writes it: possessive, so that it never backtracks.
_PATTERN: Final = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s"


class Tokenizer(TiktokenNames):
    """A vocabulary of at most 65,536 ids, with the special tokens last.

    Made by `get_tokenizer`, `Tokenizer.load` or `train_tokenizer`. Threads may share it: encoding
    releases the GIL. It remembers words that it has seen, in at most some 20 MB.
    """

    __slots__ = ("_core", "_tiktoken", "name", "special_tokens_set")

    def __init__(self, core: _core.Tokenizer, name: str) -> None:
        self._core = core
        self._tiktoken: tiktoken.Encoding | None = None
        self.name = name
        self.special_tokens_set = frozenset(core.special_tokens)

    @property
    def n_vocab(self) -> int:
        """The number of ids: they run from 0 to `max_token_value`."""
        return self._core.n_vocab

    @property
    def max_token_value(self) -> int:
        """The last id."""
        return self.n_vocab - 1

    @property
    def eot_token(self) -> int | None:
        """The id of `<|endoftext|>`, for GPT-2 50256; None if this tokenizer has no such token."""
        special = self._core.special_tokens
        if END_OF_TEXT not in special:
            return None
        return self.n_vocab - len(special) + special.index(END_OF_TEXT)

    @property
    def kind(self) -> Literal["bpe", "char"]:
        """Byte-pair encoding, or a token a character."""
        return self._core.kind

    def encode(
        self,
        text: str,
        *,
        allowed_special: Special = frozenset(),
        disallowed_special: Special = "all",
    ) -> list[int]:
        """The ids of `text`.

        Special tokens that are written out in `text` are refused by default, because a text from
        elsewhere could forge a document's end. A lone surrogate counts as U+FFFD.

        Args:
            allowed_special: special tokens that become one id each; "all" is every one there is.
            disallowed_special: strings that `text` must not contain; "all" is every special token
                that is not allowed, `()` is none: what is not allowed then is ordinary text.

        Raises:
            TokenizerError: `text` contains a disallowed string, a run of over 64 MiB without a
                break, or, if this is a tokenizer of characters, one that it does not know.
        """
        allowed, disallowed = self._special(allowed_special, disallowed_special)
        text = checked_text(text)
        try:
            return self._core.encode(text, allowed, disallowed)
        except UnicodeEncodeError:
            return self._core.encode(repaired(text), allowed, [*map(repaired, disallowed)])

    def encode_to_numpy(
        self,
        text: str,
        *,
        allowed_special: Special = frozenset(),
        disallowed_special: Special = "all",
        threads: int | None = 1,
    ) -> npt.NDArray[np.uint16]:
        """The ids of `text` as `encode` gives them, in a uint16 array: no list is made.

        Args:
            threads: how many threads encode a text of some megabytes, with the same result; None is
                one for each processor.
        """
        allowed, disallowed = self._special(allowed_special, disallowed_special)
        text = checked_text(text)
        try:
            return self._core.encode_to_numpy(text, allowed, disallowed, threads)
        except UnicodeEncodeError:
            disallowed = [*map(repaired, disallowed)]
            return self._core.encode_to_numpy(repaired(text), allowed, disallowed, threads)

    def encode_batch_to_numpy(
        self,
        texts: Sequence[str],
        *,
        allowed_special: Special = frozenset(),
        disallowed_special: Special = "all",
        threads: int | None = None,
    ) -> tuple[npt.NDArray[np.uint16], npt.NDArray[np.int64]]:
        """The ids of many texts one after the other, and where each text's begin.

        Args:
            threads: how many threads share the texts; None is one for each processor.

        Returns:
            ids: uint16 [N].
            offsets: int64 [len(texts) + 1]; text i has `ids[offsets[i]:offsets[i + 1]]`.
        """
        allowed, disallowed = self._special(allowed_special, disallowed_special)
        if isinstance(texts, str):
            raise TypeError("texts must be a sequence of str, found a str")
        texts = [checked_text(text) for text in texts]
        try:
            return self._core.encode_batch_to_numpy(texts, allowed, disallowed, threads)
        except UnicodeEncodeError:
            texts, disallowed = [*map(repaired, texts)], [*map(repaired, disallowed)]
            return self._core.encode_batch_to_numpy(texts, allowed, disallowed, threads)

    def encode_file(
        self,
        path: str | os.PathLike[str],
        *,
        allowed_special: Special = frozenset(),
        disallowed_special: Special = "all",
        errors: Literal["strict", "replace"] = "strict",
        threads: int | None = None,
    ) -> npt.NDArray[np.uint16]:
        """The ids of a UTF-8 file, never in memory as a whole; a byte order mark is dropped.

        Args:
            disallowed_special: as for `encode`, but strings without whitespace.
            errors: "replace" puts U+FFFD in the place of bytes that are not UTF-8.
            threads: how many threads encode, at most three; None is one for each processor.

        Raises:
            SourceError: the file cannot be read, or is not UTF-8 (the message has the offset).
            TokenizerError: as for `encode`; or 64 MiB of the file have no space or line end, so
                that there is no place to cut.
        """
        return self._file(path, allowed_special, disallowed_special, errors, threads).rest()

    def encode_file_parts(
        self,
        path: str | os.PathLike[str],
        *,
        allowed_special: Special = frozenset(),
        disallowed_special: Special = "all",
        errors: Literal["strict", "replace"] = "strict",
        threads: int | None = None,
    ) -> Iterator[npt.NDArray[np.uint16]]:
        """What `encode_file` returns, in arrays of a few million ids, one after the other.

        Takes less than 64 MB, whatever the size of the file.
        """
        return self._file(path, allowed_special, disallowed_special, errors, threads)

    def encode_ordinary(self, text: str) -> list[int]:
        """The ids of `text`, in which no special token is special."""
        return self.encode(text, disallowed_special=())

    def count(
        self,
        text: str,
        *,
        allowed_special: Special = frozenset(),
        disallowed_special: Special = "all",
    ) -> int:
        """`len(encode(...))`, without the ids."""
        allowed, disallowed = self._special(allowed_special, disallowed_special)
        text = checked_text(text)
        try:
            return self._core.count(text, allowed, disallowed)
        except UnicodeEncodeError:
            return self._core.count(repaired(text), allowed, [*map(repaired, disallowed)])

    def decode(self, ids: Iterable[int] | SupportsToList, errors: str = "replace") -> str:
        """The text that `ids` stand for.

        Args:
            ids: one-dimensional: a list, a NumPy array, a tensor, any iterable of int.
            errors: as for `bytes.decode`: ids may end in the middle of a character.

        Raises:
            TokenIdError: an id is outside the vocabulary.
        """
        return self.decode_bytes(ids).decode("utf-8", errors)

    def decode_bytes(self, ids: Iterable[int] | SupportsToList) -> bytes:
        """The bytes that `ids` stand for, valid UTF-8 or not; arguments and errors of `decode`."""
        return self._core.decode_bytes(plain_ids(ids))

    def decode_with_offsets(self, ids: Iterable[int] | SupportsToList) -> tuple[str, list[int]]:
        """The text that `ids` stand for, and for each id the character in which it begins.

        Raises:
            TokenIdError: an id is outside the vocabulary.
            UnicodeDecodeError: the ids do not end with a character, so there is no such text.
        """
        content, offsets = self._core.decode_with_offsets(plain_ids(ids))
        return content.decode("utf-8"), offsets

    def as_tiktoken(self) -> tiktoken.Encoding:
        """A real `tiktoken.Encoding` with this vocabulary, made without the network.

        Raises:
            TokenizerError: this is a tokenizer of characters, which tiktoken does not have.
        """
        if self._tiktoken is None:
            if self.kind != "bpe":
                raise TokenizerError(f"tiktoken has byte-pair encodings only, and this is {self}")
            import tiktoken

            ranks = self._core.ranks()
            special = zip(self._core.special_tokens, range(len(ranks), self.n_vocab), strict=True)
            self._tiktoken = tiktoken.Encoding(
                self.name,
                pat_str=_PATTERN,
                mergeable_ranks={token: rank for rank, token in enumerate(ranks)},
                special_tokens=dict(special),
                explicit_n_vocab=self.n_vocab,
            )
        return self._tiktoken

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Writes a `tokenizer.json` that Hugging Face's libraries read, whole or not at all.

        Args:
            path: the file, or an existing directory in which it is to be named `tokenizer.json`.

        Returns:
            The file's path.

        Raises:
            OSError: the file cannot be written.
        """
        # Here, since encoding needs none of it, and its imports take 7 ms.
        from gptrs.files import write_whole

        file = _in_directory(path)
        write_whole(file, self.to_json().encode())
        return file

    def to_json(self) -> str:
        """What `save` writes."""
        return self._core.to_json()

    @staticmethod
    def load(path: str | os.PathLike[str]) -> Tokenizer:
        """The tokenizer in a `tokenizer.json`, or in a directory that holds one.

        Where a directory has none, or one of these is named, its `vocab.json` and `merges.txt` are
        read, as GPT-2's have.

        Raises:
            TokenizerError: there is none, or it is damaged or of a kind that is not supported.
        """
        file = _in_directory(path)
        try:
            return named(_core.Tokenizer.from_json(_content(file)))
        except OSError as error:
            raise TokenizerError(f"{file} cannot be read: {error.strerror or error}") from error
        except TokenizerError as error:
            raise TokenizerError(f"{file}: {error}") from error

    def _file(
        self,
        path: str | os.PathLike[str],
        allowed: Special,
        disallowed: Special,
        errors: str,
        threads: int | None,
    ) -> _core.FileEncoder:
        if errors not in ("strict", "replace"):
            raise ConfigError(f'errors is "strict" or "replace", found {errors!r}')
        special = self._special(allowed, disallowed)
        if spaced := [token for token in special[1] if any(map(str.isspace, token))]:
            raise ConfigError(f"in a file, strings with whitespace cannot be disallowed: {spaced}")
        replace = errors == "replace"
        return _core.FileEncoder(
            self._core, os.fspath(path), *special, replace=replace, threads=threads
        )

    def _special(self, allowed: Special, disallowed: Special) -> tuple[list[str], list[str]]:
        """Both sets as lists, with "all" spelled out. Like tiktoken, allows what it never finds."""
        special = self.special_tokens_set
        allowed = strings("allowed_special", allowed, all_of=special)
        disallowed = strings("disallowed_special", disallowed, all_of=special.difference(allowed))
        return list(special.intersection(allowed)), list(disallowed)

    def __eq__(self, other: object) -> bool:
        """Whether both give the same ids for every text."""
        if not isinstance(other, Tokenizer):
            return NotImplemented
        return self is other or self._core.fingerprint() == other._core.fingerprint()

    def __hash__(self) -> int:
        return hash((self.n_vocab, self.special_tokens_set))

    def __repr__(self) -> str:
        return f"<Tokenizer {self.name!r}: {self.n_vocab} ids>"

    def __reduce__(self) -> str | tuple[Any, ...]:
        if self is GPT2:
            return "GPT2"
        return _from_json, (self._core.to_json().encode(),)


GPT2: Final = Tokenizer(_core.Tokenizer.gpt2(), "gpt2")
"""The one tokenizer that is compiled in; pickled by this name."""


def named(core: _core.Tokenizer) -> Tokenizer:
    """GPT-2's tokenizer, if this is it; else one that is named after its kind and size."""
    if core.n_vocab == GPT2.n_vocab and core.fingerprint() == GPT2._core.fingerprint():
        return GPT2
    return Tokenizer(core, f"{core.kind}-{core.n_vocab}")


def _from_json(content: bytes) -> Tokenizer:
    return named(_core.Tokenizer.from_json(content))


def _in_directory(path: str | os.PathLike[str]) -> Path:
    from pathlib import Path

    return Path(path, FILE_NAME) if os.path.isdir(path) else Path(path)


def _content(file: Path) -> bytes:
    """What `file`, a tokenizer.json, says, or would say: older folders have two other files."""
    if file.name != FILE_NAME or not file.exists():
        from gptrs.text.tokenizer_files import has_gpt2_file, is_gpt2_file, read_gpt2_files

        folder = file.parent
        if has_gpt2_file(folder) if file.name == FILE_NAME else is_gpt2_file(file):
            return read_gpt2_files(folder)
    return file.read_bytes().removeprefix(BOM_UTF8)
