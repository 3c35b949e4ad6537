"""Microseconds a step of sampling alone, ours beside what people run; then the loop's own part.

Run by `make bench-sampling`; a word such as `top-p` as ARGS picks the settings that have it. The
logits are made up, so that no model is needed:

    flat      standard normal: no model is that unsure, but a new one
    trained   -1.5 ln(rank) and normal noise of 0.5, the ranks dealt anew in each row: an entropy of
              about 3 nats and a nucleus (p = 0.95) of some 300 tokens, as in running English text
"""

import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from statistics import median
from typing import Any

import numpy as np
import torch
import transformers
from llama_sampler import LlamaSampler
from table import print_header, print_table, seconds

import gptrs
from gptrs import Sampler, SamplingConfig, _core

VOCAB_SIZE, BATCH_SIZE = 50_257, 64
HISTORY_LENGTH = 100
ROUNDS, ROUND_S = 5, 0.03
# OpenMP's threads spin for a while after their work: they would keep the next one off a processor.
PAUSE_S = 0.02

Step = Callable[[torch.Tensor, torch.Tensor], object]
"""Draws for logits [B, V], given the ids so far, int64 [B, T]."""


@dataclass(frozen=True)
class Case:
    """One setting, and what others have for it."""

    name: str
    settings: dict[str, Any]
    logits: tuple[str, ...] = ("trained",)
    peers: dict[str, Step] = field(default_factory=dict)


def with_transformers(*processors: Any) -> dict[str, Step]:
    """What transformers does in `generate`: its processors, softmax and multinomial."""
    chain = transformers.LogitsProcessorList(processors)

    def step(logits, input_ids):
        probabilities = torch.softmax(chain(input_ids, logits), dim=-1)
        return torch.multinomial(probabilities, num_samples=1)

    return {"transformers": step}


def with_torch(step: Callable[[torch.Tensor], object]) -> dict[str, Step]:
    """What one would write by hand."""
    return {"torch": lambda logits, _: step(logits)}


def torch_top_k(logits):
    values, ids = torch.topk(logits, 50)
    return ids.gather(1, torch.multinomial(torch.softmax(values, -1), 1))


def book_top_k(logits, _):
    """Chapter 5's `generate`; its threshold gets the dimension that a batch needs."""
    top_logits, _ = torch.topk(logits, 50)
    low = logits < top_logits[:, -1:]
    logits = torch.where(low, torch.tensor(float("-inf")), logits)
    return torch.multinomial(torch.softmax(logits / 0.8, dim=-1), num_samples=1)


BOTH = ("trained", "flat")
CASES = [
    Case("greedy", {"temperature": 0.0}, peers=with_torch(lambda x: x.argmax(-1))),
    Case(
        "softmax draw",
        {},
        BOTH,
        with_torch(lambda x: torch.multinomial(torch.softmax(x, -1), 1)),
    ),
    Case(
        "top-k 50, temperature 0.8",
        {"top_k": 50, "temperature": 0.8},
        peers=with_transformers(
            transformers.TemperatureLogitsWarper(0.8), transformers.TopKLogitsWarper(50)
        )
        | with_torch(lambda x: torch_top_k(x / 0.8))
        | {"the book": book_top_k},
    ),
    Case(
        "top-p 0.95, temperature 0.8",
        {"top_p": 0.95, "temperature": 0.8},
        BOTH,
        with_transformers(
            transformers.TemperatureLogitsWarper(0.8), transformers.TopPLogitsWarper(0.95)
        ),
    ),
    Case(
        "min-p 0.05", {"min_p": 0.05}, BOTH, with_transformers(transformers.MinPLogitsWarper(0.05))
    ),
    Case(
        "typical 0.95",
        {"typical_p": 0.95},
        BOTH,
        with_transformers(transformers.TypicalLogitsWarper(0.95)),
    ),
    Case(
        "repetition 1.1, top-k 50, top-p 0.95",
        {"repetition_penalty": 1.1, "top_k": 50, "top_p": 0.95},
        BOTH,
        with_transformers(
            transformers.RepetitionPenaltyLogitsProcessor(1.1),
            transformers.TopKLogitsWarper(50),
            transformers.TopPLogitsWarper(0.95),
        ),
    ),
]


