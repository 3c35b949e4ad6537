"""Training steps: `gptrs.train` beside the book's loop and nanoGPT's, and what a step is made of.

Run by `make bench-training`; ARGS="--only nanogpt loader" runs parts, ARGS=--quick two rounds of
each. nanoGPT is no package: clone karpathy/nanoGPT, and give --nanogpt FOLDER.

    book         124M as the book trains it, batch 4 x 256: untied, dropout 0.1
    nanogpt      124M as nanoGPT does, batch 4 x 256: tied, no dropout; and the step's matmuls alone
    loader       making a step's batch, as a share of the step
    checkpoints  what one costs, as a share of a minute
    small        nanoGPT's GPT for Shakespeare's characters: 6 layers, 384 wide, batch 64 x 256

Whole loops take turns, step by step; each has made its first steps before. Ours are `gptrs.train`
with its log, progress bar and checks.
"""

import argparse
import contextlib
import io
import tempfile
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack, closing
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from statistics import mean, median

import numpy as np
import torch
from table import print_header, print_table, seconds
from training_checkpoints import CheckpointCosts
from training_loops import (
    Clock,
    MissingPeerError,
    Tokens,
    Took,
    TrainingLoop,
    nanogpt_loop,
    ours,
    the_book,
)
from training_matmuls import matmuls_of_a_step

import gptrs
from gptrs.config import GPTConfig, get_config
from gptrs.training.config import TrainingConfig
from gptrs.training.data import WindowSource
from gptrs.training.reports.peaks import measured_peak
from gptrs.training.trainer import train

BATCH_SIZE, LENGTH = 4, 256
BOOK = GPTConfig.of(gptrs.GPT_CONFIG_124M | {"context_length": LENGTH})
GPT2 = replace(get_config("gpt2-124m"), context_length=LENGTH, drop_rate=0.0)
SMALL_BATCH_SIZE = 64
SMALL_SHAPE = {"vocab_size": 65, "emb_dim": 384, "n_heads": 6, "n_layers": 6}
SMALL = replace(GPT2, **SMALL_SHAPE, drop_rate=0.2, qkv_bias=False)
NANOGPT_124M = {"vocab_size": 50257, "block_size": LENGTH}
NANOGPT_SMALL = {
    "vocab_size": 65,
    "block_size": LENGTH,
    "n_embd": 384,
    "n_head": 6,
    "n_layer": 6,
    "dropout": 0.2,
    "bias": False,
}
NUM_TOKENS = 1_000_000
CHECKPOINT_STEPS, CHECKPOINT_MINUTES = 40, 0.2
MINUTE_S = 60.0

FLOAT32, BFLOAT16 = "gptrs, float32", "gptrs, bfloat16"
COMPILED = "gptrs, bfloat16, compiled"
NANOGPT, NANOGPT_BEST = "nanoGPT as shipped, float32", "nanoGPT, bfloat16, compiled"
MATMULS = {"float32": "matmuls alone, float32", "bfloat16": "matmuls alone, bfloat16"}
PRECISIONS: dict[str, dict[str, object]] = {
    FLOAT32: {"dtype": "float32"},
    BFLOAT16: {"dtype": "bfloat16"},
    COMPILED: {"dtype": "bfloat16", "compile": True},
}

Times = Mapping[str, list[Took]]
Step = Callable[[Clock], Took]
Makers = dict[str, Callable[[], TrainingLoop]]


@dataclass
class Bench:
    """The options, and what one part finds out for others or for the last table."""

    nanogpt: Path | None
    rounds: int
    clock: Clock
    folder: Path
    step_s: float | None = None
    """A bfloat16 step of the 124M model; None: not measured."""
    findings: list[tuple[str, ...]] = field(default_factory=list)

    def finds(self, what: str, value: float, unit: str, bar: str) -> None:
        """A line of the last table."""
        self.findings.append((what, f"{value:.2f} {unit}", bar))


def main() -> None:
    """Prints the tables of the parts asked for, and what was measured beside its bar."""
    args = _arguments()
    clock, rounds = time.perf_counter, 2 if args.quick else args.rounds
    if args.cpu_time:
        torch.set_num_threads(1)
        clock = time.process_time
    peaks = {name: measured_peak(name, torch.get_num_threads()) for name in MATMULS}
    speeds = [f"{name} {peak.flops_per_s / 1e9:,.0f} GFLOP/s" for name, peak in peaks.items()]
    print_header("training steps", torch.get_num_threads(), f"matmuls: {', '.join(speeds)}")
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(args.nanogpt, rounds, clock, Path(folder))
        for name in args.only:
            PARTS[name](bench)
    print_table(("", "measured", "bar"), bench.findings)


