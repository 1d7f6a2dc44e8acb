"""The templates of the pages, compiled once in a process."""

import functools
from importlib import resources
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from jinja2 import Template


@functools.cache
def html_template(name: str) -> "Template":
    """Compile the template in the file `name` of this package: what it is given is shown as text.

    A value that it names and does not get is an error.
    """
    from jinja2 import Environment, StrictUndefined  # slow to import, and only needed here

    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    source = resources.files(__package__).joinpath(name).read_text(encoding="utf-8")
    return environment.from_string(source)