def main() -> None:
    """Prints the tables."""
    wanted = sys.argv[1:]
    rate = VOCAB_SIZE * 4 / min(seconds(np.ones(VOCAB_SIZE, np.float32).max) for _ in range(99))
    print_header(
        f"sampling, V = {VOCAB_SIZE:,}, float32, transformers {transformers.__version__}",
        2,
        f"NumPy takes a row's maximum in {VOCAB_SIZE * 4e6 / rate:.1f} us",
    )
    if LlamaSampler is None:
        print("llama.cpp is left out: it needs pip install --group bench-sampling\n")
    columns = ["microseconds a step", "logits", "beside"]
    columns += ["batch 1", "ours", "is", "batch 64", "ours", "is", "2 threads", "ours", "is"]
    rows = []
    for case in CASES:
        if not wanted or any(word in case.name for word in wanted):
            for kind in case.logits:
                rows += measured(case, kind)
    if rows:
        print_table(columns, rows)
    if not wanted or "loop" in wanted:
        print_loop()
    if not wanted or "regex" in wanted:
        print_constraint()


def measured(case: Case, kind: str) -> list[list[str]]:
    """A row of cells for each peer."""
    cells: dict[str, list[str]] = {}
    for batch_size, threads in ((1, 1), (BATCH_SIZE, 1), (BATCH_SIZE, 2)):
        torch.set_num_threads(threads)
        logits = make_logits(kind, batch_size)
        input_ids = torch.randint(VOCAB_SIZE, (batch_size, HISTORY_LENGTH))
        candidates = {name: partial(step, logits, input_ids) for name, step in case.peers.items()}
        if LlamaSampler is not None and batch_size == 1:
            candidates["llama.cpp"] = partial(
                LlamaSampler(case.settings, VOCAB_SIZE), logits[0].numpy()
            )
        candidates["ours"] = our_step(case.settings, logits, threads)
        times = interleaved(candidates)
        ours = times.pop("ours")
        for name, theirs in times.items():
            cells.setdefault(name, []).extend(three_cells(theirs, ours))
    # llama.cpp takes one row at a time: its line ends after three cells.
    return [[case.name, kind, name, *numbers] for name, numbers in cells.items()]


def three_cells(theirs: list[float], ours: list[float]) -> list[str]:
    """Theirs, ours, and how many times faster ours is: the median of the rounds' ratios."""
    ratio = median(a / b for a, b in zip(theirs, ours, strict=True))
    return [micro(theirs), micro(ours), f"{ratio:.1f}x"]


def micro(times: list[float]) -> str:
    return f"{median(times) * 1e6:,.{0 if median(times) > 1e-4 else 1}f}"


def interleaved(candidates: dict[str, Callable[[], object]]) -> dict[str, list[float]]:
    """Seconds a call, round by round; in each, the candidates take turns."""
    repeats = {}
    for name, run in candidates.items():
        run()
        repeats[name] = max(1, min(300, int(ROUND_S / seconds(run))))
    times: dict[str, list[float]] = {name: [] for name in candidates}
    for _ in range(ROUNDS):
        for name, run in candidates.items():
            count = repeats[name]
            time.sleep(PAUSE_S)
            taken = seconds(lambda run=run, count=count: [run() for _ in range(count)])
            times[name].append(taken / count)
    return times


def make_logits(kind: str, batch_size: int) -> torch.Tensor:
    """float32 [B, V]; see the head of this file."""
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(batch_size, VOCAB_SIZE))
    if kind == "trained":
        by_rank = -1.5 * np.log(np.arange(1, VOCAB_SIZE + 1))
        logits = 0.5 * logits + [rng.permutation(by_rank) for _ in range(batch_size)]
    return torch.tensor(logits, dtype=torch.float32)


