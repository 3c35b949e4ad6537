"""GPT-2's tokenizer in each library, made without the network and called in its fastest way.

A `Peer` loads inside the process that measures it; nothing but that library is imported there.
All read what `write_vocabulary` wrote into one folder.
"""

import base64
import hashlib
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

RANKS_FILE = "r50k_base.tiktoken"
# Where tiktoken gets that file from; its cache is named after it.
RANKS_URL = f"https://openaipublic.blob.core.windows.net/encodings/{RANKS_FILE}"

Encode = Callable[[str], Any]
"""One document to its ids, in whatever holds them: a NumPy array, or what turns into one."""


@dataclass(frozen=True, kw_only=True)
class Peer:
    """One library and how it is called."""

    package: str
    call: str
    """What is timed, for the table."""
    load: Callable[[Path], Encode] | None
    """Given the folder of `write_vocabulary`; `None` for the Rust program in benches/peers."""
    startup: str | None = None
    """Statements that make a list of the ids of `text`, given that folder as `vocabulary`."""


def write_vocabulary(folder: Path) -> None:
    """GPT-2's vocabulary in every form the peers read; needs gptrs only."""
    import gptrs

    tokenizer = gptrs.get_tokenizer("gpt2")
    tokenizer.save(folder)
    tokens = (tokenizer.decode_bytes([token_id]) for token_id in range(tokenizer.eot_token))
    ranks = b"".join(base64.b64encode(token) + b" %d\n" % rank for rank, token in enumerate(tokens))
    (folder / RANKS_FILE).write_bytes(ranks)
    (folder / hashlib.sha1(RANKS_URL.encode()).hexdigest()).write_bytes(ranks)


def tiktoken(vocabulary: Path) -> Encode:
    os.environ["TIKTOKEN_CACHE_DIR"] = str(vocabulary)
    import tiktoken

    encoding = tiktoken.get_encoding("r50k_base")
    return lambda text: encoding.encode_to_numpy(text, disallowed_special=())


def gigatoken_one(vocabulary: Path) -> Encode:
    import gigatoken

    return gigatoken.Tokenizer(vocabulary / "tokenizer.json").encode


def gigatoken_batch(vocabulary: Path) -> Encode:
    import gigatoken

    tokenizer = gigatoken.Tokenizer(vocabulary / "tokenizer.json")
    return lambda text: tokenizer.encode_batch([text], parallel=False)[0]


def tokenizers(vocabulary: Path) -> Encode:
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(vocabulary / "tokenizer.json"))
    return lambda text: tokenizer.encode(text, add_special_tokens=False).ids_array


def fastokens(vocabulary: Path) -> Encode:
    import fastokens
    import numpy as np

    tokenizer = fastokens.Tokenizer.from_file(str(vocabulary / "tokenizer.json"))
    return lambda text: np.frombuffer(tokenizer.encode_batch_flat([text])[0], dtype=np.uint32)


def gptrs(_vocabulary: Path) -> Encode:
    import gptrs

    tokenizer = gptrs.get_tokenizer("gpt2")
    return lambda text: tokenizer.encode_to_numpy(text, disallowed_special=())


OURS = "gptrs"

# In the tables' order; ours is the last.
PEERS = {
    "tiktoken": Peer(
        package="tiktoken",
        call="encode_to_numpy",
        load=tiktoken,
        startup="import tiktoken; tiktoken.get_encoding('r50k_base').encode(text)",
    ),
    "bpe": Peer(package="bpe", call="encode", load=None),
    "fastokens": Peer(
        package="fastokens",
        call="encode_batch_flat",
        load=fastokens,
        startup="import fastokens; "
        "fastokens.Tokenizer.from_file(vocabulary + '/tokenizer.json').encode_ordinary(text).ids",
    ),
    "tokenizers": Peer(
        package="tokenizers",
        call="encode().ids_array",
        load=tokenizers,
        startup="from tokenizers import Tokenizer; "
        "Tokenizer.from_file(vocabulary + '/tokenizer.json').encode(text).ids",
    ),
    "gigatoken": Peer(
        package="gigatoken",
        call="encode",
        load=gigatoken_one,
        startup="from gigatoken import Tokenizer; "
        f"Tokenizer.from_tiktoken(vocabulary + '/{RANKS_FILE}').encode(text).tolist()",
    ),
    "gigatoken batch": Peer(package="gigatoken", call="encode_batch", load=gigatoken_batch),
    OURS: Peer(
        package="gptrs",
        call="encode_to_numpy",
        load=gptrs,
        startup="import gptrs; gptrs.get_tokenizer('gpt2').encode(text)",
    ),
}
