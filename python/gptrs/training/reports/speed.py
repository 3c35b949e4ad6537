"""How fast a run is, and how fast it could be: its MFU; and how fast a model trains here, measured.

RunSpeed               tokens/s ─► the share of the device's peak that a run uses
measured_flops_per_s   model, device, dtype ─► FLOP/s of a few training steps, timed
"""

from __future__ import annotations

import platform
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from gptrs.config import GPTConfig
from gptrs.costs.flops import KAPLAN, MATMULS, flops_per_token
from gptrs.costs.params import count_parameters
from gptrs.training.reports.peaks import Peak, peak, utilisation

if TYPE_CHECKING:
    from gptrs.training.callbacks import RunView


@dataclass(frozen=True, kw_only=True, slots=True)
class RunSpeed:
    """What a run's tokens/s are measured against."""

    device: str
    """Its name, as the driver or the system tells it."""
    num_devices: int
    training_flops: int
    """Of a token: forward and backward, nothing computed twice."""
    peak: Peak

    @classmethod
    def of(cls, run: RunView) -> RunSpeed:
        """What holds for a run that begins; on a CPU, the first time, a matmul is timed."""
        device = torch.device(run.start.get("device", "cpu"))
        dtype = str(run.start.get("dtype", "float32"))
        return cls(
            device=_name(device),
            num_devices=int(run.start.get("world_size", 1)),
            training_flops=training_flops(run.model.cfg, _num_adapters(run)),
            peak=peak(device, dtype),
        )

    def mfu(self, tokens_per_s: float) -> float | None:
        """The share of the peak that so many tokens/s, of all devices, use; None: unknown."""
        return utilisation(
            tokens_per_s, self.training_flops, self.peak.flops_per_s, self.num_devices
        )

    def to_dict(self) -> dict[str, Any]:
        """For metrics.jsonl."""
        return {
            "name": self.device,
            "num_devices": self.num_devices,
            "training_flops_per_token": self.training_flops,
            "peak_flops_per_s": self.peak.flops_per_s,
            "peak_source": self.peak.source,
        }


def training_flops(cfg: GPTConfig, num_adapters: int = 0) -> int:
    """FLOPs of a token to train with, all matmuls counted: 6 N + 12 L D T.

    Args:
        num_adapters: weights of adapters that alone learn; then it is 4 N + 12 L D T, and 6 for
            each of theirs: of a frozen weight no gradient is computed. 0: all weights learn.
    """
    rows = {row.part: row for row in flops_per_token(cfg)}
    if not num_adapters:
        return rows[MATMULS].training
    frozen = [row for part, row in rows.items() if part not in (KAPLAN, MATMULS, "attention")]
    return rows[MATMULS].training - sum(row.inference for row in frozen) + 6 * num_adapters


def _num_adapters(run: RunView) -> int:
    """The weights of adapters, where they alone learn; 0 where others do, or nothing tells."""
    trained, there_are = (
        run.start.get(key, 0) for key in ("num_trained_parameters", "num_parameters")
    )
    is_beside = there_are - trained == count_parameters(run.model.cfg)
    return int(trained) if is_beside else 0


def _name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    if device.type != "cpu":
        return device.type
    try:  # Elsewhere than on Linux platform has a name; there it has none.
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    models = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(models, platform.processor() or platform.machine())
