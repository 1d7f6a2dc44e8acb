"""`torch.compile` around the network, of which nothing shows in a checkpoint."""

from typing import Any

from torch import nn

PREFIX = "_orig_mod."  # which `torch.compile` puts into the names of weights


def compile_network(network: nn.Module) -> None:
    """Compile a network in place, when it is first called.

    It is compiled for batches of any size. Otherwise the sizes seen so far would decide which code
    runs, and a resumed run could round otherwise than one that was never interrupted.
    """
    network.compile(dynamic=True)


def drop_prefix(weights: dict[str, Any]) -> dict[str, Any]:
    """Name weights as if nothing was compiled; of two with the same name the plain one stays.

    >>> drop_prefix({"network._orig_mod.layers.0.bias": 1, "network.layers.0.bias": 2})
    {'network.layers.0.bias': 2}
    """
    plain = {name.replace(PREFIX, ""): value for name, value in weights.items()}
    return plain | {name: value for name, value in weights.items() if PREFIX not in name}


def add_prefix(weights: dict[str, Any], module: nn.Module) -> dict[str, Any]:
    """Name weights as they are named in a module, of which parts may be compiled."""
    names = {name.replace(PREFIX, ""): name for name in module.state_dict()}
    return {names.get(name, name): value for name, value in weights.items()}
