"""Look at and take apart ONNX graphs: who makes a tensor, who reads it, what computes it."""

from collections.abc import Collection, Iterator, Sequence
from typing import NamedTuple

from onnx import GraphProto, ModelProto, NodeProto, ValueInfoProto, helper


class Made(NamedTuple):
    """Nodes of a graph, and where each tensor is made.

    Attributes:
        nodes: All nodes; each comes after what it reads.
        by: Index of the node that makes a tensor.
    """

    nodes: list[NodeProto]
    by: dict[str, int]


def made_in(model: ModelProto) -> Made:
    """Index the nodes of a graph by the tensors that they make."""
    nodes = list(model.graph.node)
    return Made(nodes, {name: i for i, node in enumerate(nodes) for name in node.output if name})


def reads(node: NodeProto) -> list[str]:
    """Return the tensors that a node reads, also those that graphs inside it read from outside."""
    found = [name for name in node.input if name]
    for graph in graphs_inside(node):
        inner = {value.name for value in graph.input} | {t.name for t in graph.initializer}
        for each in graph.node:
            found += [name for name in reads(each) if name not in inner]
            inner.update(each.output)
        found += [value.name for value in graph.output if value.name not in inner]
    return found


def graphs_inside(node: NodeProto) -> Iterator[GraphProto]:
    """Yield the graphs of a node's attributes, such as the branches of an If."""
    for attribute in node.attribute:
        if attribute.HasField("g"):
            yield attribute.g
        yield from attribute.graphs


def ancestors(model: ModelProto, tensors: Collection[str]) -> set[int]:
    """Return the indices of all nodes that some tensors depend on."""
    made, found = made_in(model), set[int]()
    waiting = [made.by[name] for name in tensors if name in made.by]
    while waiting:
        index = waiting.pop()
        if index not in found:
            found.add(index)
            waiting += [made.by[name] for name in reads(made.nodes[index]) if name in made.by]
    return found


def replace_nodes(model: ModelProto, nodes: Sequence[NodeProto]) -> None:
    """Give a graph other nodes."""
    del model.graph.node[:]
    model.graph.node.extend(nodes)


def keep_outputs(model: ModelProto, names: Collection[str]) -> None:
    """Leave out all other outputs, and what only they need."""
    kept = [value for value in model.graph.output if value.name in names]
    del model.graph.output[:]
    model.graph.output.extend(kept)
    remove_unread(model)


def remove_unread(model: ModelProto) -> None:
    """Remove the nodes and constants that no output depends on."""
    kept = ancestors(model, [value.name for value in model.graph.output])
    nodes = [node for i, node in enumerate(model.graph.node) if i in kept]
    replace_nodes(model, nodes)
    read = {name for node in nodes for name in reads(node)}
    read.update(value.name for value in model.graph.output)
    constants = [tensor for tensor in model.graph.initializer if tensor.name in read]
    del model.graph.initializer[:]
    model.graph.initializer.extend(constants)
    values = [value for value in model.graph.value_info if value.name in read]
    del model.graph.value_info[:]
    model.graph.value_info.extend(values)


def cut_out(
    model: ModelProto, inputs: Sequence[ValueInfoProto], outputs: Sequence[ValueInfoProto]
) -> ModelProto:
    """Copy the part of a graph that computes some tensors from others.

    A tensor may be both: then it is passed on, under another name. What reads only how many rows
    the graph's own input has reads it from the first of `inputs`.

    Args:
        model: The graph; it is not changed.
        inputs: Tensors that the part is given.
        outputs: Tensors that it returns, in this order.

    Raises:
        ValueError: If the outputs need another input of the graph.
    """
    given = {value.name for value in inputs}
    made, needed = made_in(model), [value.name for value in outputs]
    whole_inputs = {value.name for value in model.graph.input}
    chosen, seen, lacking = dict[int, NodeProto](), set[str](), list[str]()
    while needed:
        name = needed.pop()
        if name in seen or name in given:
            continue
        seen.add(name)
        if name in made.by:
            node = made.nodes[made.by[name]]
            if node.op_type == "Shape" and node.input[0] in whole_inputs - given:
                node = _of_rows(node, inputs[0].name)
            chosen[made.by[name]] = node
            needed += reads(node)
        elif name in whole_inputs:
            lacking.append(name)
    if lacking:
        raise ValueError(f"the part also needs {', '.join(sorted(lacking))}")
    return _assemble(model, [chosen[i] for i in sorted(chosen)], inputs, outputs)


def _of_rows(node: NodeProto, source: str) -> NodeProto:
    """Return a Shape node that reads another tensor with as many rows."""
    copy = NodeProto()
    copy.CopyFrom(node)
    copy.input[0] = source
    return copy


def _assemble(
    model: ModelProto,
    nodes: Sequence[NodeProto],
    inputs: Sequence[ValueInfoProto],
    outputs: Sequence[ValueInfoProto],
) -> ModelProto:
    given = {value.name for value in inputs}
    passed_on, ends = list[NodeProto](), list[ValueInfoProto]()
    for value in outputs:
        end = ValueInfoProto()
        end.CopyFrom(value)
        if value.name in given:
            end.name = f"{value.name}_passed_on"
            passed_on.append(
                helper.make_node("Identity", [value.name], [end.name], name=f"{end.name}_node")
            )
        ends.append(end)
    part = ModelProto()
    part.CopyFrom(model)
    replace_nodes(part, [*nodes, *passed_on])
    for field, values in ((part.graph.input, inputs), (part.graph.output, ends)):
        del field[:]
        field.extend(values)
    del part.graph.value_info[:]
    remove_unread(part)
    return part
