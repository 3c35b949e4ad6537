"""A build spread over many machines by datatrove's executors: the extra `distributed`.

    task 0   BuildPart ─► PARTS/part-00000-of-00003 ┐
    task 1   BuildPart ─► PARTS/part-00001-of-00003 ├─► MergeParts ─► STORE    one task, after all
    task 2   BuildPart ─► PARTS/part-00002-of-00003 ┘

The steps are `build_store` with a `task`, and `merge_stores`. Which machine runs a task, when, and
what follows if it fails, is the executor's part. All of them see the same folders. Beside each part
lies what it was made from: parts that do not fit together are not merged.
`docs/many-machines.md` has whole scripts, and the same without datatrove.
"""

from __future__ import annotations

import hashlib
import inspect
import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from gptrs.errors import ConfigError, MissingExtraError, StoreError
from gptrs.files import write_whole
from gptrs.store.building import build_store, merge_stores
from gptrs.store.inputs import find_inputs
from gptrs.store.token_store import TokenStore
from gptrs.text.named_tokenizers import own_tokenizer

try:
    from datatrove.pipeline.base import PipelineStep
except ModuleNotFoundError as error:
    raise MissingExtraError(
        f'gptrs.distributed needs datatrove: pip install "gptrs[distributed]" ({error})',
        name=error.name,
    ) from None

if TYPE_CHECKING:
    from datatrove.data import DocumentsPipeline

_PART: Final = re.compile(r"part-(\d{5,})-of-(\d{5,})")


class BuildPart(PipelineStep):  # type: ignore[misc]  # datatrove has no types.
    """Builds the part of a store that falls to a task.

    Give the executor as many tasks as there shall be parts: part k of n is the k-th range of the
    inputs, alike in size. A part that is whole is left as it is, a broken-off one is continued.
    """

    name = "Build a part of a token store"
    type = "🔢 - TOKENIZER"

    def __init__(
        self,
        inputs: str | os.PathLike[str] | list[str | os.PathLike[str]],
        parts: str | os.PathLike[str],
        *,
        threads: int | None = 1,
        **options: Any,
    ) -> None:
        """The same on every machine, and before anything is built.

        Args:
            inputs: files, folders or patterns, as `build_store` takes them.
            parts: the folder that gets a folder for each part.
            threads: of one task; None is every processor that the task may use.
            options: `build_store`'s others. Not `task`, which is set here, nor what shows progress.

        Raises:
            ConfigError: an option is unknown or set here, or an input is no path.
            TokenizerError: no tokenizer has this name.
        """
        super().__init__()
        known = set(inspect.signature(build_store).parameters)
        for option in options:
            if option not in known - {"inputs", "out", "task", "progress", "on_progress"}:
                raise ConfigError(f"BuildPart has no option {option!r}")
        self.inputs = [_absolute(item) for item in _listed(inputs)]
        self.parts = os.path.abspath(os.fspath(parts))
        # It travels by value: a path would have to mean the same everywhere.
        tokenizer = own_tokenizer(options.get("tokenizer", "gpt2"))
        self.options = {**options, "tokenizer": tokenizer, "threads": threads}

    def run(
        self, data: DocumentsPipeline = None, rank: int = 0, world_size: int = 1
    ) -> DocumentsPipeline:
        """Part `rank` of `world_size`. No documents come out.

        Raises:
            ConfigError: an earlier step of the pipeline gives documents, which nobody would read.
            SourceError, StoreError: as `build_store` does.
        """
        if data is not None:
            raise ConfigError(
                "BuildPart reads its own inputs, and is the first step of its pipeline; "
                "an earlier step gives documents"
            )
        out = part_folder(self.parts, rank, world_size)
        with self.track_time(unit="part"):
            self._note_plan(out)
            if not _is_whole(out):
                build_store(self.inputs, out, task=(rank, world_size), **self.options)
        _count(self, out, "part")
        return data

    def _note_plan(self, out: Path) -> None:
        """Leaves word beside the part of what it is made from, and keeps to what was said before.

        A task may run again, days later, or after it was done and before the executor noted so.
        """
        found = find_inputs(self.inputs, self.options.get("input_format", "auto"))
        names = [(item.name, os.path.getsize(item.name)) for item in found]
        options = {k: str(v) for k, v in self.options.items() if k not in ("threads", "memory")}
        options["tokenizer"] = self.options["tokenizer"]._core.fingerprint()
        plan = {
            "files": len(names),
            "bytes": sum(size for _, size in names),
            "files_sha256": hashlib.sha256(json.dumps(names).encode()).hexdigest(),
            "options": options,
        }
        file = _plan_file(out)
        if not file.exists():
            file.parent.mkdir(parents=True, exist_ok=True)
            write_whole(file, json.dumps(plan, indent=2).encode())
        elif difference := _difference(_read_plan(out), plan):
            raise StoreError(
                f"{out}: was begun with other {difference}; delete it and {file.name} to start anew"
            )


