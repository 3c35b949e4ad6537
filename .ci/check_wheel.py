"""Checks the wheel and the sdist in a folder, before anybody else installs them.

    check_wheel.py contents dist     what is inside: tags, size, files, metadata
    check_wheel.py install dist      what it does in an empty environment, away from this tree

`install` needs 6 GB for torch on Linux, in the system's temporary folder: TMPDIR names another.
Standard library only, since it runs before anything is installed.
"""

import argparse
import email.parser
import os
import re
import subprocess
import sys
import tarfile
import tempfile
import time
import venv
import zipfile
from collections.abc import Iterator
from email.message import Message
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
MAX_WHEEL_BYTES = 12_000_000
NEWEST_GLIBC = (2, 28)
METADATA = {
    "Name": "gptrs",
    "License-Expression": "Apache-2.0",
    "License-File": "LICENSE",
    "Requires-Python": ">=3.11",
    "Description-Content-Type": "text/markdown",
}
EXTRAS = {"distributed", "hub", "parquet", "plots", "search", "train"}
# Long enough to pass every stage: samples, checkpoint, reload, streamed text.
DEMO_ARGS = ["--minutes", "0.5"]


def main() -> None:
    """Reads the command line, runs one of the two checks, and exits with 1 where it fails."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("check", choices=["contents", "install"])
    parser.add_argument("dist", type=Path, help="the folder that holds one wheel and one sdist")
    parser.add_argument("--constraint", type=Path, help="pip's constraints file, for `install`")
    args = parser.parse_args()
    wheel = only(args.dist, "*.whl")
    if args.check == "install":
        check_install(wheel.resolve(), args.constraint.resolve() if args.constraint else None)
        return
    sdist = only(args.dist, "*.tar.gz")
    problems = [*wheel_problems(wheel), *sdist_problems(sdist)]
    for problem in problems:
        print(f"error: {problem}", file=sys.stderr)
    if problems:
        raise SystemExit(1)
    print(f"{wheel.name}: {wheel.stat().st_size / 1e6:.1f} MB, as it should be")


def only(folder: Path, pattern: str) -> Path:
    """The one file in `folder` that matches."""
    found = sorted(folder.glob(pattern))
    if len(found) != 1:
        raise SystemExit(f"error: {folder} should hold one {pattern}, and holds {len(found)}")
    return found[0]


def wheel_problems(wheel: Path) -> Iterator[str]:
    """What is wrong with the wheel's name, size, files and metadata."""
    _, _, python, abi, platforms = wheel.stem.split("-")
    if (python, abi) != ("cp311", "abi3"):
        yield f"{wheel.name} is tagged {python}-{abi}, not cp311-abi3"
    if sys.platform == "linux":
        yield from (f"{tag} is newer than manylinux_2_28" for tag in too_new(platforms))
    if wheel.stat().st_size >= MAX_WHEEL_BYTES:
        yield f"{wheel.name} has {wheel.stat().st_size:,} bytes of {MAX_WHEEL_BYTES:,}"

    with zipfile.ZipFile(wheel) as archive:
        files = {name for name in archive.namelist() if ".dist-info/" not in name}
        (metadata_file,) = (n for n in archive.namelist() if n.endswith(".dist-info/METADATA"))
        metadata = email.parser.Parser().parsestr(archive.read(metadata_file).decode())
    extension = "pyd" if sys.platform == "win32" else "abi3.so"
    expected = {*package_files(), f"gptrs/_core.{extension}"}
    yield from (f"the wheel lacks {name}" for name in sorted(expected - files))
    yield from (f"the wheel should not have {name}" for name in sorted(files - expected))
    yield from metadata_problems(metadata)


def too_new(platforms: str) -> Iterator[str]:
    """The platform tags that ask for a newer glibc than NEWEST_GLIBC, or for an unknown one."""
    # PEP 600 gives the old names their glibc.
    text = platforms.replace("manylinux2014", "manylinux_2_17")
    for tag in text.split("."):
        match = re.match(r"manylinux_(\d+)_(\d+)_", tag)
        if match is None or (int(match[1]), int(match[2])) > NEWEST_GLIBC:
            yield tag


