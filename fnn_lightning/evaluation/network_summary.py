"""Describes a network to TensorBoard: its graph, its layers, its last hidden layer's output."""

import shutil
from pathlib import Path
from typing import Any

import torch
from torch import nn

from fnn_lightning.evaluation.class_names import short_name
from fnn_lightning.evaluation.predictions import Predictions
from fnn_lightning.network import FNN

MAX_PROJECTED = 10_000  # images
MAX_ACTIVATIONS = 5_000_000  # of all of them; TensorBoard loads them as text, 6 bytes each


def graph_event(network: FNN) -> Any:
    """Describe a network for TensorBoard's tab Graphs, one node per layer.

    PyTorch's own `SummaryWriter.add_graph` uses `torch.jit.trace`, which is deprecated and does not
    support Python 3.14.

    Returns:
        A `tensorboard.compat.proto.event_pb2.Event`.
    """
    # slow to import, and not needed before training
    from tensorboard.compat.proto.attr_value_pb2 import AttrValue
    from tensorboard.compat.proto.event_pb2 import Event
    from tensorboard.compat.proto.graph_pb2 import GraphDef

    graph = GraphDef()
    graph.versions.producer = 22  # of the format; TensorBoard asks for it
    graph.node.add(name="pixels", op="Placeholder")
    scale = graph.node.add(name="scale", op="Scale", input=["pixels"])
    scale.attr["pixel_mean"].CopyFrom(AttrValue(f=network.pixel_mean))
    scale.attr["pixel_std"].CopyFrom(AttrValue(f=network.pixel_std))
    for number, layer in enumerate(network.layers):
        kind = type(layer).__name__
        before = graph.node[-1].name
        node = graph.node.add(name=f"{number}_{kind}", op=kind, input=[before])
        if layer.extra_repr():
            node.attr["arguments"].CopyFrom(AttrValue(s=layer.extra_repr().encode()))
    graph.node.add(name="logits", op="Identity", input=[graph.node[-1].name])
    return Event(graph_def=graph.SerializeToString())


def layers_table(network: FNN) -> str:
    """Describe the layers of a network as a Markdown table, one row per layer.

    >>> print(layers_table(FNN(hidden_dims=[])))
    | layer | output shape | parameters |
    | --- | --- | ---: |
    | `scale` | (B, 784) | 0 |
    | `0` Linear | (B, 10) | 7,850 |
    | total | | 7,850 |
    """
    width, total = network.in_features, 0
    rows = ["| layer | output shape | parameters |", "| --- | --- | ---: |"]
    rows.append(f"| `scale` | (B, {width}) | 0 |")
    for number, layer in enumerate(network.layers):
        width = layer.out_features if isinstance(layer, nn.Linear) else width
        count = sum(parameter.numel() for parameter in layer.parameters())
        total += count
        rows.append(f"| `{number}` {type(layer).__name__} | (B, {width}) | {count:,} |")
    return "\n".join([*rows, f"| total | | {total:,} |"])


def add_projector(board: Any, network: FNN, predictions: Predictions, step: int) -> None:
    """Show images in TensorBoard's projector by the activations of the last hidden layer.

    Each point has its image, its class and the predicted class. Without a hidden layer the points
    are the scaled pixels. Up to 10,000 images are shown, fewer of a layer wider than 500 units.

    Args:
        board: A `SummaryWriter`.
        network: The one that made the predictions, in evaluation mode.
        predictions: Those of the images.
        step: Number of optimiser steps that the weights have seen.
    """
    last: nn.Linear = network.layers[-1]  # type: ignore[assignment]
    count = min(MAX_PROJECTED, MAX_ACTIVATIONS // last.in_features)
    images = predictions.images[predictions.indices[:count]]
    with torch.inference_mode():
        scaled = network.scale(images.to(last.weight.device))
        activations = network.layers[:-1](scaled).double().cpu()
    names = [short_name(name) for name in predictions.class_names]  # tabs separate the columns
    labels, classes = predictions.labels[:count].tolist(), predictions.classes[:count].tolist()
    rows = [
        [
            names[label],
            names[predicted],
            names[label] if label == predicted else f"{names[label]} as {names[predicted]}",
        ]
        for label, predicted in zip(labels, classes, strict=True)
    ]
    folder = Path(board.log_dir) / f"{step:05}"
    shutil.rmtree(folder, ignore_errors=True)  # of an earlier test, of which it would warn
    board.add_embedding(
        activations.round(decimals=3),  # shorter as text
        metadata=rows,
        metadata_header=["class", "predicted", "caption"],
        label_img=images.unsqueeze(1) / 255,
        global_step=step,
        tag="last hidden layer",
    )
