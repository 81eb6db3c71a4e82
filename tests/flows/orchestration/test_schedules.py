"""Cron expressions and time zones are checked before anything is made of them."""

from __future__ import annotations

import pytest

from flows.orchestration.schedules import cron_schedule
from pipeline.errors import InputError


@pytest.mark.parametrize("cron", ["0 3 * * *", "*/30 * * * *", "@daily", "0 3 * * mon-fri", "* * * * * */5"])
def test_a_cron_expression_is_taken_as_it_is_in_utc(cron: str) -> None:
    found = cron_schedule(cron)
    assert (found.cron, found.timezone) == (cron, "UTC")


@pytest.mark.parametrize("cron", ["", "daily", "0 3 * *", "61 * * * *", "* * * * * * * *", "H 3 * * *"])
def test_what_is_no_cron_expression_is_refused_with_its_field_and_an_example(cron: str) -> None:
    with pytest.raises(InputError, match='--cron: found .*"0 3 \\* \\* \\*"'):
        cron_schedule(cron)


def test_a_time_zone_is_kept_and_one_that_is_none_is_refused() -> None:
    assert cron_schedule("0 3 * * *", "Europe/Berlin").timezone == "Europe/Berlin"
    with pytest.raises(InputError, match="--timezone: found 'Mars/Olympus'"):
        cron_schedule("0 3 * * *", "Mars/Olympus")
