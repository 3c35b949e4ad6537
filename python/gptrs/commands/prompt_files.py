"""A file of prompts to a file of texts, JSON lines both, which goes on where it was stopped.

    PROMPTS.jsonl   {"prompt": "Once upon", "id": 7, "top_k": 5}
    RESULTS.jsonl   {"index": 0, "id": 7, "prompt": "Once upon", "text": " a time", ...}
    RESULTS.jsonl.settings.json      what the results were asked with, and a digest of the model and
                                     of each prompt; gone once all are there

Every text draws by the number of its line, so an interrupted file ends up as an unbroken one does.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import groupby, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import torch
from tqdm.auto import tqdm

from gptrs._core import Digest
from gptrs.errors import ConfigError, GptrsError, SourceError
from gptrs.files import write_whole
from gptrs.sampling.config import SamplingConfig, check_seed, fresh_seed
from gptrs.sampling.requests import SAMPLING_NAMES, count
from gptrs.text.named_tokenizers import own_tokenizer
from gptrs.text.prompts import PromptReader
from gptrs.text.reading import decode_utf8

if TYPE_CHECKING:
    from gptrs.generation.generator import Completion, Generator

# Lines that are read, generated and written together: what a kill costs at most.
LINES_TOGETHER = 64
# A line may set these besides SamplingConfig's fields, as `Generator.__call__` names them.
CALL_SETTINGS = frozenset(
    ("max_new_tokens", "stop", "num_samples", "best_of", "num_beams", "length_penalty",
     "early_stopping", "logprobs", "choices", "regex", "overflow")
)  # fmt: skip

COUNTS = {"max_new_tokens": 0, "num_samples": 1, "best_of": 1, "num_beams": 1, "logprobs": 0}
"""Settings that are whole numbers, and the least that each may be."""

_REMEDY = "remove it to begin anew, or write to another file"


@dataclass(frozen=True, slots=True)
class Line:
    """One prompt of the file."""

    index: int
    """Counted from 0, without empty lines."""
    prompt: str
    id: Any
    settings: dict[str, Any]
    """The run's, and the line's own above them."""


def generate_file(
    generator: Generator,
    file: Path,
    out: Path | None,
    settings: dict[str, Any],
    *,
    model: Path,
    dtype: str | None = None,
) -> None:
    """Continues every prompt of `file`; writes a line for each text, in order.

    Args:
        out: where the lines go; None is standard output, and then nothing goes on later.
        settings: keyword arguments of the generator's call. Without a seed, one is chosen and kept.
        model, dtype: where the generator's model is from, and what it computes in. Neither another
            path or dtype, nor the same path with other weights goes on with `out`'s results.
    Raises:
        SourceError: `file` cannot be read, or a line of it is no prompt or one that the tokenizer
            cannot encode: all lines are looked at before the first text is written.
        ConfigError: `out` is complete already, or has texts that were asked for otherwise: with
            other settings, of another model or of other prompts.
    """
    lines = list(_read(file, settings, generator))
    if out is None:
        _generate(generator, lines, settings.get("seed", fresh_seed()), sys.stdout.buffer)
        return
    asked = {"model": str(model), "model_digest": _model_digest(generator), "dtype": dtype}
    seed, num_done = _begin(out, lines, settings | asked)
    try:
        with out.open("ab") as stream:
            _generate(generator, lines[num_done:], seed, stream, num_done=num_done)
    except GptrsError:
        if not out.stat().st_size:  # Asked for otherwise, it is no other run's results.
            out.unlink()
            _settings_file(out).unlink()
        raise
    _settings_file(out).unlink()


def _read(file: Path, settings: dict[str, Any], generator: Generator) -> Iterator[Line]:
    try:
        content = file.read_bytes()
    except OSError as error:
        raise SourceError(f"{file}: cannot be read: {error.strerror or error}") from error
    text = decode_utf8(content, source=str(file))
    reader = PromptReader(generator.tokenizer)
    index = 0
    for number, row in enumerate(text.split("\n"), start=1):
        if not row.strip():
            continue
        try:
            line = _line(row, index, settings)
            _check_tokens(line, reader, generator.context_length)
        except GptrsError as error:
            raise SourceError(f"{file}:{number}: {error}") from error
        yield line
        index += 1


def _line(row: str, index: int, settings: dict[str, Any]) -> Line:
    """The prompt that a row of the file is.

    Raises:
        ConfigError: it is none.
    """
    try:
        fields = json.loads(row)
    except ValueError as error:
        raise ConfigError(f"not JSON: {error}") from None
    if not isinstance(fields, dict) or not isinstance(fields.get("prompt"), str):
        raise ConfigError(f'expected {{"prompt": "..."}}, found {row[:80]}')
    if not fields["prompt"]:
        raise ConfigError("the prompt is empty: nothing to go on from")
    try:
        json.dumps(fields, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        half = ord(error.object[error.start])
        raise ConfigError(f"\\u{half:04x} is half a character: no UTF-8 has it") from None
    own = {key: value for key, value in fields.items() if key not in ("prompt", "id")}
    if unknown := sorted(own.keys() - CALL_SETTINGS - set(SamplingConfig.__dataclass_fields__)):
        raise ConfigError(f"unknown setting {unknown[0]!r}")
    return Line(index, fields["prompt"], fields.get("id"), settings | _checked(own))


def _check_tokens(line: Line, reader: PromptReader, context_length: int) -> None:
    """Encodes a prompt; its ids are made anew when it is its turn, as those of all may be many.

    Raises:
        TokenizerError: it has what the tokenizer does not know.
        GenerationError: it has no tokens.
        ConfigError: with overflow="stop" it has too many.
    """
    num_tokens = len(reader.ids(line.prompt, line.index))
    if line.settings.get("overflow") == "stop" and num_tokens > context_length:
        raise ConfigError(
            f"the prompt has {num_tokens} tokens; with overflow 'stop' it may have at most "
            f"{context_length}, the context length"
        )


def _checked(own: dict[str, Any]) -> dict[str, Any]:
    """A line's own settings, with what JSON cannot say put right.

    Raises:
        ConfigError: a setting is of the wrong kind or out of its range.
    """
    biases = own.get("logit_bias")
    if isinstance(biases, dict):  # JSON's keys are strings.
        if not all(key.isdecimal() for key in biases):
            raise ConfigError(f"logit_bias has token ids for keys, found {[*biases]}")
        own = own | {"logit_bias": {int(key): value for key, value in biases.items()}}
    SamplingConfig(**{name: own[name] for name in SAMPLING_NAMES & own.keys()})
    if "seed" in own:
        check_seed(own["seed"])
    for name in COUNTS.keys() & own.keys():
        if own[name] is not None or name in ("max_new_tokens", "num_samples"):
            count(name, own[name], COUNTS[name])
    if not isinstance(own.get("regex"), str | None):
        raise ConfigError(f"regex is a text, found {own['regex']!r}")
    choices = own.get("choices") or []
    if not isinstance(choices, list) or not all(isinstance(text, str) for text in choices):
        raise ConfigError(f"choices is a list of texts, found {choices!r}")
    return own


def _begin(out: Path, lines: list[Line], settings: dict[str, Any]) -> tuple[int, int]:
    """The seed, and how many lines of the prompts are done already.

    Without texts in `out`, nothing stands in the way of other settings.
    """
    settings = json.loads(json.dumps(settings))
    settings_file = _settings_file(out)
    has_texts = out.exists() and out.stat().st_size > 0
    begun = json.loads(settings_file.read_bytes()) if settings_file.exists() else {}
    if has_texts and not begun:
        raise ConfigError(f"{out} is complete already; {_REMEDY}")
    digests = begun.pop("prompt_digests", [])
    asked: dict[str, Any] = {"seed": begun.get("seed")} | settings
    different = sorted(k for k in begun | asked if begun.get(k) != asked.get(k))
    if has_texts and different:
        name = different[0]
        raise ConfigError(
            f"{out} was begun with {name} = {begun.get(name)!r}, and now it is "
            f"{asked.get(name)!r}; {_REMEDY}"
        )
    if different:
        asked["seed"] = settings.get("seed", fresh_seed())
    seed = asked["seed"]
    num_done = _drop_unfinished(out, lines, seed, digests) if has_texts else 0
    # Also where it goes on: prompts that are not done yet may be others now.
    asked["prompt_digests"] = [_prompt_digest(line, seed) for line in lines]
    write_whole(settings_file, json.dumps(asked).encode())
    return seed, num_done


def _drop_unfinished(out: Path, lines: list[Line], seed: int, digests: list[str]) -> int:
    """Cuts `out` behind the last prompt that has all its texts; returns how many have.

    A line that was cut off by a kill is dropped, with all texts of its prompt.

    Args:
        digests: of the prompts that `out` was begun with.
    Raises:
        ConfigError: there are texts of other prompts than these.
    """
    content = out.read_bytes()
    rows = content.split(b"\n")[:-1]  # The last is empty, or cut off.
    done = size = position = 0
    for line, digest in zip(lines, digests, strict=False):
        count = line.settings.get("num_samples", 1)
        texts = rows[position : position + count]
        if len(texts) < count:
            break
        is_same = digest == _prompt_digest(line, seed)
        for number, row in enumerate(texts, start=position + 1):
            where = f"{out} has results of other prompts: line {number}"
            _check_is_of(line, row, where, is_same=is_same)
        position += count
        size += sum(len(row) + 1 for row in texts)
        done += 1
    else:
        if position < len(rows):
            raise ConfigError(
                f"{out} has results of other prompts: line {position + 1} is of a prompt that is "
                f"not there, as there are {len(lines)}; {_REMEDY}"
            )
    with out.open("r+b") as stream:
        stream.truncate(size)
    return done


def _check_is_of(line: Line, row: bytes, where: str, *, is_same: bool) -> None:
    result = json.loads(row)
    if (result["index"], result["prompt"]) != (line.index, line.prompt):
        raise ConfigError(
            f"{where} is of {result['prompt']!r}, and prompt {line.index} is {line.prompt!r}; "
            f"{_REMEDY}"
        )
    if not is_same:
        raise ConfigError(
            f"{where} was asked for with another id or other settings than prompt {line.index} has "
            f"now; {_REMEDY}"
        )


def _prompt_digest(line: Line, seed: int) -> str:
    """16 hex digits of all that a prompt's texts depend on, but for the model; and of its id."""
    settings = {"seed": seed} | line.settings
    digest = Digest()
    digest.update(json.dumps([line.id, line.prompt, settings], sort_keys=True).encode())
    return digest.hexdigest()


