"""What calls took, and the figures made of it."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

OK = "OK"
PERCENTILES = (50.0, 95.0, 99.0)
_ROUNDING_S = 1e-9
SATURATED_SHARE = 0.85
"""A generator process that is busy for this share of the time adds waits of its own to what it measures."""


@dataclass(frozen=True, eq=False)
class Samples:
    """The calls of one process in one step."""

    latency_s: NDArray[np.float64]
    """(N,) from the intended start to the end of each call that was to start in the window, or was under way then."""
    end_s: NDArray[np.float64]
    """(N,) when each ended, from the start of the window; may lie after its end."""
    codes: tuple[str, ...]
    """N codes, ``OK`` or why the call failed."""
    window_s: float
    """How long was measured: less than planned when the run was stopped."""
    cpu_s: float
    """Seconds of processor time this process used in the window."""
    lag_s: NDArray[np.float64] = field(default_factory=lambda: np.zeros(0))
    """(N,) how much later than intended each call was made, in an open loop: the generator's own delay."""
    answers: tuple[bytes, ...] = ()
    """Some of the last answers."""
    is_open: bool = False
    """Whether calls came by themselves, and not each after the one before it."""

    @property
    def is_counted(self) -> NDArray[np.bool_]:
        """(N,) whether each was to start in the window, and not before it: those alone have a latency that counts, for
        of the others the long ones are more often met under way."""
        return np.asarray(self.end_s - self.latency_s >= -_ROUNDING_S)

    @property
    def is_ok(self) -> NDArray[np.bool_]:
        """(N,) whether each succeeded."""
        return np.array([code == OK for code in self.codes], bool)

    @property
    def num_done(self) -> float:
        """How many calls the window held that succeeded.

        In an open loop those that ended in it. In a closed loop, where somebody always waits, each call by the share of
        its time that lies in the window: leaving out what is cut off at both ends, as many calls as there are callers,
        would make the throughput of a short window too low, and the more so the more callers there are.
        """
        if self.is_open:
            return float((self.is_ok & (self.end_s > 0) & (self.end_s <= self.window_s)).sum())
        start_s = self.end_s - self.latency_s
        inside_s = np.minimum(self.end_s, self.window_s) - np.maximum(start_s, 0)
        share = np.clip(inside_s / np.maximum(self.latency_s, _ROUNDING_S), 0, 1)
        return float(share[self.is_ok].sum())


def percentile(values: NDArray[np.float64], percent: float) -> float | None:
    """Return the smallest value that at least ``percent`` of all values do not exceed; None without values.

    The nearest rank, not an interpolation: a p99 that no call ever had is nobody's latency.
    """
    if not len(values):
        return None
    rank = max(1, int(np.ceil(percent / 100 * len(values) - 1e-9)))
    return float(np.partition(values, rank - 1)[rank - 1])


def figures(parts: Sequence[Samples]) -> dict[str, Any]:
    """Return the figures of one step, measured by several processes at the same time.

    Latencies are those of calls that succeeded and were to start in the window; failures among these are counted by
    code beside them. Throughput is ``Samples.num_done`` over the window.
    """
    window_s = max(part.window_s for part in parts)
    counted = [part.is_counted for part in parts]
    latency_s = np.concatenate([part.latency_s[mine] for part, mine in zip(parts, counted, strict=True)])
    is_ok = np.concatenate([part.is_ok[mine] for part, mine in zip(parts, counted, strict=True)])
    codes = [c for part, mine in zip(parts, counted, strict=True) for c, m in zip(part.codes, mine, strict=True) if m]
    good = latency_s[is_ok]
    lag_s = np.concatenate([part.lag_s for part in parts])
    share = max((part.cpu_s / part.window_s for part in parts if part.window_s), default=0.0)
    return {
        "num_calls": len(latency_s),
        "num_ok": int(is_ok.sum()),
        "errors": dict(Counter(code for code in codes if code != OK)),
        "window_s": window_s,
        "throughput_per_s": sum(part.num_done for part in parts) / window_s if window_s else 0.0,
        "latency_s": {
            **{f"p{percent:g}": percentile(good, percent) for percent in PERCENTILES},
            "mean": float(good.mean()) if len(good) else None,
            "max": float(good.max()) if len(good) else None,
        },
        "generator": {
            "num_processes": len(parts),
            "cpu_s": sum(part.cpu_s for part in parts),
            "busiest_share": share,
            "is_saturated": share > SATURATED_SHARE,
            "lag_p99_s": percentile(lag_s, 99.0),
        },
    }
