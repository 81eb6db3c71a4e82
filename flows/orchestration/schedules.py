"""When runs begin: cron expressions and time zones, checked before anything is made of them."""

from __future__ import annotations

import re
from datetime import UTC, datetime

from prefect.client.schemas.schedules import CronSchedule
from pydantic import ValidationError

from pipeline.errors import InputError

EXAMPLE = "0 3 * * *"


_LONGEST = {"minute": 59, "hour": 23, "day of month": 31, "month": 12, "day of week": 7, "second": 59}
"""The fields of an expression in their order, with the longest step that is one in each."""


def cron_schedule(cron: str, timezone: str | None = None) -> CronSchedule:
    """The schedule of a cron expression: minute, hour, day of month, month, day of week, and, where there is a sixth
    field, second; or @hourly, @daily and the like. `timezone` such as Europe/Berlin, UTC where left out.

    Raises:
        InputError: one of them is none, or no such date ever comes; the field and an example are named.
    """
    try:
        found = CronSchedule(cron=cron, timezone=timezone or "UTC")
    except ValidationError as error:
        if str(error.errors()[0]["loc"][0]) == "timezone":
            expected = "a time zone by name, such as Europe/Berlin or UTC"
            raise InputError("--timezone", repr(timezone)[:80], expected) from error
        raise _no_cron(cron) from error
    fields = cron.split()
    if not cron.startswith("@") and not 5 <= len(fields) <= 6:
        raise _no_cron(cron)
    for text, (field, longest) in zip(fields, _LONGEST.items(), strict=False):
        if any(int(step) > longest for step in re.findall(r"/(\d+)", text)):
            raise _no_cron(cron, f" (in the {field}, no step is longer than {longest})")
    if not _comes(cron):
        raise _no_cron(cron, ", a date that never comes")
    return found


def _comes(cron: str) -> bool:
    """Whether there is any date, from now on, that an expression means."""
    from prefect._vendor.croniter.croniter import CroniterBadDateError, croniter  # by which the server finds dates

    try:
        croniter(cron, datetime.now(UTC)).get_next(datetime)
    except CroniterBadDateError:
        return False
    return True


def _no_cron(cron: str, why: str = "") -> InputError:
    return InputError(
        "--cron", repr(cron)[:80] + why, "minute, hour, day of month, month and day of week",
        f'Such as "{EXAMPLE}", every night at three, or "*/30 * * * *", every half hour',
    )  # fmt: skip
