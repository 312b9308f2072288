"""What stands in for an executor where none can work."""

from vplab.training.errors import TrainerMissing
from vplab.training.ports import WorkReports
from vplab.training.values import Claim, TuningResult


class AbsentExecutor:
    """Implements Executor on a replica that works on no jobs."""

    num_slots = 0

    def __init__(self, missing: str | None) -> None:
        """missing: the library that is not installed, so that orders are refused too; None takes orders for others."""
        self._missing = missing

    def check_available(self) -> None:
        """Refuse orders that nobody here could carry out."""
        if self._missing is not None:
            raise TrainerMissing(self._missing)

    async def run(self, claim: Claim, reports: WorkReports) -> TuningResult:
        """Never called, since there is no slot."""
        raise TrainerMissing(self._missing or "a trainer")

    async def warm_up(self, segmenter: str) -> None:
        """Nothing to warm up."""

    async def close(self) -> None:
        """Nothing to close."""
