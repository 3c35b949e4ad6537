"""A file of prompts to a file of texts, JSON lines both, which goes on where it was stopped.

    PROMPTS.jsonl   {"prompt": "Once upon", "id": 7, "top_k": 5}
    RESULTS.jsonl   {"index": 0, "id": 7, "prompt": "Once upon", "text": " a time", ...}
    RESULTS.jsonl.settings.json      what the results were asked with; gone once all are there

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

from tqdm.auto import tqdm

from gptrs.errors import ConfigError, GptrsError, SourceError
from gptrs.files import write_whole
from gptrs.sampling.config import SamplingConfig, check_seed, fresh_seed
from gptrs.sampling.requests import SAMPLING_NAMES, count
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
) -> None:
    """Continues every prompt of `file`; writes a line for each text, in order.

    Args:
        out: where the lines go; None is standard output, and then nothing goes on later.
        settings: keyword arguments of the generator's call. Without a seed, one is chosen and kept.
        model: named in `out`'s settings: another model does not go on with these results.
    Raises:
        SourceError: `file` cannot be read, or a line of it is no prompt: all lines are looked at
            before the first text is written.
        ConfigError: `out` is complete already, or was begun with other settings.
    """
    lines = list(_read(file, settings))
    if out is None:
        _generate(generator, lines, settings.get("seed", fresh_seed()), sys.stdout.buffer)
        return
    seed, num_done = _begin(out, lines, settings | {"model": str(model)})
    try:
        with out.open("ab") as stream:
            _generate(generator, lines[num_done:], seed, stream, num_done=num_done)
    except GptrsError:
        if not out.stat().st_size:  # Asked for otherwise, it is no other run's results.
            out.unlink()
            _settings_file(out).unlink()
        raise
    _settings_file(out).unlink()


def _read(file: Path, settings: dict[str, Any]) -> Iterator[Line]:
    known = CALL_SETTINGS | set(SamplingConfig.__dataclass_fields__)
    try:
        content = file.read_bytes()
    except OSError as error:
        raise SourceError(f"{file}: cannot be read: {error.strerror or error}") from error
    text = decode_utf8(content, source=str(file))
    index = 0
    for number, row in enumerate(text.split("\n"), start=1):
        if not row.strip():
            continue
        try:
            fields = json.loads(row)
        except ValueError as error:
            raise SourceError(f"{file}:{number}: not JSON: {error}") from None
        if not isinstance(fields, dict) or not isinstance(fields.get("prompt"), str):
            raise SourceError(f'{file}:{number}: expected {{"prompt": "..."}}, found {row[:80]}')
        if not fields["prompt"]:
            raise SourceError(f"{file}:{number}: the prompt is empty: nothing to go on from")
        own = {key: value for key, value in fields.items() if key not in ("prompt", "id")}
        if unknown := sorted(own.keys() - known):
            raise SourceError(f"{file}:{number}: unknown setting {unknown[0]!r}")
        try:
            yield Line(index, fields["prompt"], fields.get("id"), settings | _checked(own))
        except ConfigError as error:
            raise SourceError(f"{file}:{number}: {error}") from error
        index += 1


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

    A line that was cut off by a kill is dropped, with all texts of its prompt.
    """
    settings = json.loads(json.dumps(settings))
    settings_file = _settings_file(out)
    if not settings_file.exists():
        if out.exists():
            raise ConfigError(f"{out} is complete already; remove it, or write to another file")
        settings.setdefault("seed", fresh_seed())
        write_whole(settings_file, json.dumps(settings).encode())
        return settings["seed"], 0
    begun = json.loads(settings_file.read_bytes())
    settings.setdefault("seed", begun["seed"])
    if different := sorted(k for k in begun | settings if begun.get(k) != settings.get(k)):
        name = different[0]
        raise ConfigError(
            f"{out} was begun with {name} = {begun.get(name)!r}, and now it is "
            f"{settings.get(name)!r}; remove it, or write to another file"
        )
    return settings["seed"], _drop_unfinished(out, lines)


def _drop_unfinished(out: Path, lines: list[Line]) -> int:
    """Cuts `out` behind the last prompt that has all its texts; returns how many have."""
    content = out.read_bytes() if out.exists() else b""
    rows = content.split(b"\n")[:-1]  # The last is empty, or cut off.
    done = size = position = 0
    for line in lines:
        count = line.settings.get("num_samples", 1)
        texts = rows[position : position + count]
        if len(texts) < count:
            break
        for row in texts:
            result = json.loads(row)
            if (result["index"], result["prompt"]) != (line.index, line.prompt):
                raise ConfigError(
                    f"{out} has results of other prompts: line {position + 1} is of "
                    f"{result['prompt']!r}, and prompt {line.index} is {line.prompt!r}"
                )
        position += count
        size += sum(len(row) + 1 for row in texts)
        done += 1
    if content:
        with out.open("r+b") as stream:
            stream.truncate(size)
    return done


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
