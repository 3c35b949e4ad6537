"""Names without a path: the hub, and what was probably meant."""

import sys
from pathlib import Path

import huggingface_hub
import pytest
import torch
from random_models import random_gpt2, refused

import gptrs
from gptrs.config import PRESETS
from gptrs.errors import CheckpointError, MissingExtraError


def test_a_name_without_a_path_points_to_the_hub(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("gpt2", "openai-community/gpt2"):
        assert f"gptrs.from_hub({name!r})" in refused(name)[0]
    assert "from_hub" not in refused(tmp_path / "no" / "such")[0]


@pytest.mark.parametrize(
    ("asked", "meant"),
    [
        ("runs/train-1", "runs/train-001"),
        ("rnus/train-001", "runs/train-001"),
        ("rnus/trian-002/checkpoint", "runs/train-002/checkpoint"),
        ("model.safetensor", "model.safetensors"),
        ("runs/train-002/best", None),
        ("runs/demo", None),
        (".cach", None),
    ],
)
def test_a_misspelt_path_is_told_the_nearest_that_exists(tmp_path, monkeypatch, asked, meant):
    monkeypatch.chdir(tmp_path)
    for folder in ("runs/train-001", "runs/train-002/checkpoint", ".cache"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "model.safetensors").touch()
    for path in (Path(asked), tmp_path / asked):
        (line,) = refused(path)
        nearest = (
            path.parent / "x"
            if meant is None
            else Path(*path.parts[: -len(Path(asked).parts)], meant)
        )
        assert line.startswith(f"{path}: no such file or folder")
        assert (f"; did you mean {nearest}?" in line) == (meant is not None)
        assert ("did you mean" in line) == (meant is not None)
        # In a folder that is there, or a path of several: no name of the hub's.
        could_be_hubs = asked in ("rnus/train-001", "model.safetensor", ".cach")
        assert ("from_hub" in line) == (could_be_hubs and not path.is_absolute())


@pytest.mark.parametrize("name", ["gpt2-124m", "gpt2.py", "gpt2-124m/"])
def test_a_path_that_resembles_the_hubs_name_does_not_hide_the_hub(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    (tmp_path / name).mkdir() if name.endswith("/") else (tmp_path / name).touch()
    assert refused("gpt2") == [
        f"gpt2: no such file or folder; did you mean {Path(name)}? gptrs.from_hub('gpt2') fetches "
        "a model from the Hugging Face hub"
    ]


@pytest.mark.parametrize("preset", [name for name in PRESETS if name.startswith("gpt2-")])
def test_a_preset_is_found_on_the_hub_under_its_name_there(tmp_path, monkeypatch, preset):
    monkeypatch.chdir(tmp_path)
    # Sizes by OpenAI's own names: https://huggingface.co/openai-community.
    hub_name = {768: "gpt2", 1024: "gpt2-medium", 1280: "gpt2-large", 1600: "gpt2-xl"}[
        PRESETS[preset].emb_dim
    ]
    assert f"gptrs.from_hub({hub_name!r})" in refused(preset)[0]
    asked = []
    random_gpt2().save_pretrained(tmp_path / "hub")
    monkeypatch.setattr(
        huggingface_hub,
        "snapshot_download",
        lambda name, **_: asked.append(name) or str(tmp_path / "hub"),
    )
    gptrs.from_hub(preset)
    assert asked == [hub_name]


def test_a_preset_without_published_weights_promises_none(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (message,) = refused("gpt3-175b")
    assert "from_hub" not in message
    assert "GPTModel('gpt3-175b') draws them" in message


def test_the_hub_is_asked_for_what_is_needed_and_its_folder_read(tmp_path, monkeypatch):
    random_gpt2().save_pretrained(tmp_path)
    asked = []

    def snapshot_download(name, **options):
        asked.append((name, options["revision"]))
        return str(tmp_path)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    model = gptrs.from_hub("someone/gpt2", revision="v2", dtype=torch.bfloat16)
    assert model.tok_emb.weight.dtype == torch.bfloat16
    assert asked == [("someone/gpt2", "v2")]


def test_without_the_hub_an_error_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(CheckpointError, match="'someone/gpt2' cannot be fetched"):
        gptrs.from_hub("someone/gpt2")
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(MissingExtraError, match="pip install huggingface_hub"):
        gptrs.from_hub("someone/gpt2")
