"""What training computes on a CPU in the Rust core: causal attention, dropout, GELU, and lengths.

    attention    scores, softmax and dropout of a head in cache; only sums of exponentials are kept
    dropout      which numbers go is a function of a seed and their place: nothing is kept
    gelu         as torch's, several times as fast
    total_norm   of gradients, as fast as memory is read

The first three are operators of torch's, with their gradients, which `torch.compile` calls and
looks no further. Random numbers begin with a seed that torch's generator on the CPU draws: whoever
restores its state gets the same numbers again.
"""

# Tensor names end in their shape: B batch, T tokens, H heads, K head_dim.

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from gptrs import _core

DTYPES = (torch.float32, torch.bfloat16)
"""What the operators compute."""
MULTIPLIES_BFLOAT16 = _core.NativeModel.available_kernels()[0] in ("amx", "avx512bf16")
"""Whether this processor has instructions for it (AMX, AVX-512 BF16)."""
MULTIPLIES_FLOAT32 = _core.matmul_beats_mkl() and torch.backends.mkl.is_available()
"""Whether the core is the faster in float32, too: see `linear`."""


def attention(
    query_BHTK: Tensor, key_BHTK: Tensor, value_BHTK: Tensor, scale: float, dropout: float = 0.0
) -> Tensor:
    """Causal attention of tensors on the CPU, float32 or bfloat16, [B, H, T, K].

    Args:
        scale: of the scores.
        dropout: what share of the weights is dropped.
    """
    seed = draw_seed() if dropout else None
    out_BTHK, _ = _attention(query_BHTK, key_BHTK, value_BHTK, seed, dropout, scale)
    out_BHTK: Tensor = out_BTHK.transpose(1, 2)
    return out_BHTK


def dropout(x: Tensor, p: float) -> Tensor:
    """`x` on the CPU, float32 or bfloat16: a share `p` becomes zero, the rest is divided by 1 - p.

    `p` is rounded to a multiple of 2^-16.
    """
    out: Tensor = _dropout(x, draw_seed(), p)
    return out


def gelu(x: Tensor) -> Tensor:
    """The tanh approximation of GELU, of a tensor on the CPU, float32 or bfloat16."""
    out: Tensor = _gelu(x)
    return out


def total_norm(tensors: Sequence[Tensor]) -> Tensor:
    """The length of all numbers together, float32 []; as `torch.nn.utils.get_total_norm`."""
    if not all(_is_plain(tensor) for tensor in tensors):
        return torch.nn.utils.get_total_norm(tensors)
    threads = torch.get_num_threads()
    return torch.tensor(math.sqrt(sum(_core.sum_of_squares(x, threads=threads) for x in tensors)))


def is_for_core(x: Tensor) -> bool:
    """Whether the core computes with such a tensor: float32 or bfloat16, on the CPU.

    Not where somebody asks or watches torch's own operators: `torch.func`'s transforms (vmap, for a
    gradient of each example), and modes such as FlopCounterMode. The compiler knows ours.
    """
    if x.device.type != "cpu" or x.dtype not in DTYPES:
        return False
    if torch.compiler.is_compiling():
        return True
    is_watched = torch._C._len_torch_dispatch_stack() > 0
    return not is_watched and not torch._C._are_functorch_transforms_active()


def _is_plain(x: Tensor) -> bool:
    """Whether it is a tensor that the core reads as it lies."""
    is_tensor = type(x) in (Tensor, torch.nn.Parameter) and x.layout == torch.strided
    return is_tensor and is_for_core(x) and x.is_contiguous()


def draw_seed() -> Tensor:
    """int64 [], from torch's generator on the CPU."""
    return torch.randint(2**63 - 1, (), device="cpu")


@torch.library.custom_op("gptrs::attention", mutates_args=())
def _attention(
    query_BHTK: Tensor,
    key_BHTK: Tensor,
    value_BHTK: Tensor,
    seed: Tensor | None,
    dropout: float,
    scale: float,
) -> tuple[Tensor, Tensor]:
    """What was attended to, [B, T, H, K]; and the logarithm of each row's sum, [B, H, T]."""
    out_BTHK, log_sums_BHT = _attention_like(query_BHTK)
    _core.attention(
        _rows_dense(query_BHTK),
        _rows_dense(key_BHTK),
        _rows_dense(value_BHTK),
        out_BTHK,
        log_sums_BHT,
        scale=scale,
        dropout=dropout,
        seed=_number(seed),
        threads=torch.get_num_threads(),
    )
    return out_BTHK, log_sums_BHT