# --- The 124M model ---


def _book(bench: Bench) -> None:
    tokens = _tokens(BOOK.vocab_size)
    makers: Makers = {"the book": lambda: the_book(BOOK.to_dict(), BATCH_SIZE, LENGTH, tokens)}
    makers |= _ours(bench, BOOK, BATCH_SIZE, tokens)
    title = "124M as the book trains it, batch 4 x 256: untied, dropout 0.1"
    times = _compare(bench, title, makers, BATCH_SIZE * LENGTH, [FLOAT32, BFLOAT16])
    if "the book" in times:
        speedups = {name: _ratio(times, "the book", name) for name in (FLOAT32, BFLOAT16)}
        bench.finds("float32, times the book's loop", speedups[FLOAT32], "x", "1.6 or more")
        bench.finds("bfloat16, times the book's loop", speedups[BFLOAT16], "x", "5 or more")


def _nanogpt(bench: Bench) -> None:
    tokens = _tokens(GPT2.vocab_size)
    theirs = partial(nanogpt_loop, bench.nanogpt, NANOGPT_124M, BATCH_SIZE, tokens)
    makers: Makers = {
        NANOGPT: theirs,
        NANOGPT_BEST: lambda: theirs(bfloat16=True, compiled=True),
        **_ours(bench, GPT2, BATCH_SIZE, tokens),
    }
    title = "124M as nanoGPT trains it, batch 4 x 256: tied, no dropout"
    alone = {
        label: partial(_all_of, matmuls_of_a_step(GPT2, BATCH_SIZE, getattr(torch, dtype)))
        for dtype, label in MATMULS.items()
    }
    times = _compare(bench, title, makers, BATCH_SIZE * LENGTH, [FLOAT32, BFLOAT16], alone)
    bench.step_s = median(took.step for took in times[BFLOAT16])
    if NANOGPT in times:
        shipped, best = (_ratio(times, name, BFLOAT16) for name in (NANOGPT, NANOGPT_BEST))
        bench.finds("bfloat16, times nanoGPT as shipped", shipped, "x", "4.2 or more")
        bench.finds("bfloat16, times nanoGPT at its best", best, "x", "1.9 or more")
    for name, dtype in ((FLOAT32, "float32"), (BFLOAT16, "bfloat16"), (COMPILED, "bfloat16")):
        rounds = zip(times[name], times[MATMULS[dtype]], strict=True)
        share = median(matmuls.step / (took.step - took.optimizer) for took, matmuls in rounds)
        what = f"matmuls' share of the step without optimizer, {name.removeprefix('gptrs, ')}"
        bench.finds(what, 100 * share, "%", "65 % or more")


def _all_of(calls: list[Callable[[], object]], clock: Clock) -> Took:
    total = 0.0
    for call in calls:
        began = clock()
        call()
        total += clock() - began
    return Took(total, 0.0)


# --- Beside the steps ---


def _loader(bench: Bench) -> None:
    tokens = _tokens(GPT2.vocab_size)
    source = WindowSource(tokens, LENGTH, BATCH_SIZE * LENGTH, seed=123)
    steps = range(200)
    times = [seconds(lambda step=step: list(source.micro_batches(step))) for step in steps]
    batch_s = median(times)
    print(f"making a step's batch of 4 x 256 takes {1e6 * batch_s:,.0f} us, beside the step\n")
    if bench.step_s is not None:
        share = 100 * batch_s / bench.step_s
        bench.finds("making the batch, share of a bfloat16 step", share, "%", "below 1 %")


def _checkpoints(bench: Bench) -> None:
    """In a run of its own, with a checkpoint more often than anybody wants."""
    tokens = _tokens(GPT2.vocab_size)
    costs = CheckpointCosts()
    config = TrainingConfig(
        steps=CHECKPOINT_STEPS,
        batch_tokens=BATCH_SIZE * LENGTH,
        num_evaluations=1,
        max_validation_tokens=LENGTH,
        checkpoint_minutes=CHECKPOINT_MINUTES,
        keep_last=1,
        keep_best=False,
        dtype="bfloat16",
    )
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        model = gptrs.GPTModel(GPT2)
        train(model, tokens, config, run_dir=bench.folder / "saving", callbacks=[costs])
    if not costs.each:
        print("checkpoints: none was written in time\n")
        return
    print(
        f"a checkpoint of the 124M model and its optimizer costs {mean(costs.each):.2f} s, "
        f"{mean(costs.blocked):.2f} s of them standing still: mean of {len(costs.each)}\n"
    )
    share = 100 * mean(costs.each) / MINUTE_S
    bench.finds("checkpoints, one a minute, share of the run", share, "%", "below 2 %")


