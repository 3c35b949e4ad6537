"""The 124M model, trained and run: ours beside the book's, nanoGPT's and transformers'.

Run by `make bench-model`; ARGS="--part train" (or memory, forward, loss) runs one part. nanoGPT is
no package: `git clone https://github.com/karpathy/nanoGPT`, then ARGS="--nanogpt nanoGPT".

    train     tokens/s of whole steps, batch 4 x 256: forward, loss, backward, AdamW
    memory    the peak of a step, batch 8 x 1024, bfloat16, each model in a process of its own
    forward   tokens/s without gradients, batch 8 x 1024
    loss      the output layer and its cross-entropy alone (benches/bench_loss.py)

Models in one table have the same shape, dropout and dtype, are compiled or not alike, and unless
their label says so take steps with the same optimizer.
"""

import argparse
import gc
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import bench_loss
import torch
import transformers
from llms_from_scratch import ch04
from peers import nanogpt
from table import compare, print_header, print_table, seconds
from torch import Tensor, nn

import gptrs
from gptrs.config import get_config
from gptrs.model.loss import next_token_loss

BOOK = gptrs.GPT_CONFIG_124M
GPT2 = replace(get_config("gpt2-124m"), drop_rate=0.0)  # As nanoGPT has it.
TRAIN_SHAPE, LONG_SHAPE = (4, 256), (8, 1024)
NO_NANOGPT = "nanoGPT: give its clone with --nanogpt FOLDER"
GB = 1e9

Loss = Callable[[Tensor, Tensor], Tensor]
"""Token ids and targets, [B, T] both, to a scalar."""


def main() -> None:
    """Prints the tables of the parts asked for."""
    args = _arguments()
    if args.peak_of:
        print(*_peak_of(args.peak_of, args.nanogpt))
        return
    parts = {"train": _train, "memory": _memory, "forward": _forward, "loss": _loss}
    print_header("124M parameters", torch.get_num_threads(), _ceiling())
    for name in [args.part] if args.part else parts:
        parts[name](args)


# --- Training steps ---


def _train(args: argparse.Namespace) -> None:
    book, ours = ch04.GPTModel(BOOK), gptrs.GPTModel(BOOK)
    _compare_steps(
        "as the book trains: float32, dropout 0.1, untied",
        {
            "the book": _step(book, _book_loss(book)),
            "gptrs, fused AdamW": _step(ours, _our_loss(ours), fused=True),
            "gptrs, calc_loss_batch": _step(ours, _book_loss(ours)),
            "gptrs": _step(ours, _our_loss(ours)),
        },
        args.rounds,
    )
    del book, ours
    for dtype, compiled in ((torch.float32, False), (torch.bfloat16, True)):
        gc.collect()
        candidates = {}
        if args.nanogpt:
            theirs = nanogpt.gpt2_124m(args.nanogpt)
            candidates["nanoGPT"] = _step(theirs, _nanogpt_loss(theirs), dtype, compiled=compiled)
        ours = gptrs.GPTModel(GPT2)
        loss = _our_loss(ours)
        candidates["gptrs, fused AdamW"] = _step(ours, loss, dtype, compiled=compiled, fused=True)
        candidates["gptrs"] = _step(ours, loss, dtype, compiled=compiled)
        how = "bfloat16 autocast, compiled" if compiled else "float32"
        _compare_steps(f"as nanoGPT trains: {how}, no dropout, tied", candidates, args.rounds)
        if not args.nanogpt:
            print(f"{NO_NANOGPT}\n")


def _compare_steps(title: str, steps: dict[str, Callable[[], None]], rounds: int) -> None:
    batch_size, length = TRAIN_SHAPE
    print(f"training step, batch {batch_size} x {length}, {title}")
    compare(steps, work=batch_size * length, unit="tokens", rounds=rounds)


def _step(
    model: nn.Module,
    loss: Loss,
    dtype: torch.dtype = torch.float32,
    *,
    shape: tuple[int, int] = TRAIN_SHAPE,
    compiled: bool = False,
    fused: bool = False,
) -> Callable[[], None]:
    """One step on random tokens, with the AdamW that the book and nanoGPT use on a CPU."""
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=4e-4, weight_decay=0.1, fused=fused)
    in_idx, targets = torch.randint(50257, (2, *shape))
    if compiled:
        loss = torch.compile(loss)

    def step() -> None:
        optimizer.zero_grad()
        with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
            value = loss(in_idx, targets)
        value.backward()
        optimizer.step()

    return step


def _our_loss(model: gptrs.GPTModel) -> Loss:
    """What `gptrs train` minimises."""
    return lambda in_idx, targets: next_token_loss(model, in_idx, targets)


