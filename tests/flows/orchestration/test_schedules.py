"""Cron expressions and time zones are checked before anything is made of them."""

from __future__ import annotations

import pytest

from flows.orchestration.schedules import cron_schedule
from pipeline.errors import InputError

SOME = ["0 3 * * *", "*/30 * * * *", "@daily", "0 3 * * mon-fri", "* * * * * */5", "0 0 29 2 *"]


@pytest.mark.parametrize("cron", SOME)
def test_a_cron_expression_is_taken_as_it_is_in_utc(cron: str) -> None:
    found = cron_schedule(cron)
    assert (found.cron, found.timezone) == (cron, "UTC")


NONE = ["", "daily", "@never", "0 3 * *", "61 * * * *", "H 3 * * *", "* * * * * * * *", "0 3 * * * * 2099"]
NEVER = ["0 0 31 2 *", "0 0 30 2 *", "0 0 31 4,6,9,11 *"]
TOO_LONG = ["*/90 * * * *", "0 */30 * * *", "0 0 * */13 *", "5-50/70 * * * *"]


@pytest.mark.parametrize("cron", NONE + NEVER + TOO_LONG)
def test_what_is_no_cron_expression_is_refused_with_its_field_and_an_example(cron: str) -> None:
    with pytest.raises(InputError, match='--cron: found .*"0 3 \\* \\* \\*"'):
        cron_schedule(cron)


@pytest.mark.parametrize("cron", NEVER)
def test_a_date_that_never_comes_is_told(cron: str) -> None:
    with pytest.raises(InputError, match="never comes"):
        cron_schedule(cron)


def test_a_time_zone_is_kept_and_one_that_is_none_is_refused() -> None:
    assert cron_schedule("0 3 * * *", "Europe/Berlin").timezone == "Europe/Berlin"
    with pytest.raises(InputError, match="--timezone: found 'Mars/Olympus'"):
        cron_schedule("0 3 * * *", "Mars/Olympus")
