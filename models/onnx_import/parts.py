"""Cut a graph into stages and heads without computing anything twice but masks and shapes."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import onnx
from onnx import ModelProto, ValueInfoProto, helper

from models.backend import State
from models.onnx_import.graph import ancestors, cut_out, made_in, reads, remove_unread
from models.onnx_import.inputs import IMAGE, MASK, ROWS
from models.onnx_import.separators import is_light, last_separator, light_tensors
from models.runtime.onnx_backend import CPU, open_graph


class CannotCut(ValueError):
    """A graph cannot be cut into stages; the message says why."""


class Parts(NamedTuple):
    """A graph in K stages, and the parts that make the exits' answers of their states.

    Attributes:
        stages: Each makes the state after it of the state before it (the input for the first).
        tails: Makes an exit's answer, one tensor, of the state after its stage; None where the
            graph has no exit.
        states: Names of the tensors of each state in the graph.
    """

    stages: list[ModelProto]
    tails: list[ModelProto | None]
    states: list[list[str]]


@dataclass(frozen=True)
class Whole:
    """A graph that reads what a server makes, and two inputs of it.

    Attributes:
        model: The graph, with as many rows as it is given.
        small: An input of two rows.
        large: An input of three rows; texts have another length, unless the graph takes only one.
    """

    model: ModelProto
    small: State
    large: State

    def described(self, names: Sequence[str]) -> dict[str, ValueInfoProto]:
        """Describe tensors by running the graph on both inputs.

        Raises:
            CannotCut: If the first axis of one is not the rows.
        """
        inner = [name for name in dict.fromkeys(names) if name not in self._inputs]
        few, many = (self.run(inner, state) for state in (self.small, self.large))
        found = {value.name: value for value in self.model.graph.input}
        for name, a, b in zip(inner, few, many, strict=True):
            found[name] = describe(name, a, b)
        return found

    @property
    def _inputs(self) -> list[str]:
        return [value.name for value in self.model.graph.input]

    def run(self, names: Sequence[str], state: State) -> list[np.ndarray]:
        """Compute any tensors of the graph."""
        probe = ModelProto()
        probe.CopyFrom(self.model)
        del probe.graph.output[:]
        probe.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
        remove_unread(probe)
        given = dict(zip(self._inputs, state, strict=True))
        graph = open_graph(probe.SerializeToString(), CPU)
        return list(graph.session.run(list(names), {name: given[name] for name in graph.inputs}))


def describe(name: str, few: np.ndarray, many: np.ndarray) -> ValueInfoProto:
    """Describe a tensor by its values for two and for three rows.

    Raises:
        CannotCut: If its first axis is not the rows.
    """
    small, large = np.shape(few), np.shape(many)
    if not small or (small[0], large[0]) != (2, 3):
        raise CannotCut(
            f"the tensor {name!r} between two stages has the shape {list(small)} for 2 rows and "
            f"{list(large)} for 3, so rows cannot leave it one by one"
        )
    dims: list[int | str] = [
        a if a == b else f"{name}_{axis}"
        for axis, (a, b) in enumerate(zip(small, large, strict=True))
    ]
    kind = helper.np_dtype_to_tensor_dtype(np.asarray(few).dtype)
    return helper.make_tensor_value_info(name, kind, [ROWS, *dims[1:]])


def cut_at(whole: Whole, tensors: Sequence[str], output: str) -> Parts:
    """Cut a graph of one output at tensors that separate it.

    Args:
        whole: The graph.
        tensors: As `separators` returns them, in the graph's order; the last stage follows.
        output: The graph's output.

    Returns:
        Stages of which all but the last have no answers yet. Each state holds a text's mask.
    """
    reached = [ancestors(whole.model, [name]) for name in tensors]
    keep = [MASK] if MASK in [value.name for value in whole.model.graph.input] else []
    return _cut(whole, reached, [None] * len(tensors), output, keep)


def cut_exits(whole: Whole, outputs: Sequence[str]) -> Parts:
    """Cut a graph whose outputs are exits.

    What an exit shares with others belongs to the stages, what it alone needs is its head. Where no
    single tensor separates two stages, as in networks of several scales, several are passed on.

    Args:
        whole: The graph.
        outputs: The exits, the cheapest first; every exit needs work beyond that of the one before.
    """
    needed = [ancestors(whole.model, [name]) for name in outputs]
    reached, done = list[set[int]](), set[int]()
    for exit, nodes in enumerate(needed[:-1]):
        others = set[int]().union(*(each for k, each in enumerate(needed) if k != exit))
        done = done | (nodes & others)
        reached.append(done)
    return _cut(whole, reached, list(outputs[:-1]), outputs[-1], [])


def _cut(
    whole: Whole,
    reached: Sequence[set[int]],
    exits: Sequence[str | None],
    last: str,
    keep: Sequence[str],
) -> Parts:
    """Cut a graph after sets of nodes.

    Args:
        whole: The graph.
        reached: Nodes that the stages until each exit but the last have run.
        exits: Answers of these exits.
        last: Answer of the last exit.
        keep: Inputs that every state holds.
    """
    model, light = whole.model, light_tensors(whole.model)
    states = list[list[str]]()
    ends: list[str | None] = [*exits, last]
    for k, nodes in enumerate(reached):
        needed = [name for name in ends[k:] if name is not None]
        states.append(_state(model, nodes, needed, light, keep))
    states.append(_last_state(model, states, last, light))
    wanted = [name for state in states for name in state] + [end for end in ends if end is not None]
    described = whole.described(wanted)
    stages, tails = list[ModelProto](), list[ModelProto | None]()
    before = [value.name for value in model.graph.input]
    for k, (state, end) in enumerate(zip(states, ends, strict=True)):
        if state == before:
            raise CannotCut(f"exit {k} has no work of its own; leave it out")
        after = [described[name] for name in state]
        stages.append(cut_out(model, [described[name] for name in before], after))
        tails.append(None if end is None else cut_out(model, after, [described[end]]))
        before = state
    return Parts(stages, tails, states)


def _state(
    model: ModelProto,
    nodes: set[int],
    ends: Sequence[str],
    light: set[str],
    keep: Sequence[str],
) -> list[str]:
    """Name the tensors that are passed on after some nodes have run."""
    inputs = [value.name for value in model.graph.input]
    made = made_in(model)
    ran = {
        name for i in nodes if not is_light(made.nodes[i], light) for name in made.nodes[i].output
    }
    passed_on, seen, waiting = set(keep), set[str](), list(ends)
    while waiting:
        name = waiting.pop()
        if name in seen:
            continue
        seen.add(name)
        if name in ran or name in inputs:
            passed_on.add(name)
        elif name in made.by:
            node = made.nodes[made.by[name]]
            only_rows = node.op_type == "Shape" and node.input[0] == IMAGE
            waiting += [] if only_rows else reads(node)
    order = {name: i for i, node in enumerate(made.nodes) for name in node.output}
    heavy = sorted((name for name in passed_on if name not in inputs), key=order.__getitem__)
    return [*heavy, *(name for name in inputs if name in passed_on)]


def _last_state(
    model: ModelProto,
    states: Sequence[Sequence[str]],
    last: str,
    light: set[str],
) -> list[str]:
    """Name what the last stage returns: what the classifier's last work reads, or its answer."""
    rest = ModelProto()
    rest.CopyFrom(model)
    del rest.graph.output[:]
    rest.graph.output.extend([onnx.ValueInfoProto(name=last)])
    remove_unread(rest)
    begin = states[-1] if states else []
    end = last_separator(rest, last, light)
    if made_in(model).by.get(end) in ancestors(model, begin):
        end = last  # the last stage returns the answer itself
    return _state(model, ancestors(model, [end]), [last], light, [])
