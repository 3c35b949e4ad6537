"""Every error gptrs raises on purpose, each also the built-in that a caller would expect.

The message says what was asked and what was found. An exception raised inside a callback (a model's
forward pass, a stream's consumer) is none of these: it arrives unchanged.
"""


class GptrsError(Exception):
    """The root: `except GptrsError` catches all that gptrs refuses, and nothing else."""


class ConfigError(GptrsError, ValueError):
    """A setting, or a combination of settings, makes no sense."""


class TokenizerError(GptrsError, ValueError):
    """Text, bytes or ids that a tokenizer cannot take."""


class TokenIdError(GptrsError, IndexError):
    """A token id is outside the vocabulary."""


class DataError(GptrsError, ValueError):
    """Text or tokens that no window, batch or training run can be made of."""


class WordError(GptrsError, KeyError):
    """A word has no vector."""

    __str__ = Exception.__str__  # KeyError's puts quotes around the message.


class WindowError(GptrsError, IndexError):
    """A window number is out of range."""


class PositionError(GptrsError, IndexError):
    """A store has no such token, or no such document."""


class SourceError(GptrsError, OSError):
    """An input file cannot be read, or is not UTF-8."""


class StoreError(GptrsError, OSError):
    """A token store, or an index of vectors, is missing, damaged, foreign, in use or read-only."""


class CheckpointError(GptrsError, OSError):
    """A checkpoint is missing, damaged, foreign, or cannot be written."""


class GenerationError(GptrsError, ValueError):
    """A prompt or a model's logits that the sampling loop cannot go on with."""


class QueueFullError(GenerationError):
    """More requests wait than the generator's queue holds; try again later."""


class MissingExtraError(GptrsError, ImportError):
    """An optional dependency is not installed; the message has the pip line."""


class TrainingError(GptrsError, RuntimeError):
    """A training run cannot go on."""
