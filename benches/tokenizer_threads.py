"""Ours on two processors, by turns with a loop that shows whether the machine gives two at all.

    loop │ one thread, two threads │ loop        a round
      └───── both had two ───────────┘

A guest of a shared machine has two processors now and then only: where independent work does not
run twice as fast on two threads, no tokenizer does. Ratios are within a round. All is one process:
cold is a tokenizer that has seen no text.
"""

import hashlib
from collections.abc import Callable
from functools import partial
from statistics import median
from threading import Thread
from typing import NamedTuple

from table import print_table, seconds

import gptrs

LOOP_CONTENT = bytes(1 << 24)
"""Hashed in one call: between calls threads would wait for the GIL."""
WHOLE = 1.85
"""So many times as fast on two threads: the machine had two processors for us."""
WARM_UP = 24
"""Threads take other parts of a text each time: it is some times until each knows all words."""


class Way(NamedTuple):
    """One way to encode."""

    label: str
    num_texts: int
    encode: Callable[[gptrs.Tokenizer, str], object]


class Round(NamedTuple):
    """What one round measured."""

    one_s: float
    way_s: float
    given: float
    """How many times as fast the loop was on two threads, before or after: the less."""


def print_threads(text: str, rounds: int) -> None:
    """Every way, cold and warm: in all rounds, and in those in which there were two processors."""
    known = gptrs.get_tokenizer("gpt2")
    megabytes = len(text.encode()) / 1e6
    for _ in range(WARM_UP):
        for way in WAYS:
            way.encode(known, text)
    rows = []
    for way in WAYS:
        for state in ("cold", "warm"):
            found = [
                _measured(way, known if state == "warm" else None, text) for _ in range(rounds)
            ]
            rows.append([f"{way.label}, {state}", *_cells(way, found, megabytes)])
    print(f"gptrs on two processors. There are two where a loop that hashes gains {WHOLE}x by them")
    columns = ["", "MB/s", "one thread", "gain", "the loop's", "there are two in", "gain then"]
    print_table(columns, rows)


def _measured(way: Way, known: gptrs.Tokenizer | None, text: str) -> Round:
    one, other = known or _fresh(), known or _fresh()
    before = _processors()
    one_s = seconds(partial(_encode, one, text))
    way_s = seconds(partial(way.encode, other, text))
    return Round(one_s, way_s, min(before, _processors()))


def _cells(way: Way, found: list[Round], megabytes: float) -> list[str]:
    gains = [(way.num_texts * one_s / way_s, given) for one_s, way_s, given in found]
    whole = [gain for gain, given in gains if given >= WHOLE]
    return [
        f"{way.num_texts * megabytes / median(way_s for _, way_s, _ in found):.1f}",
        f"{megabytes / median(one_s for one_s, _, _ in found):.1f}",
        f"{median(gain for gain, _ in gains):.2f}x",
        f"{median(given for _, given in gains):.2f}x",
        f"{len(whole)} of {len(found)}",
        f"{median(whole):.2f}x" if whole else "-",
    ]


def _processors() -> float:
    """How many processors two threads have that share nothing."""
    hash_all = partial(hashlib.sha256, LOOP_CONTENT)
    return 2 * seconds(hash_all) / seconds(partial(_run_both, hash_all))


def _run_both(function: Callable[[], object]) -> None:
    # This thread is one of them: two new ones may begin on the same processor.
    other = Thread(target=function)
    other.start()
    function()
    other.join()


def _encode(tokenizer: gptrs.Tokenizer, text: str, threads: int = 1) -> object:
    return tokenizer.encode_to_numpy(text, disallowed_special=(), threads=threads)


def _encode_both(tokenizer: gptrs.Tokenizer, text: str) -> None:
    _run_both(partial(_encode, tokenizer, text))


def _fresh() -> gptrs.Tokenizer:
    return gptrs.Tokenizer(gptrs._core.Tokenizer.gpt2(), "gpt2")


WAYS = (
    Way("one document, threads=2", 1, partial(_encode, threads=2)),
    Way("two Python threads, a document each", 2, _encode_both),
    Way("one thread, count() only", 1, lambda tokenizer, text: tokenizer.count(text)),
)
