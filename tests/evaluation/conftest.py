import pytest


@pytest.fixture(autouse=True)
def _drawn(drawn: None) -> None:
    """Draw the figures in every test of what is drawn."""
