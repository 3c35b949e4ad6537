"""Makes `.venv-bench`: gptrs beside the other tokenizers, whose versions suit no other environment.

    tokenizer_environment.py     Python packages of pyproject.toml's group `bench`, one by one,
                                 the newest wheel of gptrs, and the Rust program in benches/peers

What will not install is noted in `.venv-bench/failures.json` and left out: the benchmark shows it.
"""

import hashlib
import json
import os
import subprocess
import sys
import tomllib
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / ".venv-bench"
PYTHON = FOLDER / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
FAILURES = FOLDER / "failures.json"
"""Name of a peer to the last line of the error that kept it out."""
RUST_PEERS = ROOT / "benches" / "peers"


def main() -> None:
    """Does what has not been done since the wheel or the group last changed."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    requirements = project["dependency-groups"]["bench"]
    wheel = newest_wheel()
    contents = hashlib.sha256(repr(requirements).encode() + wheel.read_bytes()).hexdigest()
    stamp = FOLDER / "ready"
    if stamp.exists() and stamp.read_text() == contents:
        return
    print(f"setting up {FOLDER.name}: minutes where a tokenizer has to be compiled")
    if not PYTHON.exists():
        venv.create(FOLDER, with_pip=True)
    failures = {}
    for requirement in requirements:
        note(failures, requirement.partition("==")[0], pip_install(requirement))
    note(failures, "gptrs", pip_install("--no-deps", "--force-reinstall", str(wheel)))
    note(failures, "bpe", build_rust_peers())
    FAILURES.write_text(json.dumps(failures))
    if "gptrs" in failures:
        raise SystemExit("gptrs itself cannot be installed")
    if not failures:  # Otherwise the next run tries again.
        stamp.write_text(contents)


def newest_wheel() -> Path:
    """What `make build` built."""
    wheels = sorted((ROOT / "target" / "wheels" / "dev").glob("gptrs-*.whl"))
    if not wheels:
        raise SystemExit("no wheel of gptrs in target/wheels/dev: make build")
    return wheels[-1]


def note(failures: dict[str, str], name: str, error: str | None) -> None:
    """Keeps what went wrong, and says so."""
    if error is not None:
        failures[name] = error
        print(f"{name}: {error}", file=sys.stderr)


def pip_install(*arguments: str) -> str | None:
    """The last line of pip's error, `None` where there is none."""
    pip = [str(PYTHON), "-m", "pip", "--disable-pip-version-check", "--quiet", "install"]
    return error_of([*pip, *arguments], dict(os.environ))


def build_rust_peers() -> str | None:
    """The last line of cargo's error, `None` where there is none."""
    environment = {"CARGO_TARGET_DIR": str(ROOT / "target" / "bench-peers"), **os.environ}
    options = ["--quiet", "--locked", "--force", "--no-track"]
    folders = ["--path", str(RUST_PEERS), "--root", str(FOLDER)]
    return error_of(["cargo", "install", *options, *folders], environment)


def error_of(command: list[str], environment: dict[str, str]) -> str | None:
    """Runs a command; the last line it wrote if it failed."""
    try:
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
    except OSError as error:
        return str(error)
    lines = (done.stderr or done.stdout).strip().splitlines() or [f"exit status {done.returncode}"]
    return lines[-1] if done.returncode else None


if __name__ == "__main__":
    main()
