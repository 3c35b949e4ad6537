"""How weights move: the optimizers and their groups, clipping, and the learning rate of each step.

    matrices of the blocks    AdamW, or Muon             decay
    output layer              AdamW                      decays
    tables                    AdamW                      decay, unless decay_embeddings is False
    vectors                   AdamW                      do not decay, unless decay_1d

Tables are those of tokens, positions and distances; vectors are biases, norms, and Transformer-XL's
u and v, one for each head. An output layer that is tied to the table of tokens is that table.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Literal

import torch
from torch import Tensor, nn

from gptrs.errors import CheckpointError
from gptrs.model.positions import TransformerXLKey
from gptrs.training.config import TrainingConfig

Kind = Literal["matrix", "output", "table", "vector"]


class Optimizers:
    """One or two of torch's optimizers that share out a model's parameters, by their names.

    Args:
        model: whose parameters that require a gradient are optimized.
        masters: what is optimized in the place of these parameters, by name.
    """

    def __init__(
        self,
        model: nn.Module,
        config: TrainingConfig,
        learning_rate: float,
        masters: Mapping[str, nn.Parameter] | None = None,
    ) -> None:
        kinds = parameter_kinds(model)
        self.parameters = {
            name: (masters or {}).get(name, parameter)
            for name, parameter in model.named_parameters()
            if parameter.requires_grad
        }
        is_muons = config.optimizer == "muon"
        muon: list[nn.Parameter] = []
        by_decay: dict[float, list[nn.Parameter]] = {}
        for name, parameter in self.parameters.items():
            if is_muons and kinds[name] == "matrix":
                muon.append(parameter)
            else:
                by_decay.setdefault(_decay(kinds[name], config), []).append(parameter)
        self._optimizers: list[torch.optim.Optimizer] = []
        if by_decay:
            groups = [{"params": ps, "weight_decay": decay} for decay, ps in by_decay.items()]
            betas = float(config.beta1), float(config.beta2)  # torch takes no int.
            self._optimizers.append(
                torch.optim.AdamW(groups, lr=learning_rate, betas=betas, fused=True)
            )
        if muon:
            # With AdamW's root mean square of an update, one learning rate fits both.
            self._optimizers.append(
                torch.optim.Muon(
                    muon,
                    lr=learning_rate,
                    weight_decay=config.weight_decay,
                    adjust_lr_fn="match_rms_adamw",
                )
            )

    def step(
        self, learning_rate: float, grad_norm: float = 0.0, max_norm: float = math.inf
    ) -> None:
        """Moves all parameters by their gradients, and drops these.

        Gradients whose length all together, `grad_norm`, is more than `max_norm` are scaled down.
        """
        # As torch.nn.utils.clip_grad_norm_ does.
        shrink = (grad_norm + 1e-6) / max_norm if grad_norm > max_norm else None
        for optimizer in self._optimizers:
            for group in optimizer.param_groups:
                group["lr"] = learning_rate
            _scale_down(optimizer, shrink)
            optimizer.step()
            optimizer.zero_grad()

    def zero_grad(self) -> None:
        """Drops all gradients."""
        for optimizer in self._optimizers:
            optimizer.zero_grad()

    def gradients(self) -> list[Tensor]:
        """Of all parameters that have one."""
        return [p.grad for p in self.parameters.values() if p.grad is not None]

    def weight_decays(self) -> dict[str, float]:
        """Each parameter's, by name."""
        decays = {
            id(parameter): group["weight_decay"]
            for optimizer in self._optimizers
            for group in optimizer.param_groups
            for parameter in group["params"]
        }
        return {name: decays[id(parameter)] for name, parameter in self.parameters.items()}

    def state(self) -> dict[str, Tensor]:
        """What the optimizers remember: `exp_avg.tok_emb.weight` ...; the tensors themselves."""
        return {
            f"{what}.{name}": tensor
            for name, optimizer in self._owners()
            for what, tensor in optimizer.state[self.parameters[name]].items()
        }

    def load_state(self, tensors: Mapping[str, Tensor]) -> None:
        """Takes what `state` gave, copied.

        Raises:
            CheckpointError: it is of other parameters, or of another optimizer; nothing was taken.
        """
        found: dict[str, dict[str, Tensor]] = {}
        for key, tensor in tensors.items():
            what, _, name = key.partition(".")
            found.setdefault(name, {})[what] = tensor
        if found and found.keys() != self.parameters.keys():
            differing = sorted(found.keys() ^ self.parameters.keys())
            raise CheckpointError(f"the optimizer's state is of other weights: {differing[:4]}")
        for name, optimizer in self._owners():
            parameter = self.parameters[name]
            expected = _MUON_STATE if isinstance(optimizer, torch.optim.Muon) else _ADAMW_STATE
            state = found.get(name, {})
            if state and state.keys() != expected:
                raise CheckpointError(
                    f"the optimizer's state of {name} is {sorted(state)}, expected "
                    f"{sorted(expected)}: it is of another optimizer"
                )
            for what, tensor in state.items():
                # torch keeps the count of a fused AdamW's steps on the device, in float32.
                copied = tensor.to(parameter.device, copy=True)
                optimizer.state[parameter][what] = copied

    def _owners(self) -> Iterator[tuple[str, torch.optim.Optimizer]]:
        """Each parameter's name, with its optimizer."""
        owners = {
            id(parameter): optimizer
            for optimizer in self._optimizers
            for group in optimizer.param_groups
            for parameter in group["params"]
        }
        for name, parameter in self.parameters.items():
            yield name, owners[id(parameter)]