def _model_digest(generator: Generator) -> str:
    """16 hex digits of what computes: the config, every bit of the weights, the tokenizer."""
    # Of the weights in memory, not of their file, which a run that trains may replace meanwhile;
    # and of all, as samples may miss what changed. XXH3 takes them as fast as memory gives them,
    # which is a small part of the time in which they were just read and checked.
    digest = Digest()
    digest.update(json.dumps(generator.model.cfg.to_dict(), sort_keys=True).encode())
    for name, weight in generator.model.named_parameters():
        digest.update(f"{name} {weight.dtype} {list(weight.shape)}".encode())
        bits = weight.detach().cpu().contiguous().flatten().view(torch.uint8)
        digest.update(bits.numpy())
    digest.update(own_tokenizer(generator.tokenizer)._core.fingerprint().encode())
    return digest.hexdigest()


def _generate(
    generator: Generator, lines: list[Line], seed: int, stream: BinaryIO, *, num_done: int = 0
) -> None:
    rows = iter(lines)
    with ExitStack() as stack:
        total = num_done + len(lines)
        bar = stack.enter_context(tqdm(total=total, initial=num_done, unit=" prompts", delay=0.2))
        while together := list(islice(rows, LINES_TOGETHER)):
            stream.writelines(_results(generator, together, seed))
            stream.flush()
            bar.update(len(together))


