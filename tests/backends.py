"""What tests do with any backend."""

from models.backend import HeadOutput, StageBackend, State


def answers(backend: StageBackend, state: State) -> list[HeadOutput]:
    """Run all stages, and return the output of every exit."""
    found = []
    for exit in range(backend.num_exits):
        state = backend.run_stage(exit, state)
        found.append(backend.run_head(exit, state))
    return found