def our_step(settings: dict[str, Any], logits: torch.Tensor, threads: int) -> Callable[[], object]:
    sampler = Sampler(SamplingConfig(seed=0, **settings), threads=threads)
    if "repetition_penalty" in settings:
        for _ in range(HISTORY_LENGTH):  # It remembers what it drew, as the loop does.
            sampler(logits)
    return lambda: sampler(logits)


class NullEngine:
    """An engine that computes nothing: what a step takes is the loop's own."""

    context_length = 1 << 30

    def __init__(self, vocab_size: int, slots: int) -> None:
        self.vocab_size, self.slots = vocab_size, slots
        self.tokens = torch.zeros(2048 + slots, dtype=torch.int64)
        self.starts = torch.zeros(slots, dtype=torch.int64)
        logits_SV = torch.zeros(slots, vocab_size)
        logits_SV[:, 7] = 1.0
        self.answers = [logits_SV[:count] for count in range(slots + 1)]

    def step(self, num_slots: int) -> torch.Tensor:
        """The same logits at every step."""
        return self.answers[num_slots]

    def extend(self, slots: list[int], counts: list[int], wanted: list[int]) -> torch.Tensor:
        """As step."""
        return self.answers[sum(wanted)]

    def copy(self, copies: list[tuple[int, int, int]]) -> None:
        """Nothing to copy."""


def loop_seconds(vocab_size: int, slots: int, num_steps: int) -> float:
    """Seconds a step of the loop over an engine that takes none, all settings off."""
    generation = _core.Generation(NullEngine(vocab_size, slots))
    greedy = SamplingConfig(temperature=0.0).to_core()
    for sequence in range(slots):
        generation.submit(
            [1], max_new_tokens=num_steps, window=1 << 20, sampling=greedy, sequence=sequence
        )
    return seconds(generation.run) / num_steps


def print_loop() -> None:
    """The loop's own part of a step."""
    rows = []
    for vocab_size, num_steps in ((64, 20_000), (VOCAB_SIZE, 2_000)):
        for slots in (1, 8):
            loop = [loop_seconds(vocab_size, slots, num_steps) for _ in range(ROUNDS)]
            greedy = our_step({"temperature": 0.0}, torch.zeros(slots, vocab_size), threads=1)
            alone = interleaved({"ours": greedy})["ours"]
            name = f"V = {vocab_size:,}, batch {slots}"
            rows.append([name, micro(loop), micro(alone)])
    print_table(["the loop over an engine that does nothing", "us a step", "sampler alone"], rows)


def print_constraint(pattern: str = r"([A-Z]?[a-z]+[ ,.])+", num_tokens: int = 300) -> None:
    """What a regular expression costs: once, and a token."""

    def model(ids):  # Every position has the same logits, which take no memory.
        return logits.expand(*ids.shape, -1)

    def generate(num_tokens: int, **constraint: str) -> float:
        options = {"top_k": 50, "seed": 0, "eos_id": None, **constraint}
        return seconds(lambda: generator("x", num_tokens, **options))

    logits = make_logits("trained", 1)[0]
    generator = gptrs.Generator(model, context_length=8)
    generate(2, regex=pattern)
    starts, extras = [], []
    for _ in range(ROUNDS):
        # The pattern is compiled at each call; the longer one has num_tokens more steps.
        short, long = (generate(count, regex=pattern) for count in (2, 2 + num_tokens))
        free_short, free_long = (generate(count) for count in (2, 2 + num_tokens))
        starts.append(short - free_short)
        extras.append((long - short - (free_long - free_short)) / num_tokens)
    print(
        f"a regular expression costs {micro(extras)} us a token on top (top-k 50, batch 1), and "
        f"{median(starts) * 1e3:.1f} ms once: {pattern}"
    )


if __name__ == "__main__":
    main()
