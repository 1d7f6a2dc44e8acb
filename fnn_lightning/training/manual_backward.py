"""The gradients of plain nets, written out: autograd's operations without its bookkeeping.

For a net as small as 784–100–10, recording the operations of a step and walking back through the
record takes a fifth of the step. A chain of linear layers and activations needs no record: its
gradients are the few lines of `ManualBackward`. They are the operations that autograd would choose,
in the same order, so that every bit is the same. Activations that are not in `DERIVATIVES`, and
modules or parameters with hooks, are left to autograd. Hooks on nodes of autograd's graph cannot be
seen from outside: with such hooks, give `multi_step=False`.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fnn_lightning.network import FNN
from fnn_lightning.training.metrics import IGNORE_INDEX, StepOutput

aten = torch.ops.aten

DERIVATIVES: dict[type[nn.Module], Callable[[Tensor, Tensor], Tensor]] = {
    nn.ReLU: lambda gradient, output: aten.threshold_backward.default(gradient, output, 0),
    nn.Sigmoid: aten.sigmoid_backward.default,
    nn.Tanh: aten.tanh_backward.default,
}
"""Computes the gradient of an activation's input from the gradient of its output and the output."""

MEAN = 1  # how PyTorch numbers the reduction of a loss


class ManualBackward:
    """Computes cross-entropy and its gradients without autograd.

    Args:
        network: One that `supports_manual_backward` accepts. The values of its parameters may
            change, but not the parameters themselves or the layers.
    """

    def __init__(self, network: FNN) -> None:
        layers = list(network.layers)
        self.linear: list[Any] = [(layer.weight, layer.bias) for layer in layers[::2]]
        self.hidden = [(layer, DERIVATIVES[type(layer)]) for layer in layers[1::2]]

    @torch.no_grad()
    def __call__(self, pixels: Tensor, labels: Tensor) -> StepOutput:
        """Set `grad` of every weight and bias to the gradient of the mean loss of a batch.

        Args:
            pixels: As the network's `scale` returns them.
            labels: `int64` of shape `(B,)`.
        """
        inputs = [pixels]
        for (weight, bias), (activation, _) in zip(self.linear[:-1], self.hidden, strict=True):
            inputs.append(activation(F.linear(inputs[-1], weight, bias)))
        logits = F.linear(inputs[-1], *self.linear[-1])
        log_p = logits.log_softmax(1)
        loss, weights = aten.nll_loss_forward.default(log_p, labels, None, MEAN, IGNORE_INDEX)

        gradient = aten.nll_loss_backward.default(
            torch.ones_like(loss), log_p, labels, None, MEAN, IGNORE_INDEX, weights
        )
        gradient = aten._log_softmax_backward_data.default(gradient, log_p, 1, log_p.dtype)
        for i in reversed(range(len(inputs))):
            weight, bias = self.linear[i]
            # freed first, so that the new gradient gets memory that is still in the cache
            weight.grad = bias.grad = None
            weight.grad, bias.grad = gradient.t().mm(inputs[i]), gradient.sum(0)
            if i:
                gradient = self.hidden[i - 1][1](gradient.mm(weight), inputs[i])
        return StepOutput(loss, logits, labels)


def supports_manual_backward(network: Any) -> bool:
    """Tell whether `ManualBackward` does everything autograd would do in a step of a network.

    >>> supports_manual_backward(FNN(hidden_dims=[8], activation="tanh"))
    True
    >>> supports_manual_backward(FNN(hidden_dims=[8], activation="gelu"))
    False
    """
    if not computes_its_layers_alone(network):
        return False
    layers = list(network.layers)
    parameters = list(network.parameters())
    device = parameters[0].device
    return (
        len(layers) % 2 == 1
        and all(type(layer) is nn.Linear for layer in layers[::2])
        and all(type(layer) in DERIVATIVES for layer in layers[1::2])
        and len(parameters) == len(layers) + 1  # weights and biases: none missing, none shared
        and all(each.requires_grad for each in parameters)
        and all((each.dtype, each.device) == (network.dtype, device) for each in parameters)
    )


def computes_its_layers_alone(network: Any) -> bool:
    """Tell whether a step of an `FNN` computes its layers and their gradients, and nothing else."""
    # exactly these classes: a derived one, such as that of a parametrised layer, may do more
    return (
        type(network) is FNN
        and type(network.layers) is nn.Sequential
        and not any(has_hooks(module) for module in network.modules())
        and not any(is_watched(parameter) for parameter in network.parameters())
        and not torch.is_autocast_enabled(next(network.parameters()).device.type)
        and not torch.is_anomaly_enabled()
    )


def has_hooks(module: nn.Module) -> bool:
    """Tell whether calling a module does anything but the `forward` of its class.

    PyTorch has no public way to ask: a test sets a hook of every kind.
    """
    return bool(
        "forward" in vars(module)
        or module._forward_hooks
        or module._forward_pre_hooks
        or module._backward_hooks
        or module._backward_pre_hooks
        or module._compiled_call_impl
        or nn.modules.module._has_any_global_hook()  # type: ignore[no-untyped-call]
    )


def is_watched(parameter: Tensor) -> bool:
    """Tell whether a parameter has hooks on its gradient."""
    return bool(parameter._backward_hooks or parameter._post_accumulate_grad_hooks)
