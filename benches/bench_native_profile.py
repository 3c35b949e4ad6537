"""Where a token's time goes in the native engine: what perf sees of its threads, part by part.

    make bench-native-profile      needs perf, and a build whose symbols name the kernels:
    rm -r target/wheels/dev && RUSTFLAGS="-C symbol-mangling-version=v0" make build

Samples are of processor time: a thread that waits at a barrier spins, and is seen there. What runs
outside the engine (making the model, Python between the calls) does not count.
"""

import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from native_models import GPT2, SMALL, TINY, Shape, make_model
from table import copy_ceiling, print_header, print_table

from gptrs import _core
from gptrs.engines.native_engine import NativeEngine

SHAPES = {shape.name: shape for shape in (GPT2, SMALL, TINY)}
PRECISIONS = ("float32", "bfloat16", "int8")
PROMPT, CONTEXT = 32, 160
SECONDS = 8.0
EVENT, SAMPLES_A_SECOND = "cpu-clock", 2000
"""Virtual machines have no counters."""

# In this order: the first that is in a symbol's name.
PARTS = {
    "products": "MatMul",
    "attention": "Attend",
    "inputs to 8 bits": "Quantize",
    "norms": "LayerNorm",
    "GELU": "Gelu",
    # The pass itself is what is left in these: its waiting loops.
    "barriers, and between": "closure|backtrace|Hand|forward|pool",
}


def main() -> None:
    """Prints the table, or is the process that perf looks at."""
    if len(sys.argv) == 3:
        decode(SHAPES[sys.argv[1]], sys.argv[2])
        return
    perf = shutil.which("perf")
    if perf is None:
        raise SystemExit("perf is not installed")
    print_header(
        "where a token's time goes, in the native engine", torch.get_num_threads(), copy_ceiling()
    )
    rows = []
    for name in SHAPES:
        for precision in PRECISIONS:
            taken, shares = profiled(perf, name, precision)
            cells = [f"{shares.get(part, 0):.0f} %" for part in [*PARTS, "other"]]
            rows.append([f"{name}, {precision}", taken, *cells])
    print_table(["batch 1, 32 to 160 tokens", "us a token", *PARTS, "other"], rows)


def decode(shape: Shape, precision: str) -> None:
    """Decodes for some seconds, and prints how long a token takes."""
    model = make_model(shape).eval()
    if precision == "bfloat16":
        model = model.to(torch.bfloat16)
    int8 = precision == "int8"
    native = NativeEngine(
        model, slots=1, context_size=CONTEXT, prefill_tokens=PROMPT, int8=int8
    ).native
    native.extend(list(range(PROMPT)), [0], [0], [PROMPT], [1])
    count, start = 0, time.perf_counter()
    while time.perf_counter() < start + SECONDS:
        for place in range(PROMPT, CONTEXT):
            native.extend([5], [0], [place], [1], [1])
        count += CONTEXT - PROMPT
    print(f"{(time.perf_counter() - start) / count * 1e6:,.0f}")


def profiled(perf: str, name: str, precision: str) -> tuple[str, dict[str, float]]:
    """Microseconds a token, and each part's percentage of what the engine took."""
    with tempfile.TemporaryDirectory() as folder:
        data = str(Path(folder) / "perf.data")
        record = [perf, "record", "-q", "-e", EVENT, "-F", str(SAMPLES_A_SECOND), "-o", data]
        worker = [sys.executable, __file__, name, precision]
        done = subprocess.run([*record, *worker], capture_output=True, text=True, check=True)
        options = ["--stdio", "--no-children", "--sort", "symbol"]
        options += ["--dsos", Path(_core.__file__).name]
        report = subprocess.run(
            [perf, "report", "-i", data, *options], capture_output=True, text=True, check=True
        )
    counts: dict[str, float] = {}
    for share, symbol in re.findall(r"^\s*([\d.]+)%\s+\[\.\]\s+(.+)$", report.stdout, re.MULTILINE):
        part = next((part for part, names in PARTS.items() if re.search(names, symbol)), "other")
        counts[part] = counts.get(part, 0.0) + float(share)
    if "products" not in counts:
        raise SystemExit("the symbols do not name the kernels: see the first lines of this file")
    return done.stdout.strip(), {
        part: 100 * share / sum(counts.values()) for part, share in counts.items()
    }


if __name__ == "__main__":
    main()
