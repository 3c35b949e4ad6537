"""The pictures in docs/images are those that docs/pictures.py makes."""

import importlib.util
import sys
from pathlib import Path

import pytest
from PIL import Image

DOCS = Path(__file__).parent.parent / "docs"
IMAGES = DOCS / "images"
MOST_BYTES = 1_500_000


@pytest.fixture
def script(monkeypatch):
    spec = importlib.util.spec_from_file_location("pictures", DOCS / "pictures.py")
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "pictures", module)  # Its dataclass looks itself up there.
    spec.loader.exec_module(module)
    return module


def test_every_picture_is_there_light_and_dark_and_no_other(script):
    names = [picture.__name__.replace("_", "-") for picture in script.PICTURES]
    expected = {f"{name}-{style}.png" for name in names for style in ("light", "dark")}
    assert {file.name for file in IMAGES.iterdir()} == expected | {"projection.html"}


def test_they_are_small_and_on_exactly_the_paper_of_their_style():
    assert sum(file.stat().st_size for file in IMAGES.iterdir()) < MOST_BYTES
    for file in IMAGES.glob("*.png"):
        with Image.open(file) as image:
            assert 600 < image.width < 1800
            paper = image.convert("RGB").getpixel((0, 0))
        assert paper == ((255, 255, 255) if file.stem.endswith("light") else (13, 17, 23))


def test_the_script_trains_its_model_and_draws(script, tmp_path, monkeypatch, capfd):
    tiny = script.CONFIG.to_dict() | {"vocab_size": 300, "emb_dim": 8, "n_heads": 2, "n_layers": 1}
    monkeypatch.setattr(script, "CONFIG", script.GPTConfig.of(tiny))
    monkeypatch.setattr(script, "MAIN_STEPS", 2)
    monkeypatch.setattr(script, "IMAGES", tmp_path / "images")
    script.main(["logit-lens"])
    made = {file.name for file in (tmp_path / "images").iterdir()}
    assert made == {"logit-lens-light.png", "logit-lens-dark.png"}
    assert capfd.readouterr().out.endswith("logit-lens\n")
