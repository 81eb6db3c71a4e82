"""When runs begin: cron expressions and time zones, checked before anything is made of them."""

from __future__ import annotations

from prefect.client.schemas.schedules import CronSchedule
from pydantic import ValidationError

from pipeline.errors import InputError

EXAMPLE = "0 3 * * *"


def cron_schedule(cron: str, timezone: str | None = None) -> CronSchedule:
    """The schedule of a cron expression: minute, hour, day of month, month, day of week, and, where there is a sixth
    field, second. `timezone` such as Europe/Berlin, UTC where left out.

    Raises:
        InputError: one of them is none; the field and an example are named.
    """
    try:
        return CronSchedule(cron=cron, timezone=timezone or "UTC")
    except ValidationError as error:
        field = str(error.errors()[0]["loc"][0])
    if field == "timezone":
        raise InputError("--timezone", repr(timezone)[:80], "a time zone by name, such as Europe/Berlin or UTC")
    raise InputError(
        "--cron", repr(cron)[:80], "minute, hour, day of month, month and day of week",
        f'Such as "{EXAMPLE}", every night at three, or "*/30 * * * *", every half hour',
    )  # fmt: skip
