"""Every block of code in docs/ runs, page by page, and prints what the page says it prints.

A page's blocks run in order, in an empty folder of its own:

    ```python     is executed; all of a page's share their names
    ```console    `$ gptrs ...` is run; lines below it are what it prints
    ```text       right after a python block: what that block prints

`...` in what is shown stands for anything, and one blank for several. Where blocks name
`runs/demo-001`, a run of the demo's model is there, though one that has hardly learned. A block of
another language, or one that cannot run, begins with a comment that says so:
`# Not run by the tests: it needs a cluster.`
"""

import doctest
import re
import shlex
import shutil
from contextlib import nullcontext
from itertools import zip_longest
from pathlib import Path
from typing import NamedTuple

import pytest

import gptrs
from gptrs import cli
from gptrs.commands.report import train_in_new_run
from gptrs.text.reading import help_topics
from gptrs.training.config import SMALL_GPT, TrainingConfig

DOCS = Path(__file__).parent.parent / "docs"
PAGES = sorted(DOCS.rglob("*.md"))
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
LINK = re.compile(r"(?:\]\(|src=\"|srcset=\")([^)\"#\s]+)")
NOT_RUN = "# Not run by the tests: "


class Block(NamedTuple):
    """A block of a page, and what is around it."""

    language: str
    content: str
    first_line: int
    """Of the content, counted from 1."""
    shown: str
    """What it prints, for a python block; empty if the page does not say."""

    @property
    def runs(self):
        return self.language in ("python", "console") and not self.content.startswith(NOT_RUN)


def blocks_of(page):
    text = page.read_text("utf-8")
    found = list(FENCE.finditer(text))
    blocks = []
    for match, following in zip_longest(found, found[1:]):
        first_line = text.count("\n", 0, match.start()) + 2
        language, content = match.groups()
        is_shown = (
            following is not None
            and (language, following[1]) == ("python", "text")
            and not text[match.end() : following.start()].strip()
        )
        shown = following[2] if is_shown else ""
        blocks.append(Block(language, content, first_line, shown))
    return blocks


def commands_of(block):
    """Each command's words, and what the page shows below it."""
    parts = re.split(r"^\$ ", block.content.replace("\\\n", " "), flags=re.MULTILINE)
    assert not parts[0], f"a console block begins with a command: {parts[0]!r}"
    for part in parts[1:]:
        command, _, shown = part.partition("\n")
        program, *arguments = shlex.split(command)
        assert program == "gptrs", f"a console block has gptrs's commands, found {program}"
        yield arguments, shown


def assert_shown(shown, printed, where):
    """What a page shows is what was printed, but for the width of columns."""
    texts = ([" ".join(line.split()) for line in text.splitlines()] for text in (shown, printed))
    one, other = ("\n".join(lines) + "\n" for lines in texts)
    same = doctest.OutputChecker().check_output(one, other, doctest.ELLIPSIS)
    assert same, f"{where} shows\n{shown}\nand what was printed is\n{printed}"


@pytest.fixture(scope="module")
def demo_run(tmp_path_factory):
    """What `gptrs demo` leaves, after a few steps."""
    runs = tmp_path_factory.mktemp("demo") / "runs"
    tokenizer = gptrs.get_tokenizer("gpt2")
    config = TrainingConfig(steps=8, warmup_steps=2, num_evaluations=1, max_validation_tokens=128)
    tokens = tokenizer.encode_to_numpy(help_topics())
    train_in_new_run(runs, "demo", SMALL_GPT, tokens, config, tokenizer=tokenizer)
    return runs


def run_python(page, block, names, capsys):
    # Blank lines in front, so that a traceback has the page's own line numbers.
    code = "\n" * (block.first_line - 1) + block.content
    exec(compile(code, str(page), "exec"), names)
    printed = capsys.readouterr().out
    if block.shown:
        assert_shown(block.shown, printed, f"{page.name}:{block.first_line}")


def run_commands(page, block, capsys):
    for arguments, shown in commands_of(block):
        where = f"{page.name}:{block.first_line}: gptrs {shlex.join(arguments)}"
        code = cli.main(arguments)
        printed, error = capsys.readouterr()
        assert code == 0, f"{where}: {error}"
        if shown.strip():
            assert_shown(shown, printed, where)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(DOCS)))
def test_every_block_of_a_page_runs_and_prints_what_the_page_shows(
    page, request, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    blocks = [block for block in blocks_of(page) if block.runs]
    if any("runs/demo-001" in block.content for block in blocks):
        shutil.copytree(request.getfixturevalue("demo_run"), "runs")
    names = {"__name__": "__main__"}
    capsys.readouterr()
    for block in blocks:
        if block.language == "python":
            run_python(page, block, names, capsys)
        else:
            run_commands(page, block, capsys)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(DOCS)))
def test_a_block_that_does_not_run_says_so_to_the_reader(page):
    blocks = blocks_of(page)
    for block in blocks:
        # Without a language: what a benchmark printed.
        if not block.runs and block.language not in ("", "text"):
            assert block.content.startswith(NOT_RUN), f"{page.name}:{block.first_line}"
    num_shown = sum(bool(block.shown) for block in blocks)
    assert num_shown == sum(block.language == "text" for block in blocks)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(DOCS)))
def test_what_a_page_links_to_is_there(page):
    for target in LINK.findall(FENCE.sub("", page.read_text("utf-8"))):
        if not target.startswith(("http://", "https://")):
            assert (page.parent / target).exists(), f"{page.name} links to {target}"


def test_every_page_is_in_the_index():
    index = DOCS / "README.md"
    linked = {(DOCS / target).resolve() for target in LINK.findall(index.read_text("utf-8"))}
    assert {page for page in PAGES if page != index} <= linked


@pytest.mark.parametrize(
    ("shown", "printed", "same"),
    [
        ("1 2\n", "1    2  \n", True),
        ("1 ...\n", "1 2 3\n", True),
        ("...\nlast\n", "first\n\nsecond\nlast\n", True),
        ("1 2\n", "1 3\n", False),
        ("1\n", "1\n2\n", False),
        ("12\n", "1 2\n", False),
        ("...\nlast\n", "last, but one\n", False),
    ],
)
def test_output_that_differs_from_what_is_shown_is_found(shown, printed, same):
    with nullcontext() if same else pytest.raises(AssertionError, match="what was printed is"):
        assert_shown(shown, printed, "page.md:1")
