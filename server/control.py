"""Control: what operators ask and change, the same whichever front they reach."""

from collections.abc import Awaitable, Callable, Iterator

from starlette.requests import Request

from server.choice import NONE_LOADED, ModelTable
from server.metrics import Metrics
from server.model import ModelControl
from server.quality.feedback import LoggedPrediction, PredictionLog
from server.repository import Repository

DRAINING = "the server is draining; try another replica"


class Control:
    """What the operators' routes share; at `app.state.control` while the server runs.

    Args:
        metrics: The server's.
        collect: As below.
        book: As below; None: there is nothing to book without waiting.

    Attributes:
        models: Those that are served.
        answers: Remembers answers, so that true labels can come for them.
        starting: Whether no front takes requests yet.
        draining: Whether the server has begun to stop.
        repository: Loads and unloads models; set before the server takes requests.
        collect: Returns once everything that fronts and engines have done is booked.
        book: Books what is known without waiting for another process.
    """

    repository: Repository

    def __init__(
        self,
        metrics: Metrics,
        collect: Callable[[], Awaitable[None]],
        book: Callable[[], None] | None = None,
    ) -> None:
        self.metrics = metrics
        self.collect = collect
        self.book = book or (lambda: None)
        self.models = ModelTable[ModelControl]()
        self.answers = PredictionLog()
        self.starting = self.draining = False

    async def find_prediction(self, request_id: str, owner: int) -> LoggedPrediction | None:
        """Return the answer an owner got under a request's id; None if none or it is too old."""
        await self.collect()  # also the answers of a moment ago
        return self.answers.find(request_id, owner)

    def refresh(self) -> None:
        """Forget what is too old, and set the gauges."""
        for model in self.models.values():
            model.refresh()

    @property
    def not_ready_reason(self) -> str | None:
        """Why the server takes no requests; None if it does."""
        if self.starting:
            return "the server is starting; try again"
        fault = next(self._faults(), None) or (None if len(self.models) else NONE_LOADED)
        return fault or (DRAINING if self.draining else None)

    @property
    def unhealthy_reason(self) -> str | None:
        """Why the server should be restarted; None while it works."""
        stalls = (model.engines.stall for model in self.models.values())
        return next((stall for stall in stalls if stall is not None), None)

    def _faults(self) -> Iterator[str]:
        for model in self.models.values():
            if (fault := model.engines.fault) is not None:
                yield fault


def control_of(request: Request) -> Control:
    """Return the control of the running server."""
    control: Control = request.app.state.control
    return control
