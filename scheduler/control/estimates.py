"""How the present differs from calibration: another host, other inputs, a queue."""

SMALLEST_RATIO = 1e-6
MOST_QUEUEING = 20.0  # of waiting, for each millisecond of the mean cost
SHORTEST_MEMORY = 20.0  # samples


class CostEstimate:
    """Running estimates that turn the frontier's milliseconds into those of now, and back.

    Args:
        cost_ms: What a sample costs by the frontier, before any has been seen.

    Attributes:
        ratio: Measured to predicted time of stages.
        overhead_ms: What no exit of a sample changes for itself: waiting, decoding.
        waiting_ms: The part of it that was waiting for others.
        shift_ms: By how much exits cost more, by the frontier, than it expects at the parameter in
            force: inputs leave elsewhere than those of calibration.
        cost_ms: Of recent samples, by the frontier.
    """

    def __init__(self, cost_ms: float) -> None:
        self.slowdown = 1.0
        self.overhead_ms = 0.0
        self.waiting_ms = 0.0
        self.exit_bias_ms = 0.0
        self.cost_ms = cost_ms

    def update(
        self,
        cost_ms: float,
        compute_ms: float,
        overhead_ms: float,
        waiting_ms: float,
        memory: float,
    ) -> None:
        """Take in what a sample took, beside what its exit costs by the frontier.

        Args:
            cost_ms: By the frontier.
            compute_ms: Measured.
            overhead_ms: Measured.
            waiting_ms: Of the overhead.
            memory: Of the estimates, in samples.
        """
        step = 1 / max(memory, SHORTEST_MEMORY)
        self.slowdown = max(
            self.slowdown + step * (compute_ms / cost_ms - self.slowdown), SMALLEST_RATIO
        )
        self.cost_ms += step * (cost_ms - self.cost_ms)
        self.overhead_ms += step * (overhead_ms - self.overhead_ms)
        self.waiting_ms += step * (waiting_ms - self.waiting_ms)

    def learn_shift(self, cost_ms: float, expected_ms: float, memory: float) -> None:
        """Take in what a sample's exit costs, beside what the frontier expects on average."""
        step = 1 / max(memory, SHORTEST_MEMORY)
        self.exit_bias_ms += step * (cost_ms - expected_ms - self.exit_bias_ms)

    def latency_ms(self, cost_ms: float) -> float:
        """The latency to expect if samples cost so much on average.

        Where they wait for each other, cheaper ones wait less, too.
        """
        waiting_ms = self.waiting_ms + self._queueing * (cost_ms - self.cost_ms)
        fixed_ms = self.overhead_ms - self.waiting_ms
        return cost_ms * self.slowdown + fixed_ms + max(waiting_ms, 0.0)

    def cost_at(self, latency_ms: float) -> float:
        """The mean cost at which samples take so long, as long as some wait."""
        missing_ms = latency_ms - self.cost_ms * self.slowdown - self.overhead_ms
        return self.cost_ms + missing_ms / (self.slowdown + self._queueing)

    def cost_of_one(self, latency_ms: float) -> float:
        """The cost at which a single sample takes so long: it does not move the queue."""
        return (latency_ms - self.overhead_ms) / self.slowdown

    @property
    def _queueing(self) -> float:
        """How much waiting moves with the mean cost.

        In a queue of utilisation rho a wait w is about c rho / (1 - rho), so that it rises by
        (w / c) (1 + 1 / (1 - rho)) with c, where 1 / (1 - rho) = 1 + w / c.
        """
        share = self.waiting_ms / (self.slowdown * self.cost_ms)
        return min(share * (2 + share), MOST_QUEUEING) * self.slowdown
