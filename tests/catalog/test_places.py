"""Ids in sorted arrays: what was added is found, however often it joins the others, in memory that grows slowly."""

from __future__ import annotations

import hashlib
import tracemalloc

import numpy as np
import pytest

import catalog.places
from catalog.places import Known


def ids(*names: object) -> list[str]:
    return [hashlib.sha256(str(name).encode()).hexdigest()[:32] for name in names]


def known(*names: object) -> Known:
    return Known(np.array(sorted(ids(*names)), dtype="S32"))


def test_ids_that_were_added_are_known_before_and_after_they_join_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(catalog.places, "_AWAITING", 7)
    found = known(*range(10))
    for start in range(10, 60, 3):
        found.add(ids(*range(start, start + 3)))
        assert all(key in found for key in ids(*range(start + 3)))
        assert not any(key in found for key in ids(*range(start + 3, start + 20)))
    found.add(ids(*range(0, 61, 2)))  # some of them for the second time
    assert sorted(found.all()) == sorted(ids(*range(61)))


def test_with_others_they_are_known_together_also_after_more_were_added(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(catalog.places, "_AWAITING", 3)
    own = known("a")
    own.add(ids("b"))
    others = set(ids("c"))
    both = own.with_those(others)
    own.add(ids("d", "e", "f"))
    others.update(ids("g"))
    assert all(key in both for key in ids(*"abcdefg"))
    assert ids("h")[0] not in both
    assert ids("c")[0] not in own


def test_an_id_that_was_added_takes_a_few_bytes_more_than_its_32(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(catalog.places, "_AWAITING", 1000)
    found = known()
    tracemalloc.start()
    for start in range(0, 12_000, 60):
        found.add(ids(*range(start, start + 60)))
    taken = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    assert taken / 12_000 < 45
