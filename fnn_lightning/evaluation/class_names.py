"""Class names, which may be any text, as a terminal, a picture or a logger can take them."""

import re
from collections.abc import Sequence

from fnn_lightning.errors import one_line

MAX_TAG = 100  # characters


def short_name(name: str, length: int = 40) -> str:
    r"""Return a name as one line of printable characters, cut where it is too long.

    >>> short_name("T-shirt/top"), short_name("two\nlines"), short_name(50 * "x", 8)
    ('T-shirt/top', 'two lines', 'xxxxxxx…')
    """
    text = one_line(name) or "?"
    return text if len(text) <= length else f"{text[: length - 1]}…"


def tag_names(class_names: Sequence[str]) -> list[str]:
    """Return for each class a name that loggers take, of letters, digits, `_`, `-` and `.`.

    No two are the same.

    >>> tag_names(["3", "T-shirt/top", "T-shirt top"])
    ['3', 'T-shirt_top', 'T-shirt_top_2']
    """
    tags: dict[str, None] = {}
    for name in class_names:
        tag = stem = re.sub(r"[^\w.-]", "_", name)[:MAX_TAG] or "_"
        number = 1
        while tag in tags:
            number += 1
            tag = f"{stem}_{number}"
        tags[tag] = None
    return list(tags)
