"""Online corrections to the calibrated cost model: host speed, input mix, queueing."""

SMALLEST_RATIO = 1e-6
MOST_QUEUEING = 20.0  # ms of waiting per ms of mean cost
SHORTEST_MEMORY = 20.0  # samples
LEARNED_MEMORIES = 3.0  # until an estimate no longer shows where it began
CALM_WAITING = 0.1  # waiting, as a share of the stages' time, up to which a server is calm


class CostEstimate:
    """Running estimates that convert the frontier's milliseconds into present ones, and back.

    Args:
        cost_ms: The frontier's cost of a sample, used until the first sample completes.

    Attributes:
        slowdown: Measured time of stages, relative to the predicted time.
        overhead_ms: The part of a latency that the exit does not change: waiting, decoding.
        waiting_ms: The part of the overhead that was waiting for other samples.
        exit_bias_ms: The difference between the frontier's cost of the exits taken and its
            expectation at the current parameter; not 0 if inputs differ from calibration.
        cost_ms: The frontier's cost of recent samples.
    """

    def __init__(self, cost_ms: float) -> None:
        self.slowdown = 1.0
        self.overhead_ms = 0.0
        self.waiting_ms = 0.0
        self.exit_bias_ms = 0.0
        self.cost_ms = cost_ms
        self._updates = 0
        self._calm_ms: float | None = None  # the least overhead of a calm server

    def update(
        self,
        cost_ms: float,
        compute_ms: float,
        overhead_ms: float,
        waiting_ms: float,
        memory: float,
    ) -> None:
        """Learn from the times of one sample.

        Args:
            cost_ms: The frontier's cost of its exit.
            compute_ms: Measured time of its stages.
            overhead_ms: Measured overhead.
            waiting_ms: The part of the overhead that was waiting.
            memory: Memory of the estimates, in samples.
        """
        step = 1 / max(memory, SHORTEST_MEMORY)
        self.slowdown = max(
            self.slowdown + step * (compute_ms / cost_ms - self.slowdown), SMALLEST_RATIO
        )
        self.cost_ms += step * (cost_ms - self.cost_ms)
        self.overhead_ms += step * (overhead_ms - self.overhead_ms)
        self.waiting_ms += step * (waiting_ms - self.waiting_ms)
        self._updates += 1
        calm = self.waiting_ms <= CALM_WAITING * self.slowdown * self.cost_ms
        if calm and self._updates * step >= LEARNED_MEMORIES:
            self._calm_ms = min(self._fixed_ms, self._calm_ms or self._fixed_ms)

    def fade(self, keep: float) -> None:
        """Fall back towards what the server measured when it started.

        The overhead was not measured then. It falls back to the least that it has been since while
        the server was calm.

        Args:
            keep: Share of the difference that is left, from 0 to 1.
        """
        self.slowdown = 1 + keep * (self.slowdown - 1)
        self.exit_bias_ms *= keep
        calm_ms = min(self._calm_ms or 0.0, self._fixed_ms)
        fixed_ms = calm_ms + keep * (self._fixed_ms - calm_ms)
        self.waiting_ms *= keep
        self.overhead_ms = self.waiting_ms + fixed_ms

    def learn_shift(self, cost_ms: float, expected_ms: float, memory: float) -> None:
        """Learn from the cost of a sample's exit and the frontier's expected cost."""
        step = 1 / max(memory, SHORTEST_MEMORY)
        self.exit_bias_ms += step * (cost_ms - expected_ms - self.exit_bias_ms)

    def latency_ms(self, cost_ms: float) -> float:
        """Return the expected latency at a mean cost.

        If samples wait for each other, a lower mean cost also shortens the wait.
        """
        waiting_ms = self.waiting_ms + self._queueing * (cost_ms - self.cost_ms)
        return cost_ms * self.slowdown + self._fixed_ms + max(waiting_ms, 0.0)

    def cost_at(self, latency_ms: float) -> float:
        """Return the mean cost that leads to a mean latency, as long as some samples wait."""
        missing_ms = latency_ms - self.cost_ms * self.slowdown - self.overhead_ms
        return self.cost_ms + missing_ms / (self.slowdown + self._queueing)

    def cost_of_one(self, latency_ms: float) -> float:
        """Return the cost that leads to a latency of one sample, at the present queue."""
        return (latency_ms - self.overhead_ms) / self.slowdown

    @property
    def _fixed_ms(self) -> float:
        """The part of the overhead that is there on an idle server too."""
        return self.overhead_ms - self.waiting_ms

    @property
    def _queueing(self) -> float:
        """The slope of the waiting time over the mean cost.

        In a queue with utilisation rho the wait w is about c rho / (1 - rho). Its slope over c is
        (w / c) (1 + 1 / (1 - rho)), where 1 / (1 - rho) = 1 + w / c.
        """
        share = self.waiting_ms / (self.slowdown * self.cost_ms)
        return min(share * (2 + share), MOST_QUEUEING) * self.slowdown