def _results(generator: Generator, lines: list[Line], seed: int) -> Iterator[bytes]:
    """The rows of neighbouring lines; those with equal settings share a batch."""
    for _, group in groupby(lines, key=lambda line: _without_seed(line.settings)):
        alike = list(group)
        settings = _without_seed(alike[0].settings)
        num_samples = settings.get("num_samples", 1)
        num_drawn = settings.get("best_of") or num_samples
        completions = generator(
            [line.prompt for line in alike],
            **settings,
            seed=[line.settings.get("seed", seed) for line in alike],
            sequences=[
                line.index * num_drawn + drawn for line in alike for drawn in range(num_drawn)
            ],
        )
        for number, completion in enumerate(completions):
            yield _result(alike[number // num_samples], completion)


def _without_seed(settings: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in settings.items() if key != "seed"}


def _result(line: Line, completion: Completion) -> bytes:
    result: dict[str, Any] = {"index": line.index}
    if line.id is not None:
        result["id"] = line.id
    result |= {
        "prompt": line.prompt,
        "text": completion.text,
        "finish_reason": completion.finish_reason,
        "seed": completion.seed,
    }
    if completion.logprobs is not None:
        result["token_ids"] = completion.token_ids
        result["logprobs"] = [logprob.chosen for logprob in completion.logprobs]
        result["top_logprobs"] = [logprob.top for logprob in completion.logprobs]
    return (json.dumps(result, ensure_ascii=False) + "\n").encode()


def _settings_file(out: Path) -> Path:
    return out.with_name(f"{out.name}.settings.json")