# --- The small model ---


def _small(bench: Bench) -> None:
    tokens = _tokens(SMALL.vocab_size)
    theirs = partial(nanogpt_loop, bench.nanogpt, NANOGPT_SMALL, SMALL_BATCH_SIZE, tokens)
    makers: Makers = {NANOGPT_BEST: lambda: theirs(bfloat16=True, compiled=True)}
    makers |= _ours(bench, SMALL, SMALL_BATCH_SIZE, tokens)
    del makers[FLOAT32]
    title = "6 layers, 384 wide, 65 characters, batch 64 x 256: tied, dropout 0.2"
    num_tokens = SMALL_BATCH_SIZE * LENGTH
    times = _compare(bench, title, makers, num_tokens, [BFLOAT16, COMPILED])
    if NANOGPT_BEST in times:
        for name in (BFLOAT16, COMPILED):
            what = f"small model, {name.removeprefix('gptrs, ')}, times nanoGPT at its best"
            bench.finds(what, _ratio(times, NANOGPT_BEST, name), "x", "1.3 or more")


# --- Taking turns ---


def _ours(bench: Bench, cfg: GPTConfig, batch_size: int, tokens: Tokens) -> Makers:
    return {
        name: lambda settings=settings: ours(
            cfg, batch_size, tokens, Path(tempfile.mkdtemp(dir=bench.folder)) / "run", **settings
        )
        for name, settings in PRECISIONS.items()
    }


def _compare(
    bench: Bench,
    title: str,
    makers: Makers,
    num_tokens: int,
    beside: list[str],
    others: Mapping[str, Step] | None = None,
) -> Times:
    """Prints a table of the loops that are here, and returns each one's steps.

    Args:
        beside: labels that have a column each: how many times as fast they are.
        others: what takes turns too, and no loop has to be made for.
    """
    torch.manual_seed(123)
    with ExitStack() as stack:
        candidates: dict[str, Step] = {}
        missing = []
        for name, make in makers.items():
            try:
                candidates[name] = stack.enter_context(closing(make()))
            except MissingPeerError as error:
                missing.append((name, f"not here: {error}"))
        candidates |= others or {}
        for step in candidates.values():
            step(bench.clock)  # Nobody's first turn counts.
        times: dict[str, list[Took]] = {name: [] for name in candidates}
        for _ in range(bench.rounds):
            for name, step in candidates.items():
                times[name].append(step(bench.clock))
    print(title)
    columns = ("", "tokens/s", "s a step", "optimizer", *(f"{name} is" for name in beside))
    rows: list[tuple[str, ...]] = [_row(name, times, num_tokens, beside) for name in times]
    print_table(columns, [*missing, *rows])
    return times


def _row(name: str, times: Times, num_tokens: int, beside: list[str]) -> tuple[str, ...]:
    step_s = median(took.step for took in times[name])
    optimizer_s = median(took.optimizer for took in times[name])
    return (
        name,
        f"{num_tokens / step_s:,.0f}",
        f"{step_s:.2f}",
        f"{optimizer_s:.2f}" if optimizer_s else "",
        *(f"{_ratio(times, name, mine):.2f}x" for mine in beside),
    )


def _ratio(times: Times, name: str, mine: str) -> float:
    """How many times as fast `mine` is: the median of the ratios round by round."""
    rounds = zip(times[name], times[mine], strict=True)
    return median(theirs.step / own.step for theirs, own in rounds)


def _tokens(vocab_size: int) -> Tokens:
    return np.random.default_rng(123).integers(vocab_size, size=NUM_TOKENS, dtype=np.uint16)


PARTS: dict[str, Callable[[Bench], None]] = {
    "book": _book,
    "nanogpt": _nanogpt,
    "loader": _loader,
    "checkpoints": _checkpoints,
    "small": _small,
}


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--nanogpt", type=Path, metavar="FOLDER", help="a clone of nanoGPT")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="two rounds")
    parser.add_argument(
        "--cpu-time",
        action="store_true",
        help="one thread, by the seconds it computed: for a machine that others use as well",
    )
    return parser.parse_args()


if __name__ == "__main__":
    main()
