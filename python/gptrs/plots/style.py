"""How all pictures look: light or dark, in colours that everybody can tell apart.

The colours are Okabe and Ito's (2008); amounts are drawn in viridis, numbers around zero in blue
and orange. Figures are bare ones, made without pyplot, which would look for a screen.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from gptrs.errors import ConfigError, MissingExtraError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.colors import Colormap
    from matplotlib.figure import Figure

Style = Literal["light", "dark"]

BLUE, ORANGE, GREY = "#0072B2", "#D55E00", "#666666"
AMOUNTS = "viridis"
"""What probabilities and other amounts are coloured with."""
TITLE_SIZE, TEXT_SIZE, SMALL_SIZE = 12, 10, 8.5


@dataclass(frozen=True, slots=True)
class Palette:
    """The colours of a style."""

    paper: str
    ink: str
    faint: str
    """Of what is said beside."""
    grid: str
    colours: tuple[str, ...]
    """Of curves and bars, in this order."""

    @property
    def around_zero(self) -> Colormap:
        """Blue below zero, orange above, the paper in between."""
        from matplotlib.colors import LinearSegmentedColormap

        ends = (self.colours[0], self.paper, self.colours[1])
        return LinearSegmentedColormap.from_list("around zero", ends)


PALETTES: dict[Style, Palette] = {
    "light": Palette(
        paper="#ffffff",
        ink="#1f2328",
        faint=GREY,
        grid="#d8dee4",
        colours=(BLUE, ORANGE, "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000"),
    ),
    "dark": Palette(
        paper="#0d1117",
        ink="#e6edf3",
        faint="#9aa4ae",
        grid="#30363d",
        colours=("#56B4E9", "#E69F00", "#2FBF93", "#CC79A7", "#F0E442", "#D55E00", "#e6edf3"),
    ),
}


@contextmanager
def drawing(style: Style, texts: Iterable[str] = ()) -> Iterator[Palette]:
    """Inside, figures are made in `style`, with fonts that have the glyphs of `texts`.

    Raises:
        MissingExtraError: matplotlib is not installed; the message has the pip line.
        ConfigError: there is no such style.
    """
    if style not in PALETTES:
        raise ConfigError(f'style is "light" or "dark", found {style!r}')
    with matplotlib_needed():
        import matplotlib
        import matplotlib.figure

    from gptrs.plots.fonts import families_for

    with matplotlib.rc_context(_settings(PALETTES[style], families_for(texts))):
        yield PALETTES[style]


@contextmanager
def matplotlib_needed() -> Iterator[None]:
    """Turns a failed import of matplotlib into the pip line that mends it."""
    try:
        yield
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != "matplotlib":
            raise
        raise MissingExtraError(
            'pictures need matplotlib: pip install "gptrs[plots]"', name="matplotlib"
        ) from None


def new_figure(width: float, height: float, title: str = "") -> Figure:
    """An empty figure of so many inches, its title at the left; to be called inside `drawing`."""
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    engine = ConstrainedLayoutEngine(w_pad=0.09, h_pad=0.07)
    figure = Figure(figsize=(width, height), layout=engine)
    if title:
        figure.suptitle(title, fontsize=TITLE_SIZE, x=0.01, ha="left")
    return figure


def bare(axes: Axes) -> None:
    """Takes away frame and ticks, for what is no diagram."""
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)
    axes.grid(visible=False)


def readable_on(red_green_blue: Any) -> str:
    """Black or white, whichever is read more easily on a colour (WCAG's relative luminance)."""
    linear = [x / 12.92 if x <= 0.04045 else ((x + 0.055) / 1.055) ** 2.4 for x in red_green_blue]
    luminance = 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
    return "black" if luminance > 0.179 else "white"


def _settings(palette: Palette, families: list[str]) -> Any:
    """Settings of matplotlib: a token may be a dollar sign, so nothing is taken for mathematics."""
    from cycler import cycler

    ink = ("text.color", "axes.labelcolor", "xtick.color", "ytick.color")
    return dict.fromkeys(ink, palette.ink) | {
        "axes.axisbelow": True,
        "axes.edgecolor": palette.faint,
        "axes.facecolor": palette.paper,
        "axes.grid": True,
        "axes.labelsize": TEXT_SIZE,
        "axes.prop_cycle": cycler(color=palette.colours),
        "axes.spines.right": False,
        "axes.spines.top": False,
        "axes.titlelocation": "left",
        "axes.titlesize": TEXT_SIZE,
        "figure.facecolor": palette.paper,
        "font.family": families,
        "grid.color": palette.grid,
        "grid.linewidth": 0.6,
        "legend.frameon": False,
        "savefig.facecolor": "auto",
        "text.parse_math": False,
        "xtick.labelsize": SMALL_SIZE,
        "ytick.labelsize": SMALL_SIZE,
    }
