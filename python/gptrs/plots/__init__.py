"""Pictures of training, tokens and models, with matplotlib: the extra `plots`.

    style, fonts, labels     how all look; glyphs that are installed; what a token is called
    losses                   loss curves
    store                    documents and tokens of a store
    embeddings, projection   vectors as heat maps, and on a plane; projection_page: as a web page
    positions                what tokens know of their places
    attention, lens          who looks at whom; what each layer would say
    distributions            the next token, sampling step by step
    budget                   where the parameters are
    confusion                what a classifier takes for what

Takes arrays and strings, and knows nothing of models: what is drawn is computed in `insight`. A
function ending in `_figure` returns a matplotlib figure (`figure.savefig("x.png")`), in
`style="light"` or `"dark"`.
"""

from gptrs.plots.attention import attention_figure, attention_map
from gptrs.plots.budget import budget_figure
from gptrs.plots.confusion import confusion_figure, save_confusion_figure
from gptrs.plots.distributions import sampling_figure
from gptrs.plots.embeddings import MOST_ROWS, sum_figure, table_figure
from gptrs.plots.labels import token_label
from gptrs.plots.lens import lens_figure
from gptrs.plots.losses import LossCurve, loss_figure, losses_figure, save_and_show_losses
from gptrs.plots.positions import position_scores_figure, positions_figure
from gptrs.plots.projection import Plane, principal_plane, projection_figure
from gptrs.plots.projection_page import projection_page
from gptrs.plots.store import save_store_figure, store_figure
from gptrs.plots.style import BLUE, GREY, ORANGE, Style

__all__ = [
    "BLUE",
    "GREY",
    "MOST_ROWS",
    "ORANGE",
    "LossCurve",
    "Plane",
    "Style",
    "attention_figure",
    "attention_map",
    "budget_figure",
    "confusion_figure",
    "lens_figure",
    "loss_figure",
    "losses_figure",
    "position_scores_figure",
    "positions_figure",
    "principal_plane",
    "projection_figure",
    "projection_page",
    "sampling_figure",
    "save_and_show_losses",
    "save_confusion_figure",
    "save_store_figure",
    "store_figure",
    "sum_figure",
    "table_figure",
    "token_label",
]
