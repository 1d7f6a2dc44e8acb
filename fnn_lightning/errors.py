"""The exceptions whose message is meant for the user; the command line adds no traceback."""


class InputError(ValueError):
    """Something the user gave cannot be used.

    The message is one line that says what was expected, what came and, where it is not plain,
    what to do.
    """


class DivergenceError(ArithmeticError):
    """The loss or a weight is no longer a finite number, so that training on makes no sense."""
