"""The output layer's cross-entropy, forward and backward: torch's ways beside `gptrs.model.loss`.

Run by `make bench-loss`; ARGS=1 takes one thread.
"""

from collections.abc import Callable

import torch
from table import compare, print_header, seconds, take_threads
from torch import Tensor, nn
from torch.nn import functional as F

from gptrs.model.loss import linear_cross_entropy

NUM_ROWS, VOCAB_SIZE, WIDTHS = 2048, 50257, (128, 768)
NUM_MATMULS = 3  # logits and the two gradients


def torch_cross_entropy(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(F.linear(hidden, weight), targets)


def forward_and_backward(loss: Callable[..., Tensor], width: int) -> Callable[[], None]:
    torch.manual_seed(0)
    hidden = torch.randn(NUM_ROWS, width, requires_grad=True)
    weight = (torch.randn(VOCAB_SIZE, width) * 0.02).requires_grad_()
    targets = torch.randint(0, VOCAB_SIZE, (NUM_ROWS,))

    def run() -> None:
        hidden.grad = weight.grad = None
        with torch.autocast("cpu", torch.bfloat16):
            value = loss(hidden, weight, targets)
        value.backward()

    return run


def matmuls_alone(width: int) -> float:
    """Seconds of the step's matmuls in bfloat16, one block of the vocabulary after the other."""
    hidden = torch.randn(NUM_ROWS, width, dtype=torch.bfloat16)
    blocks = torch.randn(VOCAB_SIZE, width, dtype=torch.bfloat16).split(1024)

    def run() -> None:
        for block in blocks:
            hidden @ block.T

    return NUM_MATMULS * min(seconds(run) for _ in range(5))


def torch_in_chunks(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    """A few rows' logits at a time: what torch offers to save memory."""
    options = nn.LinearCrossEntropyOptions()
    return F.linear_cross_entropy(hidden, weight, targets, options=options)


def print_tables(rounds: int = 9) -> None:
    """One table for each width."""
    losses = {"torch cross_entropy": torch_cross_entropy}
    if hasattr(F, "linear_cross_entropy"):
        losses["torch linear_cross_entropy"] = F.linear_cross_entropy
        losses["the same, chunked"] = torch_in_chunks
    losses["gptrs linear_cross_entropy"] = linear_cross_entropy
    ceilings = [
        f"{NUM_ROWS / matmuls_alone(width):,.0f} rows/s at width {width}" for width in WIDTHS
    ]
    print_header(
        f"linear + cross-entropy, bfloat16, {NUM_ROWS} rows, V = {VOCAB_SIZE}",
        torch.get_num_threads(),
        f"the {NUM_MATMULS} matmuls alone, {', '.join(ceilings)}",
    )
    for width in WIDTHS:
        print(f"width {width}")
        runs = {name: forward_and_backward(loss, width) for name, loss in losses.items()}
        compare(runs, work=NUM_ROWS, unit="rows", rounds=rounds)


if __name__ == "__main__":
    take_threads(str(__doc__))
    print_tables()