class MergeParts(PipelineStep):  # type: ignore[misc]
    """Joins the parts that `BuildPart` made: one task, in a pipeline that depends on the builds."""

    name = "Merge the parts of a token store"
    type = "🔢 - TOKENIZER"

    def __init__(
        self, parts: str | os.PathLike[str], out: str | os.PathLike[str], **options: Any
    ) -> None:
        """The folder with the parts, and the one for the store.

        Args:
            parts: as for `BuildPart`.
            out: the store's folder; on the parts' file system no token is copied.
            options: those of `merge_stores`.

        Raises:
            ConfigError: an option is unknown.
        """
        super().__init__()
        known = set(inspect.signature(merge_stores).parameters)
        for option in options:
            if option not in known - {"parts", "out", "progress"}:
                raise ConfigError(f"MergeParts has no option {option!r}")
        self.parts = os.path.abspath(os.fspath(parts))
        self.out = os.path.abspath(os.fspath(out))
        self.options = options

    def run(
        self, data: DocumentsPipeline = None, rank: int = 0, world_size: int = 1
    ) -> DocumentsPipeline:
        """All of it, by the first task: others have nothing to do.

        Raises:
            StoreError: a part is missing or not whole, or as `merge_stores` does.
        """
        if rank != 0:
            return data
        with self.track_time(unit="store"):
            merge_stores(part_folders(self.parts), self.out, **self.options)
        _count(self, Path(self.out), "store")
        return data


def part_folder(parts: str | os.PathLike[str], index: int, count: int) -> Path:
    """Where part `index` of `count` lies; they are numbered from 0."""
    return Path(parts, f"part-{index:05}-of-{count:05}")


def part_folders(parts: str | os.PathLike[str]) -> list[Path]:
    """Every part's folder, in the stream's order.

    Raises:
        StoreError: there is none, one is missing, or they are not all of one build: a file that
            came while they were built would move others from part to part.
    """
    found = dict(_numbered(Path(parts)))
    counts = sorted({count for _, count in found})
    if not counts:
        raise StoreError(f"{parts}: has no folder part-…-of-…, such as BuildPart makes")
    if len(counts) > 1:
        raise StoreError(
            f"{parts}: has parts of builds in {' and in '.join(map(str, counts))} parts; "
            "delete those of all but one"
        )
    expected = [(index, counts[0]) for index in range(counts[0])]
    missing = [part_folder(parts, *number).name for number in expected if number not in found]
    if missing:
        raise StoreError(f"{parts}: {len(missing)} of {counts[0]} parts are missing: {missing[0]}")
    folders = [found[number] for number in expected]
    plan = _read_plan(folders[0])
    for folder in folders[1:]:
        if difference := _difference(plan, _read_plan(folder)):
            raise StoreError(
                f"{folder} and {folders[0].name} do not fit together: each had other {difference}"
            )
    return folders


def _is_whole(out: Path) -> bool:
    """Whether the build of a part has come to its end."""
    return bool(_stores(out)) and not (out / ".building").exists()


def _stores(out: Path) -> list[TokenStore]:
    """What was built in a folder: one store, or one for training and one for validation."""
    folders = (out, out / "train", out / "val")
    return [TokenStore.open(folder) for folder in folders if (folder / "manifest.json").exists()]


def _count(step: PipelineStep, out: Path, unit: str) -> None:
    """Adds what a folder has, and what was left out, to the executor's statistics."""
    for store in _stores(out):
        step.stat_update("tokens", value=len(store), unit=unit)
        step.stat_update("documents", value=store.num_documents, unit=unit)
        for reason, number in store.manifest["dropped"].items():
            step.stat_update(f"dropped: {reason}", value=number, unit=unit)


def _plan_file(part: Path) -> Path:
    # A name that `part-*` does not match: `gptrs merge PARTS/part-*` works as well.
    return part.with_name(f"plan-{part.name.removeprefix('part-')}.json")


def _read_plan(part: Path) -> dict[str, Any]:
    file = _plan_file(part)
    try:
        plan = json.loads(file.read_bytes())
    except (OSError, ValueError) as error:
        raise StoreError(f"{file}: cannot be read: {error}") from None
    if not isinstance(plan, dict):
        raise StoreError(f"{file}: is not what BuildPart wrote")
    return plan


def _difference(one: dict[str, Any], other: dict[str, Any]) -> str | None:
    """What two plans do not have in common, in words."""
    if one.get("options") != other.get("options"):
        return f"options: {one.get('options')} and {other.get('options')}"
    if one != other:
        files = [f"{plan.get('files')} of {plan.get('bytes')} bytes" for plan in (one, other)]
        return f"input files: {files[0]} and {files[1]}"
    return None


def _numbered(parts: Path) -> Iterator[tuple[tuple[int, int], Path]]:
    """(index, count) and path of each part's folder."""
    try:
        for path in parts.iterdir():
            if match := _PART.fullmatch(path.name):
                yield (int(match[1]), int(match[2])), path
    except OSError as error:
        raise StoreError(f"{parts}: cannot be read: {error.strerror or error}") from None


def _listed(inputs: Any) -> list[Any]:
    return list(inputs) if isinstance(inputs, (list, tuple)) else [inputs]


def _absolute(item: Any) -> str:
    """A path that means the same wherever a task starts."""
    if not isinstance(item, (str, os.PathLike)) or os.fspath(item) == "-":
        raise ConfigError(
            f"an input of BuildPart is a path that every task can read, found {item!r}"
        )
    return os.path.abspath(os.fspath(item))
