"""Makes `.venv-bench-native`: llama.cpp and CTranslate2, and what writes their model files.

Packages of pyproject.toml's group `bench-native`, one by one. What will not install is noted in
`failures.json` there and left out: the benchmark shows it. llama.cpp is compiled: ten minutes, and
with two of GCC's optimisations off, see `FLAGS`.
"""

import hashlib
import json
import os
import sys
import tomllib
import venv

from tokenizer_environment import ROOT, error_of, note

GROUP = "bench-native"
FOLDER = ROOT / f".venv-{GROUP}"
PYTHON = FOLDER / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
FAILURES = FOLDER / "failures.json"
"""Name of a package to the last line of the error that kept it out."""

# GCC 12 drops, as dead stores, most of what llama.cpp tells the processor about its AMX tiles:
# every quantised model then ends with an illegal instruction. pip keeps what it has built: a wheel
# made without these flags has to go first, by `pip cache remove llama_cpp_python`.
FLAGS = "-fno-tree-dse -fno-dse"


def main() -> None:
    """Does what has not been done since the group last changed."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    requirements = project["dependency-groups"][GROUP]
    contents = hashlib.sha256(repr(requirements).encode()).hexdigest()
    stamp = FOLDER / "ready"
    if stamp.exists() and stamp.read_text() == contents:
        return
    print(f"setting up {FOLDER.name}: ten minutes where llama.cpp has to be compiled")
    if not PYTHON.exists():
        venv.create(FOLDER, with_pip=True)
    failures: dict[str, str] = {}
    pip = [str(PYTHON), "-m", "pip", "--disable-pip-version-check", "--quiet", "install"]
    variables = {"CXXFLAGS": FLAGS, **os.environ} if sys.platform == "linux" else dict(os.environ)
    for requirement in requirements:
        name = requirement.partition("==")[0]
        note(failures, name, error_of([*pip, requirement], variables))
    FAILURES.write_text(json.dumps(failures))
    if not failures:  # Otherwise the next run tries again.
        stamp.write_text(contents)


if __name__ == "__main__":
    main()