_ADAMW_STATE = {"step", "exp_avg", "exp_avg_sq"}
_MUON_STATE = {"momentum_buffer"}


class MasterWeights:
    """float32 copies of bfloat16 parameters, which alone are optimized: "pure" bfloat16.

    The model's own weights become bfloat16. Their gradients are added up in float32, so that those
    of many micro-batches lose nothing, and `publish` rounds what the optimizer made.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self.masters = {
            name: nn.Parameter(parameter.detach().float().clone())
            for name, parameter in model.named_parameters()
            if parameter.requires_grad
        }
        model.to(torch.bfloat16)
        self._rounded = {
            name: parameter
            for name, parameter in model.named_parameters()
            if parameter.requires_grad
        }
        self._hooks = [
            parameter.register_post_accumulate_grad_hook(_adder(self.masters[name]))
            for name, parameter in self._rounded.items()
        ]

    @torch.no_grad()
    def publish(self) -> None:
        """Rounds the masters into the model."""
        torch._foreach_copy_(list(self._rounded.values()), list(self.masters.values()))

    @torch.no_grad()
    def give_back(self) -> None:
        """Makes the model float32 again, with the masters as its weights."""
        for hook in self._hooks:
            hook.remove()
        self._model.float()
        for name, parameter in self._model.named_parameters():
            if name in self.masters:
                parameter.copy_(self.masters[name])


def _adder(master: nn.Parameter) -> object:
    """A hook that moves a gradient into the master's."""

    def add(parameter: Tensor) -> None:
        if parameter.grad is None:
            return
        if master.grad is None:
            master.grad = parameter.grad.float()
        else:
            master.grad += parameter.grad
        parameter.grad = None

    return add


def parameter_kinds(model: nn.Module) -> dict[str, Kind]:
    """What each parameter is, by name."""
    kinds: dict[str, Kind] = {}
    linears = {
        f"{name}.{part}"
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear)
        for part, _ in module.named_parameters(recurse=False)
    }
    heads = [module for module in model.modules() if isinstance(module, TransformerXLKey)]
    of_heads = {id(vectors) for layer in heads for vectors in (layer.u, layer.v)}
    for name, parameter in model.named_parameters():
        if parameter.ndim < 2 or id(parameter) in of_heads:
            kinds[name] = "vector"
        elif name not in linears:
            kinds[name] = "table"
        else:
            kinds[name] = "output" if name.startswith("out_head.") else "matrix"
    return kinds


def _decay(kind: Kind, config: TrainingConfig) -> float:
    decays = {"vector": config.decay_1d, "table": config.decay_embeddings}.get(kind, True)
    return config.weight_decay if decays else 0.0


def _scale_down(optimizer: torch.optim.Optimizer, shrink: float | None) -> None:
    """Lets the next step divide gradients by `shrink`, or divides them; None leaves them."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    gradients = [p.grad for p in parameters if p.grad is not None]
    # A fused AdamW divides what it reads anyway; what lies in shards it cannot divide by a tensor.
    divides = isinstance(optimizer, torch.optim.AdamW) and all(type(g) is Tensor for g in gradients)
    if divides:
        device = gradients[0].device if gradients else None
        scale = None if shrink is None else torch.tensor(shrink, device=device)
        optimizer.grad_scale = scale  # type: ignore[attr-defined] # as torch.amp.GradScaler does
    elif shrink is not None:
        torch._foreach_mul_(gradients, 1 / shrink)


def learning_rate_at(
    step: int, num_steps: int | None, config: TrainingConfig, *, peak: float, last: float
) -> float:
    """The learning rate of step 0..num_steps-1.

        rise     over `warmup_steps`, in a line, to `peak`
        level    with the schedule wsd, until the last `decay_fraction` of the run begins
        fall     along half a cosine, to `last` at the last step

    While `num_steps` is unknown, it does not fall.
    """
    if step < config.warmup_steps:
        return peak * (step + 1) / config.warmup_steps
    if num_steps is None:
        return peak
    end = num_steps - 1
    level = (1 - config.decay_fraction) * end if config.schedule == "wsd" else 0
    fall_begins = max(config.warmup_steps, level)
    fallen = min(1.0, max(0.0, (step - fall_begins) / max(1.0, end - fall_begins)))
    height = 0.5 * (1 + math.cos(math.pi * fallen))
    return height * peak + (1 - height) * last
