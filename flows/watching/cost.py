"""What a direction costs, and in words."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict

from flows.watching.live import spelt
from flows.watching.snapshots import Snapshot


class Cost(BaseModel):
    """What a direction took on average, of those that the run added; None where it added none or nobody counted.

    `seconds` of one worker; `products` with the Jacobian; `passes` of the network; `bytes` as stored.
    """

    model_config = ConfigDict(frozen=True, allow_inf_nan=False)

    seconds: float | None = None
    products: float | None = None
    passes: float | None = None
    bytes: float | None = None

    @classmethod
    def of(cls, run: Snapshot) -> Cost:
        """From the totals of a run."""
        if not run.directions:
            return cls()
        totals = {
            "seconds": run.worker_seconds,
            "products": float(sum(run.products.values())),
            "passes": float(run.passes),
            "bytes": float(run.bytes),
        }
        return cls(**{name: total / run.directions for name, total in totals.items() if total})


def cost_words(cost: Cost) -> str:
    """The cost of a direction in words; empty where nothing is known."""
    known = (
        (cost.seconds, lambda v: f"{v:.3g} s" if v < 60 else spelt(v)),
        (cost.products, lambda v: f"{v:,.3g} Jacobian products"),
        (cost.passes, lambda v: f"{v:,.3g} network passes"),
        (cost.bytes, lambda v: f"{v / 1e3:,.3g} kB"),
    )
    return ", ".join(words(value) for value, words in known if value is not None)