@torch.library.custom_op("gptrs::attention_backward", mutates_args=())
def _attention_backward(
    query_BHTK: Tensor,
    key_BHTK: Tensor,
    value_BHTK: Tensor,
    out_BTHK: Tensor,
    log_sums_BHT: Tensor,
    grad_BTHK: Tensor,
    seed: Tensor | None,
    dropout: float,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of query, key and value, [B, T, H, K] each."""
    to_query, to_key, to_value = (torch.empty_like(out_BTHK) for _ in range(3))
    _core.attention_backward(
        _rows_dense(query_BHTK),
        _rows_dense(key_BHTK),
        _rows_dense(value_BHTK),
        out_BTHK.transpose(1, 2),
        _rows_dense(grad_BTHK).transpose(1, 2),
        log_sums_BHT,
        to_query,
        to_key,
        to_value,
        scale=scale,
        dropout=dropout,
        seed=_number(seed),
        threads=torch.get_num_threads(),
    )
    return to_query, to_key, to_value


def _attention_like(query_BHTK: Tensor) -> tuple[Tensor, Tensor]:
    B, H, T, K = query_BHTK.shape
    return query_BHTK.new_empty(B, T, H, K), query_BHTK.new_empty(B, H, T, dtype=torch.float32)


def _rows_dense(x: Tensor) -> Tensor:
    return x if x.stride(-1) == 1 else x.contiguous()


def _number(seed: Tensor | None) -> int:
    return 0 if seed is None else int(seed)


@_attention.register_fake
def _(
    query_BHTK: Tensor,
    key_BHTK: Tensor,
    value_BHTK: Tensor,
    seed: Tensor | None,
    dropout: float,
    scale: float,
) -> tuple[Tensor, Tensor]:
    return _attention_like(query_BHTK)


@_attention_backward.register_fake
def _(
    query_BHTK: Tensor,
    key_BHTK: Tensor,
    value_BHTK: Tensor,
    out_BTHK: Tensor,
    log_sums_BHT: Tensor,
    grad_BTHK: Tensor,
    seed: Tensor | None,
    dropout: float,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor]:
    return torch.empty_like(out_BTHK), torch.empty_like(out_BTHK), torch.empty_like(out_BTHK)


def _keep_attention(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    query_BHTK, key_BHTK, value_BHTK, seed, ctx.dropout, ctx.scale = inputs
    ctx.mark_non_differentiable(output[1])
    ctx.set_materialize_grads(False)  # No zeros for what has no gradient.
    ctx.save_for_backward(query_BHTK, key_BHTK, value_BHTK, *output, seed)


def _differentiate_attention(
    ctx: Any, grad_BTHK: Tensor | None, _: Tensor | None
) -> tuple[Tensor | None, ...]:
    if grad_BTHK is None:
        return (None,) * 6
    *saved, seed = ctx.saved_tensors
    grads = _attention_backward(*saved, grad_BTHK, seed, ctx.dropout, ctx.scale)
    return *(grad.transpose(1, 2) for grad in grads), None, None, None


_attention.register_autograd(_differentiate_attention, setup_context=_keep_attention)


@torch.library.custom_op("gptrs::dropout", mutates_args=())
def _dropout(x: Tensor, seed: Tensor, p: float) -> Tensor:
    out = torch.empty_like(x, memory_format=torch.contiguous_format)
    threads = torch.get_num_threads()
    _core.dropout(x.contiguous().view(-1), out.view(-1), p=p, seed=int(seed), threads=threads)
    return out


@_dropout.register_fake
def _(x: Tensor, seed: Tensor, p: float) -> Tensor:
    return torch.empty_like(x, memory_format=torch.contiguous_format)


def _keep_seed(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    _, seed, ctx.p = inputs
    ctx.save_for_backward(seed)


def _differentiate_dropout(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
    # It is linear: the same numbers of the gradient go.
    (seed,) = ctx.saved_tensors
    return _dropout(grad, seed, ctx.p), None, None


_dropout.register_autograd(_differentiate_dropout, setup_context=_keep_seed)


@torch.library.custom_op("gptrs::gelu", mutates_args=())
def _gelu(x: Tensor) -> Tensor:
    out = torch.empty_like(x, memory_format=torch.contiguous_format)
    _core.gelu(x.contiguous().view(-1), out.view(-1), threads=torch.get_num_threads())
    return out


@torch.library.custom_op("gptrs::gelu_backward", mutates_args=())
def _gelu_backward(x: Tensor, grad: Tensor) -> Tensor:
    out = torch.empty_like(x, memory_format=torch.contiguous_format)
    inputs = x.contiguous().view(-1), grad.contiguous().view(-1)
    _core.gelu_backward(*inputs, out.view(-1), threads=torch.get_num_threads())
    return out


@_gelu.register_fake
def _(x: Tensor) -> Tensor:
    return torch.empty_like(x, memory_format=torch.contiguous_format)


@_gelu_backward.register_fake
def _(x: Tensor, grad: Tensor) -> Tensor:
    return torch.empty_like(x, memory_format=torch.contiguous_format)


def _keep_input(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _differentiate_gelu(ctx: Any, grad: Tensor) -> Tensor:
    (x,) = ctx.saved_tensors
    if torch.is_grad_enabled():  # Somebody wants the gradient of the gradient: torch has it.
        y = F.gelu(x, approximate="tanh")
        with_graph: Tensor = torch.autograd.grad(y, x, grad, create_graph=True)[0]
        return with_graph
    to_input: Tensor = _gelu_backward(x, grad)
    return to_input


_gelu.register_autograd(_differentiate_gelu, setup_context=_keep_input)
