"""Products of float32 on a CPU, by the Rust core where it is the faster.

    matmul    a product into a tensor that there is, as the loss needs it
    Linear    torch.nn.Linear, with its three products: output, gradients of input and weight

PyTorch leaves float32 to MKL, which keeps its best code for Intel's processors. On others with
AVX-512 the core's products are 1.1 to 1.4 times as fast where they are large; everywhere else, and
in any other dtype, all is torch's.
"""

# Tensor names end in their shape: R rows, I in_features, O out_features.

from typing import Any, TypeGuard

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gptrs import _core
from gptrs.model import operators

MANY_PRODUCTS = 1 << 27
"""From so many multiplications on it is: packing takes time, too."""
FEWEST_ROWS = 128
"""So many at least on each side, so that what is packed is used often enough."""


def matmul(left: Tensor, right: Tensor, out: Tensor, *, adds: bool = False) -> None:
    """Fills `out` with `left @ right`, or adds that to it, without gradients.

    Args:
        left: [M, K]; right: [K, N]; out: [M, N], contiguous; all of one dtype and device.
    """
    if _is_for_core(left, right):
        _multiply(left, right, out, adds=adds)
    elif adds:
        out.addmm_(left, right)
    else:
        torch.mm(left, right, out=out)


class Linear(nn.Linear):
    """`torch.nn.Linear`: the same parameters, drawn alike, and the same output to rounding."""

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002  # torch's name
        """[..., in_features] to [..., out_features]."""
        weight_OI, bias_O = self.weight, self.bias
        is_plain = type(weight_OI) is nn.Parameter and not torch.is_autocast_enabled("cpu")
        if is_plain and _is_for_core(input, weight_OI):
            out: Tensor = _linear(input, weight_OI, bias_O)
            return out
        return F.linear(input, weight_OI, bias_O)


def is_plain(module: object) -> TypeGuard[nn.Linear]:
    """Whether its class only multiplies by its weight and adds its bias."""
    return type(module) in (nn.Linear, Linear)


def _is_for_core(left: Tensor, right: Tensor) -> bool:
    """Whether the core multiplies `left`, whose rows may have any shape, and a matrix, or turned.

    A program that is exported for others is made of torch's operators.
    """
    if (
        not operators.MULTIPLIES_FLOAT32
        or not left.dtype == right.dtype == torch.float32
        or not (operators.is_for_core(left) and operators.is_for_core(right))
        or torch.compiler.is_exporting()
    ):
        return False
    num_rows = left.numel() // max(left.shape[-1], 1)
    is_large = num_rows * right.numel() >= MANY_PRODUCTS
    return is_large and min(num_rows, *right.shape) >= FEWEST_ROWS


def _multiply(
    left: Tensor, right: Tensor, out: Tensor, *, row: Tensor | None = None, adds: bool = False
) -> None:
    """By the core, matrices that lie as they like."""
    left, right = _in_pieces(left), _in_pieces(right)
    _core.matmul(left, right, out, row=row, adds=adds, threads=torch.get_num_threads())


def _in_pieces(x: Tensor) -> Tensor:
    """The same matrix, its rows or its columns contiguous."""
    return x if 1 in x.stride() and 0 not in x.stride() else x.contiguous()


@torch.library.custom_op("gptrs::matmul", mutates_args=())
def _product(left: Tensor, right: Tensor) -> Tensor:
    out = left.new_empty(left.shape[0], right.shape[1])
    matmul(left, right, out)
    return out


@torch.library.custom_op("gptrs::linear", mutates_args=())
def _linear(input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:  # noqa: A002
    out = _output(input, weight)
    rows, bias = input.reshape(-1, weight.shape[1]), None if bias is None else bias.contiguous()
    _multiply(rows, weight.t(), out.view(-1, len(weight)), row=bias)
    return out


def _output(input: Tensor, weight: Tensor) -> Tensor:  # noqa: A002
    return input.new_empty(*input.shape[:-1], len(weight))


@_product.register_fake
def _(left: Tensor, right: Tensor) -> Tensor:
    return left.new_empty(left.shape[0], right.shape[1])


@_linear.register_fake
def _(input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:  # noqa: A002
    return _output(input, weight)


def _keep_linear(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    input, weight, _ = inputs  # noqa: A001
    ctx.save_for_backward(input, weight)


def _differentiate_linear(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    input, weight_OI = ctx.saved_tensors  # noqa: A001
    O, I = weight_OI.shape  # noqa: E741
    input_RI, grad_RO = input.reshape(-1, I), grad.reshape(-1, O)
    # Somebody who wants the gradient of the gradient needs products that have one.
    multiply = torch.mm if torch.is_grad_enabled() else _product
    needs_input, needs_weight, needs_bias = ctx.needs_input_grad
    return (
        multiply(grad_RO, weight_OI).view_as(input) if needs_input else None,
        multiply(grad_RO.t(), input_RI) if needs_weight else None,
        grad_RO.sum(dim=0) if needs_bias else None,
    )


_linear.register_autograd(_differentiate_linear, setup_context=_keep_linear)
