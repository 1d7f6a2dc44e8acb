"""A figure that a notebook shows by itself."""

import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from matplotlib.figure import Figure


@contextmanager
def no_warning_of_glyphs() -> Iterator[None]:
    """Let Matplotlib not warn of characters that its font lacks."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from font", UserWarning)
        yield


class InlineFigure(Figure):
    """A Matplotlib figure that a notebook shows once, and that pyplot knows nothing of.

    IPython shows a plain `Figure` only once pyplot has been imported. Characters of a class name
    that the font lacks are drawn as boxes, without Matplotlib's warning about each.
    """

    def draw(self, renderer: Any) -> None:
        """Draw the figure."""
        with no_warning_of_glyphs():
            super().draw(renderer)

    def tight_layout(self, **kwargs: Any) -> None:
        """Fit the axes into the figure."""
        with no_warning_of_glyphs():
            super().tight_layout(**kwargs)

    def _repr_png_(self) -> bytes:
        """Draw the figure as PNG; IPython looks for a method of this name."""
        content = io.BytesIO()
        self.savefig(content, format="png")
        return content.getvalue()
