"""The exceptions whose message is meant for the user; the command line adds no traceback."""

MAX_MESSAGE = 1_000  # characters; what a file holds can be repeated in a message


class InputError(ValueError):
    """Something the user gave cannot be used.

    The message is one line that says what was expected, what was given and, where that is not
    obvious, what to do.
    """


class DivergenceError(ArithmeticError):
    """The loss or a weight is no longer a finite number, so continuing is pointless."""


def one_line(message: str) -> str:
    """Return a message without line breaks and control characters, cut where it is too long."""
    text = "".join(filter(str.isprintable, " ".join(message.split())))
    return text if len(text) <= MAX_MESSAGE else f"{text[:MAX_MESSAGE]} …"
