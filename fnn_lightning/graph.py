"""The network as a graph, for TensorBoard."""

from tensorboard.compat.proto.attr_value_pb2 import AttrValue
from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.compat.proto.graph_pb2 import GraphDef
from torch import fx

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
    names: dict[fx.Node, str] = {}
    for node in fx.symbolic_trace(network.layers).graph.nodes:
        if node.op == "placeholder":
            names[node] = "scale"
            continue
        inputs = [names[each] for each in node.all_input_nodes]
        if node.op == "output":
            graph.node.add(name="logits", op="Identity", input=inputs)
            continue
        kind = str(node.target)
        names[node] = node.name
        if node.op == "call_module":
            module = network.layers.get_submodule(kind)
            kind = type(module).__name__
            names[node] = f"{node.target}_{kind}"
        added = graph.node.add(name=names[node], op=kind, input=inputs)
        if node.op == "call_module" and module.extra_repr():
            added.attr["arguments"].CopyFrom(AttrValue(s=module.extra_repr().encode()))
    return Event(graph_def=graph.SerializeToString())
