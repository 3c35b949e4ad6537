"""How fast a model trains here, tried out: a few passes, timed."""

from __future__ import annotations

import time

import torch
from torch import Tensor

from gptrs.config import GPTConfig
from gptrs.devices import Precision
from gptrs.model.gpt import GPTModel
from gptrs.model.loss import next_token_loss
from gptrs.training.config import DtypeName
from gptrs.training.precision import training_precision
from gptrs.training.reports.speed import training_flops

_MOST_TOKENS = 8192
_PASSES, _PASS_S = 3, 0.5


def measured_flops_per_s(
    cfg: GPTConfig,
    device: torch.device,
    dtype: DtypeName = "auto",
    *,
    num_windows: int | None = None,
) -> float:
    """Model FLOP/s of forward and backward passes of `cfg`'s model here: the quickest counts.

    For a model that has room on the device: it is built. The optimizer's time is not in it, nor
    what torch.compile would gain. Leaves torch's generators as they were.

    Args:
        dtype: as for a run; "pure-bfloat16" is timed as "bfloat16".
        num_windows: how many go through the model at once; fewer where these take long. None:
            8,192 tokens.
    Raises:
        ConfigError: the device has no such dtype.
    """
    precision = training_precision(dtype, device)._replace(is_pure=False)
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(0)
        model = GPTModel(cfg).to(device)
        most = num_windows or max(1, _MOST_TOKENS // cfg.context_length)
        ids_BT = torch.randint(cfg.vocab_size, (most, cfg.context_length), device=device)
        _pass_s(model, ids_BT[:1], precision)  # Warms up.
        one_s = quickest = _pass_s(model, ids_BT[:1], precision)
        ids_BT = ids_BT[: max(1, int(_PASS_S / one_s))]
        if len(ids_BT) > 1:
            quickest = min(_pass_s(model, ids_BT, precision) for _ in range(_PASSES))
    return ids_BT.numel() * training_flops(cfg) / quickest


def _pass_s(model: GPTModel, ids_BT: Tensor, precision: Precision) -> float:
    """Seconds of a forward and a backward pass."""
    model.zero_grad()
    began = time.perf_counter()
    with precision.autocast(ids_BT.device):
        loss = next_token_loss(model, ids_BT, ids_BT)
    loss.backward()
    if ids_BT.device.type == "cuda":
        torch.cuda.synchronize(ids_BT.device)
    return time.perf_counter() - began
