"""The package as it is installed: what `import gptrs` loads, and what ships beside the code."""

import ast
import importlib.metadata
import inspect
import re
import subprocess
import sys
from importlib.resources import files
from importlib.util import find_spec
from operator import attrgetter
from pathlib import Path

import pytest
from llms_from_scratch import ch02, ch03, ch04, ch05

import gptrs

SOURCE_TREE = Path(__file__).parent.parent / "python"


def modules_after(statement):
    """The top-level modules that a fresh interpreter holds after `statement`."""
    code = f"{statement}\nimport sys\nprint(*{{name.partition('.')[0] for name in sys.modules}})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


def test_the_installed_package_is_tested_and_not_the_source_tree():
    assert not Path(gptrs.__file__).is_relative_to(SOURCE_TREE)


def test_importing_gptrs_loads_neither_torch_nor_numpy():
    assert not {"torch", "numpy"} & modules_after("import gptrs")


@pytest.mark.parametrize(
    "statement",
    [
        "import gptrs.config",
        "import gptrs.errors",
        "import gptrs.costs.params",
        "import gptrs.text.reading",
        "import gptrs\ngptrs.get_tokenizer('gpt2').encode('Hello')",
        "import gptrs\ngptrs.StreamDecoder(gptrs.get_tokenizer('gpt2')).push(15496)",
    ],
)
def test_settings_and_tokens_load_neither_torch_nor_numpy(statement):
    loaded = modules_after(statement)
    assert "gptrs" in loaded
    assert not {"torch", "numpy"} & loaded


def test_encoding_a_text_loads_little_of_the_standard_library():
    loaded = modules_after("import gptrs\ngptrs.get_tokenizer('gpt2').encode('Hello')")
    assert not {"contextlib", "dataclasses", "hashlib", "inspect", "json", "typing"} & (
        loaded - modules_after("")
    )


@pytest.mark.parametrize("name", gptrs.__all__)
def test_every_public_name_can_be_imported(name):
    assert getattr(gptrs, name) is not None


BOOK_API = {
    ch02: ["GPTDatasetV1", "create_dataloader_v1"],
    ch03: ["MultiHeadAttention"],
    ch04: [
        "LayerNorm",
        "GELU",
        "FeedForward",
        "TransformerBlock",
        "GPTModel",
        "generate_text_simple",
    ],
    ch05: [
        "generate",
        "text_to_token_ids",
        "token_ids_to_text",
        "calc_loss_batch",
        "calc_loss_loader",
        "evaluate_model",
        "generate_and_print_sample",
        "train_model_simple",
        "plot_losses",
        "load_weights_into_gpt",
    ],
}


@pytest.mark.parametrize(
    ("module", "name"), [(module, name) for module, names in BOOK_API.items() for name in names]
)
def test_parameters_and_defaults_are_the_books(module, name):
    def shape(function):
        parameters = inspect.signature(function).parameters.values()
        return [(p.name, p.default) for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD]

    assert shape(getattr(gptrs, name)) == shape(getattr(module, name))


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no_such_name"):
        _ = gptrs.no_such_name


def names_in(module):
    """The functions and classes of a module of the book's; it is not imported."""
    tree = ast.parse(Path(find_spec(f"llms_from_scratch.{module}").origin).read_text("utf-8"))
    return [x.name for x in tree.body if isinstance(x, ast.FunctionDef | ast.ClassDef)]


@pytest.mark.parametrize(
    "module",
    [
        *(f"ch{number:02}" for number in range(2, 8)),
        *("appendix_a", "appendix_d", "appendix_e", "kv_cache.generate"),
    ],
)
def test_each_of_the_books_names_is_there_or_answered_with_what_is(module):
    for name in {*names_in(module)} - {*gptrs.__all__}:
        with pytest.raises(ImportError) as error:
            getattr(gptrs, name)
        answer = str(error.value)
        assert answer.startswith(f"gptrs has no {name}: ")
        for path in re.findall(r"gptrs\.([\w.]+)", answer):
            assert attrgetter(path)(gptrs)


def test_the_answer_reaches_who_imports_the_name_and_is_for_none_that_is_there():
    with pytest.raises(ImportError, match=r"^gptrs has no SpamDataset: .*gptrs\.Classifier"):
        from gptrs import SpamDataset  # noqa: F401
    answered = " ".join(gptrs._OF_THE_BOOK).split()
    assert len(answered) == len({*answered})
    assert not {*answered} & {*gptrs.__all__}


def test_the_version_is_the_installed_one():
    assert gptrs.__version__ == importlib.metadata.version("gptrs")


@pytest.mark.parametrize("name", ["py.typed", "_core.pyi"])
def test_types_are_shipped(name):
    assert files("gptrs").joinpath(name).is_file()


def test_the_metadata_asks_for_the_python_and_torch_that_the_readme_promises():
    metadata = importlib.metadata.metadata("gptrs")
    assert metadata["Requires-Python"] == ">=3.11"
    assert "torch>=2.11" in metadata.get_all("Requires-Dist")
    assert metadata["License-Expression"] == "Apache-2.0"