def _book_loss(model: nn.Module) -> Loss:
    return lambda in_idx, targets: gptrs.calc_loss_batch(in_idx, targets, model, "cpu")


def _nanogpt_loss(model: nn.Module) -> Loss:
    def loss(in_idx: Tensor, targets: Tensor) -> Tensor:
        value: Tensor = model(in_idx, targets)[1]
        return value

    return loss


# --- Memory ---


def _memory(args: argparse.Namespace) -> None:
    batch_size, length = LONG_SHAPE
    print(f"peak memory of training steps, batch {batch_size} x {length}, bfloat16 autocast, eager")
    if not Path("/proc/self/status").exists():
        print("read from /proc/self/status, which this system has not\n")
        return
    names = ["nanoGPT", "gptrs"] if args.nanogpt else ["gptrs"]
    peaks = {}
    rows = []
    for name in names:
        command = [sys.executable, __file__, "--peak-of", name]
        command += ["--nanogpt", str(args.nanogpt)] if args.nanogpt else []
        output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        imported, built, peak = map(float, output.split())
        peaks[name] = peak - imported
        rows.append([name, *(f"{size:.2f}" for size in (peak, peak - imported, peak - built))])
    for row in rows:
        row.append(f"{100 * peaks['gptrs'] / peaks[row[0]]:.0f} %")
    columns = ("GB", "whole process", "without torch", "and without model", "ours is")
    print_table(columns, rows if args.nanogpt else [*rows, [NO_NANOGPT]])


def _peak_of(name: str, nanogpt_folder: Path) -> tuple[float, float, float]:
    """GB resident: with all imported, with the model built, and at most in two training steps."""
    imported = _status_gb("VmRSS")
    if name == "gptrs":
        model: nn.Module = gptrs.GPTModel(GPT2)
        loss = _our_loss(model)
    else:
        model = nanogpt.gpt2_124m(nanogpt_folder)
        loss = _nanogpt_loss(model)
    built = _status_gb("VmRSS")
    step = _step(model, loss, torch.bfloat16, shape=LONG_SHAPE)
    for _ in range(2):  # The second has the optimizer's state from its start.
        step()
    return imported, built, _status_gb("VmHWM")


def _status_gb(field: str) -> float:
    """VmRSS, what is resident now, or VmHWM, the most there was."""
    for line in Path("/proc/self/status").read_text().splitlines():
        name, _, value = line.partition(":")
        if name == field:
            return int(value.split()[0]) * 1024 / GB
    raise KeyError(field)


# --- Inference ---


def _forward(args: argparse.Namespace) -> None:
    batch_size, length = LONG_SHAPE
    in_idx = torch.randint(50257, LONG_SHAPE)
    models = {
        "the book": ch04.GPTModel(BOOK),
        "transformers, sdpa": transformers.GPT2LMHeadModel(
            transformers.GPT2Config(attn_implementation="sdpa", use_cache=False)
        ),
        "gptrs": gptrs.GPTModel(BOOK),
    }
    for dtype in ("float32", "bfloat16"):
        print(f"forward pass, batch {batch_size} x {length}, all logits, {dtype}")
        runs = {
            name: _inference(model.eval().to(getattr(torch, dtype)), in_idx)
            for name, model in models.items()
        }
        compare(runs, work=in_idx.numel(), unit="tokens", rounds=args.rounds)


def _inference(model: nn.Module, in_idx: Tensor) -> Callable[[], None]:
    @torch.inference_mode()
    def run() -> None:
        model(in_idx)

    return run


def _loss(args: argparse.Namespace) -> None:
    bench_loss.print_tables(args.rounds)


def _ceiling() -> str:
    """What matmuls of a block's shape reach, and the training tokens/s they would allow."""
    flops_per_token = 6 * 123.6e6  # Kaplan et al. 2020, of the weights that are multiplied by
    phrases = []
    for dtype in (torch.float32, torch.bfloat16):
        x, weight = torch.ones(1024, 768, dtype=dtype), torch.ones(3072, 768, dtype=dtype)
        best = min(seconds(lambda a=x, b=weight: a @ b.T) for _ in range(20))
        speed = 2 * 1024 * 768 * 3072 / best
        name = str(dtype).removeprefix("torch.")
        phrases.append(
            f"{name} {speed / 1e9:,.0f} GFLOP/s, {speed / flops_per_token:,.0f} tokens/s"
        )
    return f"matmuls of a training step alone: {'; '.join(phrases)}"


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--part", choices=["train", "memory", "forward", "loss"])
    parser.add_argument("--nanogpt", type=Path, metavar="FOLDER", help="a clone of nanoGPT")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--peak-of", choices=["nanoGPT", "gptrs"], help=argparse.SUPPRESS)
    return parser.parse_args()


if __name__ == "__main__":
    main()
