"""What the ranks of a run tell each other."""

from typing import Any

import torch


def gather_from_ranks(value: Any) -> list[Any]:
    """Collect a value from every rank, on every rank; a collective operation.

    >>> gather_from_ranks("the only rank's")
    ["the only rank's"]
    """
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return [value]
    values: list[Any] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(values, value)
    return values
