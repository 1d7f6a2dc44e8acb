"""The HTML templates, each compiled once per process."""

import functools
from importlib import resources
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from jinja2 import Template


@functools.cache
def html_template(name: str) -> "Template":
    """Return the compiled template in the file `name` of this package. Values are escaped.

    Rendering it without a value that it names raises `jinja2.UndefinedError`.
    """
    from jinja2 import Environment, StrictUndefined  # slow to import, and only needed here

    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    source = resources.files(__package__).joinpath(name).read_text(encoding="utf-8")
    return environment.from_string(source)