def metadata_problems(metadata: Message) -> Iterator[str]:
    """Fields of the wheel's METADATA that are missing or different."""
    for field, value in METADATA.items():
        found = metadata.get_all(field, [])
        if not any(value in one for one in found):
            yield f"metadata: {field} should be {value}, and is {found}"
    extras = set(metadata.get_all("Provides-Extra", []))
    if extras != EXTRAS:
        yield f"metadata: the extras should be {sorted(EXTRAS)}, and are {sorted(extras)}"
    if "Typing :: Typed" not in metadata.get_all("Classifier", []):
        yield "metadata: the classifier Typing :: Typed is missing"
    if not str(metadata.get_payload()).strip():
        yield "metadata: there is no description: is README.md empty?"


def package_files() -> set[str]:
    """What the source tree has under python/, by its path in the wheel."""
    source = ROOT / "python"
    files = (
        path for path in source.rglob("*") if path.suffix in {".html", ".py", ".pyi", ".typed"}
    )
    return {path.relative_to(source).as_posix() for path in files} | {"gptrs/py.typed"}


def sdist_problems(sdist: Path) -> Iterator[str]:
    """What the sdist lacks. That it builds is known: the wheel was built from it."""
    with tarfile.open(sdist) as archive:
        files = {name.partition("/")[2] for name in archive.getnames()}
    needed = {"Cargo.lock", "LICENSE", "README.md", "pyproject.toml", "rust/gptrs-core/src/lib.rs"}
    needed |= {f"python/{name}" for name in package_files()}
    yield from (f"the sdist lacks {name}" for name in sorted(needed - files))


def check_install(wheel: Path, constraint: Path | None) -> None:
    """Installs the wheel into a new environment and uses it there as a newcomer would."""
    with tempfile.TemporaryDirectory(prefix="gptrs-wheel-") as folder:
        environment, elsewhere = Path(folder, "env"), Path(folder, "elsewhere")
        elsewhere.mkdir()
        venv.create(environment, with_pip=True)
        commands = environment / ("Scripts" if sys.platform == "win32" else "bin")
        python, gptrs = str(commands / "python"), str(commands / "gptrs")

        constraints = [] if constraint is None else ["--constraint", str(constraint)]
        pip = [python, "-m", "pip", "--disable-pip-version-check"]
        step([*pip, "install", "--quiet", *constraints, str(wheel)], elsewhere)
        step([*pip, "check"], elsewhere)
        step([python, "-c", readme_example()], elsewhere, shown="the README's first example")
        step([gptrs, "params", "book-124m"], elsewhere)
        step([gptrs, "demo", *DEMO_ARGS], elsewhere)
    print(f"{wheel.name} works in an empty environment")


def readme_example() -> str:
    """The first block of Python in README.md: what a newcomer pastes first."""
    readme = (ROOT / "README.md").read_text("utf-8")
    block = re.search(r"^```python\n(.*?)^```", readme, re.MULTILINE | re.DOTALL)
    if block is None:
        raise SystemExit("error: README.md has no block of Python")
    return block[1]


def step(command: list[str], folder: Path, *, shown: str | None = None) -> None:
    """Runs one command in `folder`, and ends the check where it fails."""
    shown = shown or " ".join([Path(command[0]).name, *command[1:]])
    print(f"$ {shown}", flush=True)
    # Nothing of the caller's Python may leak in.
    environment = {k: v for k, v in os.environ.items() if k not in {"PYTHONPATH", "PYTHONHOME"}}
    start = time.monotonic()
    done = subprocess.run(command, cwd=folder, env=environment, check=False)
    if done.returncode:
        raise SystemExit(f"error: {shown}: exit status {done.returncode}")
    print(f"  {time.monotonic() - start:.0f} s", flush=True)


if __name__ == "__main__":
    main()
