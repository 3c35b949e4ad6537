"""A GPT's shape: one frozen dataclass, checked where it is made, and the presets by name.

    GPTConfig(...)             every field checked: a message names field, value, what is allowed
    GPTConfig.of(x)            x is a GPTConfig, the book's dict, or a preset's name
    get_config("gpt2-124m")    a preset

Knows nothing of weights, and imports no torch.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, fields
from types import MappingProxyType
from typing import Any, Literal, get_args

from gptrs.errors import ConfigError

Init = Literal["book", "gpt2"]
Pos = Literal[
    "learned",
    "sinusoidal",
    "rope",
    "alibi",
    "t5",
    "relative_key",
    "relative_key_query",
    "transformer_xl",
    "none",
]

T5_BUCKETS = 32
T5_EXACT_DISTANCES = T5_BUCKETS // 2
"""Distances with a bucket of their own."""
T5_MAX_DISTANCE = 128
"""From here on all distances share T5's last bucket (Raffel et al. 2020, section 2.1)."""

KEPT_LOGITS_BYTES = 1 << 28
"""The loss on a CPU keeps exponentials that take no more for the gradient: 2,670 rows of GPT-2's
vocabulary in bfloat16. More are computed again."""
KEPT_LOGITS_WIDTH = 384
"""Narrower rows are multiplied again sooner than their exponentials are fetched from memory."""

_COUNTS = ("vocab_size", "context_length", "emb_dim", "n_heads", "n_layers")
_FLAGS = ("qkv_bias", "tie_embeddings")

# What the same fields are called elsewhere (nanoGPT, transformers).
FOREIGN_NAMES = {
    "n_embd": "emb_dim",
    "hidden_size": "emb_dim",
    "d_model": "emb_dim",
    "block_size": "context_length",
    "n_positions": "context_length",
    "n_ctx": "context_length",
    "n_head": "n_heads",
    "num_heads": "n_heads",
    "n_layer": "n_layers",
    "num_layers": "n_layers",
    "dropout": "drop_rate",
    "resid_pdrop": "drop_rate",
    "bias": "qkv_bias",
    "tie_word_embeddings": "tie_embeddings",
    "position_embedding_type": "pos",
    "relative_attention_max_distance": "rel_max_distance",
    "clamp_len": "rel_max_distance",
    "mem_len": "memory_length",
}


class ConfigKeyError(ConfigError, KeyError):
    """A config has no such field."""

    __str__ = Exception.__str__  # KeyError's puts quotes around the message.


@dataclass(frozen=True, kw_only=True, slots=True)
class GPTConfig:
    """The shape of a GPT; the defaults are the book's 124M model.

    Fields are read as `cfg.emb_dim`, or as those of the book's dictionary are: `cfg["emb_dim"]`.

    Raises:
        ConfigError: a field has the wrong type or an impossible value, or two do not fit together.
    """

    vocab_size: int = 50257
    """Number of token ids; ids run from 0 to vocab_size - 1."""
    context_length: int = 1024
    """Tokens in a training window; with most kinds of positions also the most the model sees."""
    emb_dim: int = 768
    """Width of the residual stream, a multiple of n_heads."""
    n_heads: int = 12
    """Attention heads in each block, each emb_dim / n_heads wide."""
    n_layers: int = 12
    """Number of transformer blocks."""
    drop_rate: float = 0.1
    """Dropout of embeddings, attention weights and shortcuts while training: 0 <= drop_rate < 1."""
    qkv_bias: bool = False
    """Whether the query, key and value projections have a bias (OpenAI's do, the book's do not)."""
    tie_embeddings: bool = False
    """Whether out_head.weight is tok_emb.weight: one matrix, vocab_size * emb_dim weights fewer."""
    init: Init = "book"
    """"book": PyTorch's defaults, with an N(0, 1) embedding; "gpt2": N(0, 0.02), see GPTModel."""
    pos: Pos = "learned"
    """How tokens know their places; `gptrs.model.positions` has each kind's formula and source."""
    rel_max_distance: int | None = None
    """From here on distances count as equal. None: 128 for "t5", context_length for "relative_key"
    and "relative_key_query", no end for "transformer_xl". The other kinds have none."""
    memory_length: int = 0
    """With "transformer_xl", how many tokens before its window of context_length a token sees when
    a cache is given: in evaluation and generation, not in training."""

    def __post_init__(self) -> None:
        for name in _COUNTS:
            _check_count(name, getattr(self, name))
        for name in _FLAGS:
            _check_flag(name, getattr(self, name))
        _check_drop_rate(self.drop_rate)
        if self.init not in get_args(Init):
            raise ConfigError(f'init is {self.init!r}; it must be "book" or "gpt2"')
        if self.emb_dim % self.n_heads:
            raise ConfigError(
                f"emb_dim {self.emb_dim} is not a multiple of n_heads {self.n_heads}: "
                "each head takes an equal share of the embedding"
            )
        _check_positions(self)
        if self.tie_embeddings and self.init == "book":
            raise ConfigError(
                'tie_embeddings=True needs init="gpt2", but init is "book": the book draws the '
                "token embedding from N(0, 1), and used as the output layer too it gives logits so "
                "large that the first loss is near 480 instead of 11"
            )

    @property
    def head_dim(self) -> int:
        """Width of one attention head: emb_dim / n_heads."""
        return self.emb_dim // self.n_heads

    @property
    def num_distances(self) -> int | None:
        """How many distances between tokens are told apart; None: all, or none at all."""
        if self.rel_max_distance is not None:
            return self.rel_max_distance
        return {
            "t5": T5_MAX_DISTANCE,
            "relative_key": self.context_length,
            "relative_key_query": self.context_length,
        }.get(self.pos)

    @property
    def max_tokens(self) -> int | None:
        """Most tokens the model takes at once; None: any number, since its positions have no end.

        Tables of positions end at context_length. So do those of distances, unless they were cut on
        purpose: then the model has learned what "far away" is.
        """
        has_table = self.pos in ("relative_key", "relative_key_query")
        ends = self.pos == "learned" or (has_table and self.rel_max_distance is None)
        return self.context_length if ends else None

    @classmethod
    def of(cls, cfg: ConfigLike) -> GPTConfig:
        """The config that `cfg` stands for.

        Args:
            cfg: a GPTConfig (returned as it is), a mapping with the book's keys such as
                `GPT_CONFIG_124M` (keys left out take the defaults), or a preset's name.

        Raises:
            ConfigError: unknown preset, unknown key (the message names the nearest), bad value.
        """
        if isinstance(cfg, cls):
            return cfg
        if isinstance(cfg, str):
            return get_config(cfg)
        if not isinstance(cfg, Mapping):
            raise ConfigError(
                f"a config is a GPTConfig, a mapping or a preset's name, not {type(cfg).__name__}"
            )
        known = [field.name for field in fields(cls)]
        unknown = [key for key in cfg if key not in known]
        if unknown:
            raise ConfigError("; ".join(_unknown_key_message(key, known) for key in unknown))
        return cls(**cfg)

    def __getitem__(self, key: str) -> Any:
        """The field called `key`.

        Raises:
            ConfigKeyError: there is no such field; the message names the nearest.
        """
        known = [field.name for field in fields(self)]
        if key not in known:
            raise ConfigKeyError(_unknown_key_message(key, known))
        return getattr(self, key)

    def to_dict(self) -> dict[str, Any]:
        """All fields as a plain dict that JSON can hold and `GPTConfig.of` reads back."""
        return asdict(self)


