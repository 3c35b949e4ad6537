"""One forward pass of one text, watched by hooks; and sections that show tensors of it.

What the modules were given and returned becomes tables of a few values: a vector for each token,
or who sees whom. Which of them are shown, and what is said of them, is the business of `explain`.
"""

# Tensor names end in their shape: T tokens, D emb_dim, H heads.

from __future__ import annotations

import re
from contextlib import ExitStack
from functools import partial
from typing import Any

import torch
from torch import Tensor

from gptrs.explain.sections import Cell, Section
from gptrs.model.eval_mode import evaluating
from gptrs.model.gpt import GPTModel, GPTOutput
from gptrs.plots import token_label
from gptrs.text.prompts import known_ids

SHOWN_TOKENS = 8
SHOWN_VALUES = 5
_IN_A_BLOCK = ("norm1", "att.W_query", "att.W_key", "att.W_value", "att.positions", "att.out_proj",
               "norm2", "ff", "ff.layers.1")  # fmt: skip
# What they return is the same for all rows of a batch.
_UNBATCHED = ("pos_emb", "pos_bias")
# Bytes that are no character, as surrogateescape keeps them.
_LONE_BYTE = re.compile("[\udc80-\udcff]")


class Way:
    """What the modules were given and returned, on the way of one text.

    Attributes:
        ids: the text's tokens; `pieces`: theirs, quoted.
        shape: of the stream, in words.
        inputs, outputs: by module name, float32 and without the batch dimension. Of what a layer
            adds to its scores, `outputs` has the numbers, and `queries` what became of the queries.
        attention: [H, T, T] of every block.
        logits_TV: float32.
    """

    def __init__(self, model: GPTModel, tokenizer: Any, ids: list[int], num_blocks: int) -> None:
        self.model, self.cfg, self.tokenizer = model, model.cfg, tokenizer
        self.ids, self.num_blocks = ids, num_blocks
        self._known_ids = known_ids(tokenizer)
        self._decode = getattr(tokenizer, "decode_bytes", tokenizer.decode)
        self.pieces = [self.piece(token) for token in ids]
        self.shape = f"[1, {len(ids)}, {self.cfg.emb_dim}]"
        self.inputs: dict[str, Tensor] = {}
        self.outputs: dict[str, Tensor] = {}
        self.queries: dict[str, Tensor] = {}
        names = ["tok_emb", "pos_emb", "pos_bias", "drop_emb", "final_norm"]
        names += [f"trf_blocks.{index}" for index in range(self.cfg.n_layers)]
        names += [
            f"trf_blocks.{index}.{name}" for index in range(num_blocks) for name in _IN_A_BLOCK
        ]
        device = model.tok_emb.weight.device
        with ExitStack() as stack:
            stack.enter_context(evaluating(model))
            stack.enter_context(torch.no_grad())
            for name, module in model.named_modules():
                if name in names:
                    hook = partial(self._note, name)
                    stack.enter_context(module.register_forward_hook(hook))
            in_idx = torch.tensor([ids], device=device)
            output: GPTOutput = model(in_idx, return_attention=True)
        self.attention = [plain(weights[0]) for weights in output.attention or ()]
        self.logits_TV = plain(output.logits[0])

    def piece(self, token: int) -> str:
        """A token's text, quoted, with bytes that are no character as `<0xE4>`.

        Of an id that only the model has, its number.
        """
        if token not in self._known_ids:
            return f"<{token}>"
        text = self._decode([token])
        if isinstance(text, bytes):
            text = text.decode("utf-8", "surrogateescape")
        return repr(_LONE_BYTE.sub(lambda byte: token_label(byte[0]), text))

    def last(self, count: int) -> range:
        """The last `count` positions, or as many as there are."""
        return range(max(0, len(self.ids) - count), len(self.ids))

    def _note(self, name: str, _: object, inputs: tuple[Any, ...], output: Any) -> None:
        if isinstance(output, tuple):
            queries, output = output
            self.queries[name] = plain(queries[0])
        self.outputs[name] = plain(output if name in _UNBATCHED else output[0])
        if isinstance(inputs[0], Tensor) and inputs[0].is_floating_point():
            self.inputs[name] = plain(inputs[0][0])


def vectors(
    way: Way,
    title: str,
    tensor: str,
    x_TD: Tensor,
    formula: str,
    extra: dict[str, Tensor] | None = None,
) -> Section:
    """A vector for each token: the first values, and the length; columns of `extra` behind."""
    extra = extra or {}
    return Section(
        title=title,
        tensor=tensor,
        formula=formula,
        header=("token", *value_names(x_TD.shape[1]), "length", *extra),
        rows=[
            (cut(way.pieces[t], 14), *values(x_TD[t]), *(x_T[t].item() for x_T in extra.values()))
            for t in way.last(SHOWN_TOKENS)
        ],
        note=left_out(way),
    )


def normed(way: Way, name: str, x_TD: Tensor) -> Section:
    """A norm's output, with the mean and the standard deviation of what it was given."""
    return vectors(
        way, "layer normalization", f"{name} {way.shape}", way.outputs[name],
        "(x - mean) / sqrt(var + 1e-5) * scale + shift, each token by itself",
        extra={"mean x": x_TD.mean(dim=1), "std x": x_TD.std(dim=1, correction=0)},
    )  # fmt: skip


def who_sees_whom(
    way: Way, title: str, tensor: str, x_TT: Tensor, formula: str, mean: Tensor | None = None
) -> Section:
    """A row for each token, with a column for each that it may see."""
    shown = way.last(SHOWN_TOKENS)

    def row(label: str, x_T: Tensor, t: int) -> list[Cell]:
        return [label, *(x_T[s].item() if s <= t else None for s in shown)]

    rows = [row(cut(way.pieces[t], 14), x_TT[t], t) for t in shown]
    if mean is not None:
        rows.append(row("mean of heads", mean[-1], shown[-1]))
    header = ("token", *(cut(way.pieces[s], 8) for s in shown))
    return Section(
        title=title, tensor=tensor, formula=formula, header=header, rows=rows, note=left_out(way)
    )


def plain(x: Tensor) -> Tensor:
    """A copy in float32 on the CPU."""
    return x.to("cpu", torch.float32, copy=True)


def value_names(width: int) -> list[str]:
    """What the columns of a vector's first values are called."""
    return [f"[{k}]" for k in range(min(width, SHOWN_VALUES))]


def values(x_D: Tensor) -> list[float]:
    """A vector's first values and its length."""
    return [*x_D[:SHOWN_VALUES].tolist(), x_D.norm().item()]


def left_out(way: Way) -> str:
    """What a table of the last tokens does not show."""
    num_tokens = len(way.ids)
    return f"the last {SHOWN_TOKENS} of {num_tokens:,} tokens" if num_tokens > SHOWN_TOKENS else ""


def cut(text: str, width: int) -> str:
    """A text, or its start."""
    return text if len(text) <= width else text[: width - 3] + "..."
