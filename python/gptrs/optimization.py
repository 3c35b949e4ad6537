"""How weights move: AdamW's groups, and the learning rate of each step."""

from __future__ import annotations

import math

import torch
from torch import nn

from gptrs.positions import TransformerXLKey
from gptrs.training_config import TrainingConfig


def build_optimizer(model: nn.Module, config: TrainingConfig) -> torch.optim.AdamW:
    """Fused AdamW over what requires a gradient; weight decay on matrices, none on vectors.

    Tables count as matrices: of tokens, positions, distances. Transformer-XL's u and v are vectors,
    one for each head.
    """
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    layers = [module for module in model.modules() if isinstance(module, TransformerXLKey)]
    of_heads = {id(vectors) for layer in layers for vectors in (layer.u, layer.v)}
    vectors = [p for p in parameters if p.ndim < 2 or id(p) in of_heads]
    matrices = [p for p in parameters if p.ndim >= 2 and id(p) not in of_heads]
    groups = [
        {"params": matrices, "weight_decay": config.weight_decay},
        {"params": vectors, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(
        groups, lr=config.learning_rate, betas=(config.beta1, config.beta2), fused=True
    )


def learning_rate_at(step: int, num_steps: int | None, config: TrainingConfig) -> float:
    """The learning rate of step 0..num_steps-1.

        rise     over `warmup_steps`, in a line, to `learning_rate`
        level    until the last `decay_fraction` of the run begins
        fall     along half a cosine, to `final_learning_rate` at the last step

    While `num_steps` is unknown, it does not fall.
    """
    if step < config.warmup_steps:
        return config.learning_rate * (step + 1) / config.warmup_steps
    if num_steps is None:
        return config.learning_rate
    last = num_steps - 1
    fall_begins = max(config.warmup_steps, (1 - config.decay_fraction) * last)
    fallen = min(1.0, max(0.0, (step - fall_begins) / max(1.0, last - fall_begins)))
    height = 0.5 * (1 + math.cos(math.pi * fallen))
    return height * config.learning_rate + (1 - height) * config.final_learning_rate
