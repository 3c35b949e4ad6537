"""Tokenizers by name: GPT-2's, tiktoken's own, and those in files."""

from __future__ import annotations

import os

from gptrs.errors import ConfigError, TokenizerError
from gptrs.text.tokenizer import FILE_NAME, GPT2, Tokenizer

# What is imported here, every command waits for.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final, Literal, overload

    import tiktoken

_TIKTOKEN_PREFIX: Final = "tiktoken:"


if TYPE_CHECKING:

    @overload
    def get_tokenizer(spec: Literal["gpt2"] = "gpt2") -> Tokenizer: ...
    @overload
    def get_tokenizer(spec: str | os.PathLike[str]) -> Tokenizer | tiktoken.Encoding: ...


def get_tokenizer(spec: str | os.PathLike[str] = "gpt2") -> Tokenizer | tiktoken.Encoding:
    """A tokenizer by name.

    Args:
        spec: "gpt2"; "tiktoken:NAME" for one of tiktoken's own encodings, which tiktoken fetches
            from the network or its cache; or the path of a `tokenizer.json`, or of a directory that
            holds one, or GPT-2's older `vocab.json` and `merges.txt`; or of one of these two.

    Raises:
        TokenizerError: there is no such tokenizer, or a file holds one that is not supported.
    """
    if spec == "gpt2":
        return GPT2
    if isinstance(spec, str) and spec.startswith(_TIKTOKEN_PREFIX):
        return _from_tiktoken(spec.removeprefix(_TIKTOKEN_PREFIX))
    path = os.fspath(spec)
    if os.path.exists(path):  # False, not an error, for what no path can be.
        return Tokenizer.load(path)
    raise TokenizerError(
        f"no tokenizer is named {path!r}, and no such path exists: expected 'gpt2', "
        f"'tiktoken:gpt2' or the path of a {FILE_NAME}"
    )


def own_tokenizer(tokenizer: str | os.PathLike[str] | Tokenizer | tiktoken.Encoding) -> Tokenizer:
    """The tokenizer of ours that is meant, or that gives the same ids: what files are made with.

    Raises:
        ConfigError: there is none.
        TokenizerError: no tokenizer has this name.
    """
    meant = get_tokenizer(tokenizer) if isinstance(tokenizer, (str, os.PathLike)) else tokenizer
    if isinstance(meant, Tokenizer):
        return meant
    if all(getattr(meant, name, None) == getattr(GPT2, name) for name in ("name", "n_vocab")):
        return GPT2
    raise ConfigError(f"expected a gptrs tokenizer or tiktoken's gpt2, found {meant!r}")


def _from_tiktoken(name: str) -> tiktoken.Encoding:
    import tiktoken

    known = tiktoken.list_encoding_names()
    if name not in known:
        raise TokenizerError(f"tiktoken has no encoding {name!r}; it has {', '.join(known)}")
    try:
        return tiktoken.get_encoding(name)
    except Exception as error:  # Whatever its HTTP client raises; tiktoken declares nothing.
        raise TokenizerError(
            f"tiktoken could not get its encoding {name!r} from its cache or the network "
            f"({type(error).__name__}: {error}); get_tokenizer('gpt2') needs no network, and its "
            "as_tiktoken() is a tiktoken.Encoding"
        ) from error
