"""Run a cascade: several networks, one after the other, as the stages and exits of one."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from models.backend import HeadOutput, Part, StageBackend, State, gather_arrays
from models.bundle import TextInput, Variant

OpenGraphs = Callable[[Sequence[Path], Sequence[Path]], StageBackend]


class Underway(NamedTuple):
    """The state of a batch between the stages of a cascade.

    Attributes:
        state: That of the network the batch is in.
        unread: The input of every network that comes after it, in their order.
    """

    state: State
    unread: tuple[State, ...]


class CascadeBackend:
    """Runs networks in turn; the first stage of each reads an input of the request.

    The input of the cascade holds the arrays of all inputs. Those that a later network reads stay
    on the host until its first stage.

    Args:
        members: One backend for each network.
        reads: The arrays of the input that each network reads.
    """

    def __init__(self, members: Sequence[StageBackend], reads: Sequence[slice]) -> None:
        self._members = members
        self._reads = reads
        self._places = [
            (member, exit)
            for member, backend in enumerate(members)
            for exit in range(backend.num_exits)
        ]

    @property
    def num_exits(self) -> int:
        """Number of exits of all networks, K."""
        return len(self._places)

    @property
    def device(self) -> str:
        """Name of the device, which all networks share."""
        return self._members[0].device

    def gather(self, parts: Sequence[Part]) -> State:
        """Join rows of several batches: their state, and what they have not read yet."""
        batches = [self._underway(part.state) for part in parts]
        unread = batches[0].unread
        member = len(self._members) - 1 - len(unread)
        rows = [part.rows for part in parts]
        state = self._members[member].gather(
            [Part(batch.state, each) for batch, each in zip(batches, rows, strict=True)]
        )
        inputs = [
            gather_arrays(
                [Part(batch.unread[i], each) for batch, each in zip(batches, rows, strict=True)]
            )
            for i in range(len(unread))
        ]
        return Underway(state, tuple(inputs))

    def run_stage(self, stage: int, state: State) -> State:
        """Run a stage of its network, on an input of the request if it is the network's first."""
        member, local = self._places[stage]
        inner, unread = self._underway(state)
        backend = self._members[member]
        if local == 0 and member > 0:
            own, *rest = unread
            inner, unread = backend.gather([Part(own, range(len(own[0])))]), tuple(rest)
        return Underway(backend.run_stage(local, inner), unread)

    def run_head(self, exit: int, state: State) -> HeadOutput:
        """Run a head of its network."""
        member, local = self._places[exit]
        return self._members[member].run_head(local, self._underway(state).state)

    def synchronize(self) -> None:
        """Wait for all networks."""
        for backend in self._members:
            backend.synchronize()

    def _underway(self, state: State) -> Underway:
        """Return a state, or the input of the first stage as one."""
        if isinstance(state, Underway):
            return state
        first, *others = [tuple(state[arrays]) for arrays in self._reads]
        return Underway(first, tuple(others))


def open_cascade(variant: Variant, open_graphs: OpenGraphs) -> StageBackend:
    """Open the network of a variant, or its cascade of networks.

    Args:
        variant: One precision of a bundle.
        open_graphs: Loads the stages and heads of one network.
    """
    stages, heads = variant.stage_files, variant.head_files
    manifest = variant.bundle.manifest
    if not manifest.cascade:
        return open_graphs(stages, heads)
    arrays: dict[str, slice] = {}
    end = 0
    for name, described in manifest.inputs.items():
        start, end = end, end + (2 if isinstance(described, TextInput) else 1)
        arrays[name] = slice(start, end)
    starts = [member.first_stage for member in manifest.cascade]
    ends = [*starts[1:], manifest.num_exits]
    members = [open_graphs(stages[a:b], heads[a:b]) for a, b in zip(starts, ends, strict=True)]
    return CascadeBackend(members, [arrays[member.input] for member in manifest.cascade])
