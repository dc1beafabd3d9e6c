"""Drawing explanations: overlays on the source's frames, videos, contact sheets, notebook output.

Importing this package fills `tubelens.explanation.WRITERS` and `REPRS`, and `tubelens.accounts.WRITERS`.
"""

from tubelens.render.compose import frames
from tubelens.render.export import draw
from tubelens.render.ledger import ledger_figure
from tubelens.render.look import STYLES
from tubelens.render.notebook import html
from tubelens.render.sheet import figure

__all__ = ["STYLES", "draw", "figure", "frames", "html", "ledger_figure"]
