"""The example of retrieval-augmented generation runs from a terminal, and finds what it should."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLE = Path(__file__).parent.parent / "examples" / "answer_from_help.py"


@pytest.fixture(scope="module")
def answer():
    """With as little training of the writer as there can be: it is the demo's, tested there."""
    command = [sys.executable, str(EXAMPLE), "--minutes", "0.001", "--steps", "30"]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_the_retriever_learns_and_says_how_well(answer):
    loss, chance = re.search(r"with a loss of (\S+); by chance it is (\d\.\d+)", answer).groups()
    assert float(loss) < 0.5 * float(chance)
    assert chance == "5.55"


def test_passages_about_the_question_are_shown_with_their_topic_and_lines(answer):
    found = re.findall(r"^(\d\.\d{3})  (\w[\w-]*):\d+(?:-\d+)?\n    \| ", answer, re.MULTILINE)
    assert len(found) == 3
    scores = [float(score) for score, _ in found]
    assert scores == sorted(scores, reverse=True)
    about_exceptions = {"raise", "try", "exceptions", "execmodel", "compound", "assert", "with"}
    assert about_exceptions & {topic for _, topic in found}


def test_the_answer_follows_the_question_and_its_passage_and_is_no_promise(answer):
    passage = re.search(r"^\d\.\d{3}  .*\n((?:    \| ?.*\n)+)", answer, re.MULTILINE)[1]
    text = re.sub(r"^    \| ?", "", passage, flags=re.MULTILINE)
    assert "a model of 7.2 million parameters" in answer
    assert "no sense" in answer
    _, _, written = answer.partition("no sense:\n\n")
    question = "What happens when an exception is not handled?"
    assert written.startswith(f"{question}\n\n{text.rstrip()}")
    assert len(written) > len(question) + len(text) + 40
