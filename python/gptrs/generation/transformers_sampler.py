"""Our sampler inside transformers' `generate`, as one logits processor. Imports no transformers.

    model.generate(**batch, logits_processor=[transformers_sampler(top_p=0.9, seed=1)])

Of each row it leaves one logit, that of the token it drew: whatever transformers does after that,
greedy or sampling, takes this token.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from gptrs import _core
from gptrs.errors import ConfigError
from gptrs.sampling.config import SamplingConfig, fresh_seed

# B rows, T tokens so far, V vocabulary


def transformers_sampler(
    config: SamplingConfig | None = None,
    *,
    pad_token_id: int | None = None,
    threads: int | None = None,
    **settings: Any,
) -> TransformersSampler:
    """A logits processor for transformers' `generate`, greedy or sampling (greedy is faster).

    Row i of the batch is sequence i, and a token's position is its index in prompt and output, as
    for `Generator`: the same seed gives the same tokens, whatever the batch. What processors before
    it in the list did to the logits, it sees; `generate`'s own temperature, top_k and so on come
    after it and change nothing. Not for beam search or speculative decoding, which need more than
    one token a row.

    Args:
        config: the settings; or give them by name, as for SamplingConfig.
        pad_token_id: what a batch of prompts is padded with on the left. Penalties and n-grams then
            do not see the padding, and positions do not count it: a row gets the tokens that it
            gets alone. None: there is no padding.
        threads: the most that share a large batch; None is one for each processor.
    Raises:
        ConfigError: a setting is out of its range.
    """
    if config is not None and settings:
        raise ConfigError(f"config has all settings, found {', '.join(settings)} besides")
    return TransformersSampler(config or SamplingConfig(**settings), pad_token_id, threads)


class TransformersSampler:
    """What `transformers_sampler` makes. `seed` draws the same tokens again.

    Where a prompt ends is taken from the first call of a `generate`; a call that does not continue
    the last one by a token is the first of a new one. `reset()` says so where it cannot be seen:
    before a prompt that is the last result.
    """

    # transformers' own mark, for its batches that sequences join and leave.
    supports_continuous_batching = False

    def __init__(
        self, config: SamplingConfig, pad_token_id: int | None, threads: int | None
    ) -> None:
        self.config = config
        self.seed = fresh_seed() if config.seed is None else int(config.seed)
        self.pad_token_id = pad_token_id
        self._sampler = _core.Sampler([config.to_core()], [self.seed], threads=threads)
        self.reset()

    def reset(self) -> None:
        """The next call is the first of a new `generate`."""
        self._seen_BT: Tensor | None = None
        self._starts: list[int] = []
        self._prompt_end = 0

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Logits [B, V] with 0 for the drawn token and -inf for all others.

        Args:
            input_ids: int64 [B, T], the prompts and what was generated.
            scores: float32, float16 or bfloat16 [B, V], on any device.
        Raises:
            GenerationError: a row has NaN, inf, or no token that may be drawn.
        """
        if not self._goes_on(input_ids):
            self._starts = self._first_tokens(input_ids)
            self._prompt_end = input_ids.shape[1]
        self._seen_BT = input_ids
        drawn_B = self._sampler.sample(
            scores.detach().cpu(),
            positions=[input_ids.shape[1] - start for start in self._starts],
            history=(input_ids.cpu().contiguous(), self._starts, self._prompt_end),
        )
        ids_B1 = torch.from_numpy(drawn_B)[:, None].to(scores.device)
        return torch.full_like(scores, -torch.inf).scatter_(1, ids_B1, 0.0)

    def _goes_on(self, input_ids: Tensor) -> bool:
        """Whether these are the tokens of the last call and one more in each row."""
        return self._seen_BT is not None and torch.equal(self._seen_BT, input_ids[:, :-1])

    def _first_tokens(self, input_ids: Tensor) -> list[int]:
        """How much padding each row starts with."""
        if self.pad_token_id is None:
            return [0] * len(input_ids)
        starts: list[int] = (input_ids == self.pad_token_id).cumprod(1).sum(1).tolist()
        return starts
