"""How a run is executed: where, by how many, how patiently. Nothing here changes what is found."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from flows.runners import RunnerName


class RunSettings(BaseModel):
    """`runner`: in this process, in several of this machine, as tasks of Prefect, or of Dask or Ray behind it.

    `workers`: how many. Left out: as many as the cluster at `address` has; else one for each GPU of this machine, or
    for each core that its free memory has room for. "here" and "prefect" mine in this process whatever their number.
    `address` of a Dask scheduler or Ray cluster that is running; one of this machine is started where left out.
    `image_timeout`: seconds that one image may take before it counts as failed. `retries` of a task whose error may
    pass by itself.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    runner: RunnerName = "processes"
    workers: Annotated[int, Field(ge=1)] | None = None
    address: str | None = None
    image_timeout: Annotated[float, Field(gt=0.0, allow_inf_nan=False)] | None = None
    retries: Annotated[int, Field(ge=0, le=10)] = 3
