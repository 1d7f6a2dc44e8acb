"""A figure that a notebook shows by itself."""

import io

from matplotlib.figure import Figure


class InlineFigure(Figure):
    """A Matplotlib figure that a notebook shows once, and that pyplot knows nothing of.

    IPython shows a plain `Figure` only once pyplot has been imported.
    """

    def _repr_png_(self) -> bytes:
        """Draw the figure as PNG; IPython looks for a method of this name."""
        content = io.BytesIO()
        self.savefig(content, format="png")
        return content.getvalue()
