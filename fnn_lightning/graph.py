"""The network as a graph, for TensorBoard."""

from tensorboard.compat.proto.attr_value_pb2 import AttrValue
from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.compat.proto.graph_pb2 import GraphDef

from fnn_lightning.network import FNN


def graph_event(network: FNN) -> Event:
    """Describe a network for TensorBoard's tab Graphs, one node a layer.

    PyTorch's own `SummaryWriter.add_graph` relies on `torch.jit.trace`, which is deprecated, and
    not supported by Python 3.14.
    """
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
