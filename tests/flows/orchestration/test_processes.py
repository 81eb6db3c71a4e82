"""A process is known to be alive, dead, or out of sight; a later one of the same number is another."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace

import pytest

from catalog.lease import born
from flows.orchestration.processes import Process

THIS = Process.this()


def test_the_calling_process_lives_and_survives_the_way_through_labels() -> None:
    assert THIS.alive() is True
    assert Process.of_labels(THIS.labels()) == THIS


def test_a_killed_process_is_dead_before_and_after_it_is_buried() -> None:
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    known = replace(THIS, pid=child.pid, started=int(born(child.pid) or 0))
    assert known.alive() is True
    child.kill()
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)  # dead, and not buried
    assert known.alive() is False
    child.communicate()
    assert known.alive() is False


@pytest.mark.parametrize("change", [{"started": THIS.started + 1}, {"boot": "another"}, {"pid": 2**22 + 1}])
def test_a_process_of_the_same_number_with_another_start_is_not_the_same(change: dict[str, object]) -> None:
    assert replace(THIS, **change).alive() is False  # type: ignore[arg-type]


def test_a_process_of_another_machine_is_out_of_sight() -> None:
    assert replace(THIS, host="elsewhere").alive() is None


@pytest.mark.parametrize("labels", [{}, {"rhumb.host": "a"}, {**THIS.labels(), "rhumb.pid": "x"}])
def test_labels_that_describe_no_process_are_told(labels: dict[str, object]) -> None:
    assert Process.of_labels(labels) is None