ConfigLike = GPTConfig | Mapping[str, Any] | str
"""What `GPTConfig.of` takes."""


def get_config(name: str) -> GPTConfig:
    """The preset called `name`.

    Raises:
        ConfigError: there is no such preset; the message names the nearest ones.
    """
    try:
        return PRESETS[name]
    except (KeyError, TypeError):
        pass
    typed = str(name).lower()
    # All sizes of "gpt2", before names that happen to have as many letters in common.
    nearest = [preset for preset in PRESETS if typed and preset.startswith(typed)]
    nearest = nearest or difflib.get_close_matches(typed, PRESETS, n=3, cutoff=0.5)
    hint = f"did you mean {_either(nearest)}?" if nearest else f"there are {', '.join(PRESETS)}"
    raise ConfigError(f"unknown preset {name!r}: {hint}")


def _check_count(name: str, value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, int):
        raise ConfigError(
            f"{name} is {value!r} ({type(value).__name__}); it must be an int, 1 or more"
        )
    if value < 1:
        raise ConfigError(f"{name} is {value}; it must be 1 or more")


def _check_flag(name: str, value: object) -> None:
    if not isinstance(value, bool):
        raise ConfigError(f"{name} is {value!r} ({type(value).__name__}); it must be True or False")


def _check_drop_rate(value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ConfigError(
            f"drop_rate is {value!r} ({type(value).__name__}); "
            "it must be a number, 0 <= drop_rate < 1"
        )
    if not 0 <= value < 1:  # also refuses nan
        raise ConfigError(f"drop_rate is {value}; it must be 0 <= drop_rate < 1")


def _check_positions(cfg: GPTConfig) -> None:
    if cfg.pos not in get_args(Pos):
        raise ConfigError(f"pos is {cfg.pos!r}; it must be {_either(map(repr, get_args(Pos)))}")
    if cfg.pos == "rope" and cfg.head_dim % 2:
        raise ConfigError(
            f'pos="rope" turns pairs of numbers in a head, but emb_dim {cfg.emb_dim} / n_heads '
            f"{cfg.n_heads} gives heads {cfg.head_dim} wide, which is odd"
        )
    if cfg.pos in ("sinusoidal", "transformer_xl") and cfg.emb_dim % 2:
        raise ConfigError(
            f'pos="{cfg.pos}" has a sine and a cosine for each frequency, but emb_dim '
            f"{cfg.emb_dim} is odd"
        )
    _check_distances(cfg)
    if isinstance(cfg.memory_length, bool) or not isinstance(cfg.memory_length, int):
        raise ConfigError(f"memory_length is {cfg.memory_length!r}; it must be an int, 0 or more")
    if cfg.memory_length < 0:
        raise ConfigError(f"memory_length is {cfg.memory_length}; it must be 0 or more")
    if cfg.memory_length and cfg.pos != "transformer_xl":
        raise ConfigError(
            f'memory_length is {cfg.memory_length}, but pos is "{cfg.pos}": only '
            '"transformer_xl" has a memory'
        )


def _check_distances(cfg: GPTConfig) -> None:
    """`rel_max_distance`: a count, and one that the kind of positions can do something with."""
    if cfg.rel_max_distance is None:
        return
    _check_count("rel_max_distance", cfg.rel_max_distance)
    if cfg.pos not in ("t5", "relative_key", "relative_key_query", "transformer_xl"):
        raise ConfigError(
            f'rel_max_distance is {cfg.rel_max_distance}, but pos="{cfg.pos}" has no such limit; '
            '"t5", "relative_key", "relative_key_query" and "transformer_xl" have'
        )
    if cfg.pos == "t5" and cfg.rel_max_distance <= T5_EXACT_DISTANCES:
        raise ConfigError(
            f'rel_max_distance is {cfg.rel_max_distance}, but pos="t5" has a bucket for each '
            f"distance below {T5_EXACT_DISTANCES}: it must be more"
        )
    if cfg.pos.startswith("relative_key") and cfg.rel_max_distance > cfg.context_length:
        raise ConfigError(
            f"rel_max_distance {cfg.rel_max_distance} is more than context_length "
            f"{cfg.context_length}: the vectors of the larger distances would never be trained"
        )


def _unknown_key_message(key: object, known: list[str]) -> str:
    name = str(key)
    nearest = [FOREIGN_NAMES[name]] if name in FOREIGN_NAMES else []
    nearest = nearest or difflib.get_close_matches(name, known, n=1)
    hint = f"did you mean {nearest[0]!r}?" if nearest else f"known keys are {', '.join(known)}"
    return f"unknown config key {key!r}: {hint}"


def _either(names: Iterable[str]) -> str:
    *first, last = names
    return f"{', '.join(first)} or {last}" if first else last


GPT_CONFIG_124M: dict[str, Any] = {
    "vocab_size": 50257,
    "context_length": 1024,
    "emb_dim": 768,
    "n_heads": 12,
    "n_layers": 12,
    "drop_rate": 0.1,
    "qkv_bias": False,
}
"""The book's dictionary, key for key."""


def _gpt2(emb_dim: int, n_layers: int, n_heads: int) -> GPTConfig:
    return GPTConfig(
        emb_dim=emb_dim,
        n_layers=n_layers,
        n_heads=n_heads,
        qkv_bias=True,
        tie_embeddings=True,
        init="gpt2",
    )


def _gpt3(emb_dim: int, n_layers: int, n_heads: int) -> GPTConfig:
    return GPTConfig(
        context_length=2048,
        emb_dim=emb_dim,
        n_layers=n_layers,
        n_heads=n_heads,
        drop_rate=0.0,
        qkv_bias=True,
        tie_embeddings=True,
        init="gpt2",
    )


PRESETS: Mapping[str, GPTConfig] = MappingProxyType(
    {
        "book-124m": GPTConfig.of(GPT_CONFIG_124M),
        "gpt2-124m": _gpt2(emb_dim=768, n_layers=12, n_heads=12),
        "gpt2-355m": _gpt2(emb_dim=1024, n_layers=24, n_heads=16),
        "gpt2-774m": _gpt2(emb_dim=1280, n_layers=36, n_heads=20),
        "gpt2-1558m": _gpt2(emb_dim=1600, n_layers=48, n_heads=25),
        "gpt3-125m": _gpt3(emb_dim=768, n_layers=12, n_heads=12),
        "gpt3-350m": _gpt3(emb_dim=1024, n_layers=24, n_heads=16),
        "gpt3-760m": _gpt3(emb_dim=1536, n_layers=24, n_heads=16),
        "gpt3-1.3b": _gpt3(emb_dim=2048, n_layers=24, n_heads=16),
        "gpt3-2.7b": _gpt3(emb_dim=2560, n_layers=32, n_heads=32),
        "gpt3-6.7b": _gpt3(emb_dim=4096, n_layers=32, n_heads=32),
        "gpt3-13b": _gpt3(emb_dim=5120, n_layers=40, n_heads=40),
        "gpt3-175b": _gpt3(emb_dim=12288, n_layers=96, n_heads=96),
    }
)
"""Configs by name.

- `book-124m` is `GPT_CONFIG_124M`: no QKV biases, untied, PyTorch's default initialisation.
- `gpt2-*` are OpenAI's GPT-2 sizes (Radford et al. 2019): QKV biases, tied, N(0, 0.02).
- `gpt3-*` are table 2.1 of Brown et al. 2020, with GPT-2's choices, 2,048 tokens of context and no
  dropout (the paper names none). Two lines of that table do not divide and are corrected here: XL
  (1.3B) is printed with 24 heads of 128 on a width of 2,048, and has 16; 13B is printed 5,140 wide
  with 40 heads of 128, and is 5,120 wide. The paper's alternating sparse attention, which has the
  same parameters, is not modelled: every layer is dense.
"""
