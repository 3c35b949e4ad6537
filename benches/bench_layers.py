"""Training's layers, torch's beside the Rust core's: attention, GELU, dropout, linear layers.

Run by `make bench-layers`; ARGS=1 takes one thread. Each is a forward and a backward pass.
"""

from collections.abc import Callable

import torch
from table import compare, copy_ceiling, print_header, take_threads
from torch import Tensor, nn
from torch.nn import functional as F

from gptrs.model import operators
from gptrs.model.linear import Linear

SHAPES = ((4, 12, 256, 64), (2, 12, 1024, 64))
LINEAR_SHAPES = ((1024, 768, 768), (1024, 768, 3072), (1024, 3072, 768), (1024, 768, 50257))
"""Rows, and the widths on both sides: the layers of 124M, at batch 4 x 256."""
DROPOUT = 0.1


def passes(function: Callable[..., Tensor], *inputs: Tensor) -> Callable[[], None]:
    """One of both, with the gradient of the output's shape."""
    inputs = tuple(x.requires_grad_() for x in inputs)
    grad = torch.randn_like(function(*inputs))

    def run() -> None:
        torch.autograd.grad(function(*inputs), inputs, grad)

    return run


def attentions(p: float) -> dict[str, Callable[..., Tensor]]:
    """Both ways to attend."""
    return {
        "torch": lambda *qkv: F.scaled_dot_product_attention(*qkv, None, p, is_causal=True),
        "gptrs": lambda *qkv: operators.attention(*qkv, qkv[0].shape[-1] ** -0.5, p),
    }


def print_tables(rounds: int = 15) -> None:
    """One table for each operator, shape and dtype."""
    threads = torch.get_num_threads()
    print_header("training's layers, forward and backward", threads, copy_ceiling())
    for dtype in (torch.bfloat16, torch.float32):
        name = str(dtype).removeprefix("torch.")
        for B, H, T, K in SHAPES:
            qkv = [torch.randn(B, T, H, K, dtype=dtype).transpose(1, 2) for _ in range(3)]
            for p in (0.0, DROPOUT):
                print(f"attention, {B} x {H} heads, {T} tokens, {K} wide, {name}, dropout {p}")
                runs = {each: passes(f, *qkv) for each, f in attentions(p).items()}
                compare(runs, work=B * T, unit="tokens", rounds=rounds)
        x = torch.randn(4, 256, 3072, dtype=dtype)
        print(f"GELU, {x.numel():,} numbers, {name}")
        gelus = {"torch": lambda x: F.gelu(x, approximate="tanh"), "gptrs": operators.gelu}
        runs = {each: passes(f, x) for each, f in gelus.items()}
        compare(runs, work=x.numel(), unit="numbers", rounds=rounds)
        print(f"dropout {DROPOUT}, {x.numel():,} numbers, {name}")
        dropouts = {"torch": F.dropout, "gptrs": operators.dropout}
        runs = {each: passes(lambda x, f=f: f(x, DROPOUT), x) for each, f in dropouts.items()}
        compare(runs, work=x.numel(), unit="numbers", rounds=rounds)
    print_linear_tables(rounds)


def print_linear_tables(rounds: int) -> None:
    """The core's products, whichever `gptrs.model.linear` would take on this processor."""
    operators.MULTIPLIES_FLOAT32 = True
    for num_rows, in_features, out_features in LINEAR_SHAPES:
        print(f"linear layer, {num_rows:,} rows, {in_features:,} to {out_features:,}, float32")
        x = torch.randn(num_rows, in_features)
        runs = {}
        for name, kind in (("torch", nn.Linear), ("gptrs", Linear)):
            layer = kind(in_features, out_features, bias=False)
            runs[name] = passes(lambda x, _, layer=layer: layer(x), x, layer.weight)
        compare(runs, work=num_rows, unit="rows", rounds=rounds)


if __name__ == "__main__":
    take_threads(str(__doc__))
    print_tables()
