"""What each kind of positions costs: a training step's time and memory beside the learned table's.

A step is forward, loss and backward of the 124M model; the optimizer is left out. Bars: 1.3 times
the learned kind's step, 2 times for Transformer-XL.

Run by hand: `python benches/bench_positions.py [--layers 3] [--device cuda --tokens 1024]`.
"""

import argparse
import subprocess
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path
from statistics import median
from typing import get_args

import torch
from table import print_header, print_table, seconds

from gptrs import GPTModel
from gptrs.config import GPT_CONFIG_124M, GPTConfig, Pos
from gptrs.model.loss import next_token_loss

KINDS = get_args(Pos)  # the learned one first
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
BARS = dict.fromkeys(KINDS, 1.3) | {"transformer_xl": 2.0}


def main() -> None:
    args = arguments()
    if args.threads:
        torch.set_num_threads(args.threads)
    if args.memory_of:
        print(peak_bytes(args.memory_of, args))
        return
    steps = steps_that_share_weights(args)
    print_header(
        f"positions, 124M shape, {args.layers} layers, batch {args.batch} x {args.tokens} tokens",
        torch.get_num_threads(),
        "the learned kind's step; bars at 1.3x, transformer_xl at 2x",
    )
    for name in args.dtypes:
        times = in_turn({kind: partial(step, name) for kind, step in steps.items()}, args.rounds)
        peaks = {kind: peak_in_a_process_of_its_own(kind, name) for kind in KINDS}
        print(name if name == "float32" else f"{name} autocast")
        columns = ("", "tokens/s", "x learned", "bar", "peak MB", "x learned")
        num_tokens = args.batch * args.tokens
        print_table(columns, [row(kind, times, peaks, num_tokens) for kind in KINDS])


def row(
    kind: Pos, times: dict[Pos, list[float]], peaks: dict[Pos, int], num_tokens: int
) -> tuple[str, ...]:
    """One kind's line: the ratio of times is the median of the ratios round by round."""
    ratios = [mine / base for mine, base in zip(times[kind], times["learned"], strict=True)]
    return (
        kind,
        f"{num_tokens / median(times[kind]):,.0f}",
        f"{median(ratios):.2f}",
        f"{BARS[kind]:.1f}",
        f"{peaks[kind] / 1e6:,.0f}",
        f"{peaks[kind] / peaks['learned']:.2f}",
    )


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="The cost of each kind of positions.")
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--tokens", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtypes", nargs="+", choices=DTYPES, default=list(DTYPES))
    parser.add_argument("--memory-of", choices=KINDS, help=argparse.SUPPRESS)
    return parser.parse_args()


def build(kind: Pos, args: argparse.Namespace) -> GPTModel:
    torch.manual_seed(123)
    shape = {"context_length": args.tokens, "n_layers": args.layers, "drop_rate": 0.0}
    with torch.device(args.device):
        return GPTModel(GPTConfig.of({**GPT_CONFIG_124M, **shape, "pos": kind}))


def steps_that_share_weights(args: argparse.Namespace) -> dict[str, Callable[[str], None]]:
    """Each kind's step; one set of weights for all, so that nine models fit into memory."""
    models = {}
    for kind in KINDS:
        models[kind] = build(kind, args)
        models[kind].load_state_dict(models["learned"].state_dict(), strict=False, assign=True)
    return {kind: training_step(model, args) for kind, model in models.items()}


def training_step(model: GPTModel, args: argparse.Namespace) -> Callable[[str], None]:
    shape = (args.batch, args.tokens)
    ids, targets = torch.randint(0, model.cfg.vocab_size, (2, *shape), device=args.device)

    def step(dtype_name: str) -> None:
        with autocast(args.device, dtype_name):
            loss = next_token_loss(model, ids, targets)
        loss.backward()
        model.zero_grad()
        if ids.is_cuda:
            torch.cuda.synchronize()

    return step


def autocast(device: str, dtype_name: str) -> AbstractContextManager:
    """bfloat16 by autocast, as `gptrs train` has it; float32 plainly."""
    if dtype_name == "float32":
        return nullcontext()
    return torch.autocast(torch.device(device).type, DTYPES[dtype_name])


def in_turn(runs: dict[str, Callable[[], None]], rounds: int) -> dict[str, list[float]]:
    """Seconds of each run, round by round."""
    for run in runs.values():
        run()  # warm-up
    rows = [{name: seconds(run) for name, run in runs.items()} for _ in range(rounds)]
    return {name: [row[name] for row in rows] for name in runs}


def peak_in_a_process_of_its_own(kind: Pos, dtype_name: str) -> int:
    """Bytes: memory that one kind has freed would hide what the next one takes."""
    command = [sys.executable, __file__, *sys.argv[1:], "--memory-of", kind, "--dtypes", dtype_name]
    return int(subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout)


def peak_bytes(kind: Pos, args: argparse.Namespace) -> int:
    """What this process, or the GPU, held at most in two steps: weights and gradients too."""
    step = training_step(build(kind, args), args)
    for _ in range(2):
        step(args.dtypes[0])
    if args.device != "cpu":
        return torch.cuda.max_memory_allocated()
    status = Path("/proc/self/status").read_text().splitlines()
    peak_kb = next(line.split()[1] for line in status if line.startswith("VmHWM:"))
    return int(peak_kb) * 1024


if __name__ == "__main__":
    main()
