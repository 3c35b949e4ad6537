"""The output layer's cross-entropy, forward and backward: torch's ways beside `gptrs.loss`.

Run by hand: `python benches/bench_loss.py [threads]`. Best of five, the candidates taking turns.
"""

import platform
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from gptrs.loss import linear_cross_entropy

NUM_ROWS, VOCAB_SIZE, WIDTHS, REPEATS = 2048, 50257, (128, 768), 5

Loss = Callable[[Tensor, Tensor, Tensor], Tensor]


def torch_cross_entropy(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(F.linear(hidden, weight), targets)


def candidates() -> dict[str, Loss]:
    losses: dict[str, Loss] = {"torch cross_entropy": torch_cross_entropy}
    if hasattr(F, "linear_cross_entropy"):
        losses["torch linear_cross_entropy"] = F.linear_cross_entropy
    return losses | {"gptrs linear_cross_entropy": linear_cross_entropy}


def seconds(loss: Loss, width: int) -> float:
    torch.manual_seed(0)
    hidden = torch.randn(NUM_ROWS, width, requires_grad=True)
    weight = (torch.randn(VOCAB_SIZE, width) * 0.02).requires_grad_()
    targets = torch.randint(0, VOCAB_SIZE, (NUM_ROWS,))
    start = time.perf_counter()
    with torch.autocast("cpu", torch.bfloat16):
        value = loss(hidden, weight, targets)
    value.backward()
    return time.perf_counter() - start


def processor_name() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def main() -> None:
    if len(sys.argv) > 1:
        torch.set_num_threads(int(sys.argv[1]))
    print(
        f"{processor_name()}, {torch.get_num_threads()} threads, torch {torch.__version__}\n"
        f"{NUM_ROWS} rows, V = {VOCAB_SIZE}, bfloat16 autocast, forward and backward\n"
    )
    print(f"{'':28}" + "".join(f"{f'width {w}, s':>15}{'ratio':>8}" for w in WIDTHS))
    losses = candidates()
    for loss in losses.values():
        seconds(loss, WIDTHS[0])  # warm-up
    best = {
        (name, width): min(run)
        for width in WIDTHS
        for name, run in _turns(losses, width).items()
    }
    for name in losses:
        cells = [
            f"{best[name, w]:15.3f}{best['torch cross_entropy', w] / best[name, w]:8.2f}" for w in WIDTHS
        ]
        print(f"{name:28}" + "".join(cells))


def _turns(losses: dict[str, Loss], width: int) -> dict[str, list[float]]:
    """Each candidate's times, one candidate after the other, so that a busy moment hits them all."""
    times: dict[str, list[float]] = {name: [] for name in losses}
    for _ in range(REPEATS):
        for name, loss in losses.items():
            times[name].append(seconds(loss, width))
    return times


if __name__ == "__main__":
    main()
