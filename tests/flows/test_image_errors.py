"""What is one image's failure and what ends a run, by what goes wrong with images one after the other."""

from __future__ import annotations

import pytest
import torch

from catalog.store import StoreError
from flows.datasets.contract import BrokenImageError
from flows.image_errors import ALIKE, DeviceLostError, ImageErrors, RunError
from flows.time_limit import TookTooLongError
from flows.transient import is_transient
from pipeline.errors import InputError

GPU = torch.device("cuda:0")


def broken_for_now() -> BrokenImageError:
    error = BrokenImageError("a.png cannot be read")
    error.__cause__ = ConnectionResetError()
    return error


@pytest.mark.parametrize(
    "error", [MemoryError("big"), IndexError("1"), OSError(5, "Input/output error"), TypeError(), KeyError("a")]
)
def test_any_error_of_one_image_is_its_failure_with_the_type_in_the_reason(error: Exception) -> None:
    assert ImageErrors().reason("a", error) == f"{type(error).__name__}: {error}"


def test_images_in_a_row_that_fail_by_one_unexpected_type_end_the_run_with_an_error_that_says_so() -> None:
    errors = ImageErrors()
    for number in range(ALIKE - 1):
        errors.reason(f"{number}", TypeError(f"image {number}"))
    with pytest.raises(RunError, match=f"{ALIKE} in a row that failed alike, by TypeError: the last"):
        errors.reason("last", TypeError("the last"))


@pytest.mark.parametrize("between", ["an image that went well", "another type", "an expected type"])
def test_what_does_not_follow_each_other_is_no_row(between: str) -> None:
    errors = ImageErrors()
    for number in range(3 * ALIKE):
        errors.reason(f"{number}", TypeError())
        if number % (ALIKE - 1) == ALIKE - 2:
            if between == "an image that went well":
                errors.none()
            else:
                errors.reason("other", IndexError() if between == "another type" else ValueError())


def test_one_image_that_fails_again_and_again_is_one() -> None:
    errors = ImageErrors()
    for _ in range(3 * ALIKE):
        errors.reason("a", MemoryError())


@pytest.mark.parametrize(
    "error", [InputError("a", 1, "2"), RuntimeError("out of memory"), ValueError(), TookTooLongError(1)]
)
def test_what_images_fail_of_may_happen_to_all_of_them(error: Exception) -> None:
    errors = ImageErrors()
    assert len({errors.reason(f"{number}", error) for number in range(4 * ALIKE)}) == 1


def test_what_may_pass_is_no_images_failure_and_is_known_to_pass() -> None:
    for error in (StoreError("store", "busy", "an answer"), ConnectionResetError(), TimeoutError()):
        with pytest.raises((StoreError, RunError)) as raised:
            ImageErrors().reason("a", error)
        assert is_transient(raised.value)


def test_an_image_out_of_reach_fails_alone_and_many_in_a_row_end_the_run() -> None:
    errors = ImageErrors()
    for number in range(ALIKE - 1):
        assert "cannot be read" in errors.reason(f"{number}", broken_for_now())
    with pytest.raises(RunError):
        errors.reason("last", broken_for_now())


def test_after_an_error_that_leaves_the_gpu_dead_nothing_is_recorded_as_failed(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[object] = []

    def dead(device: object) -> None:
        asked.append(device)
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    monkeypatch.setattr(torch.cuda, "synchronize", dead)
    with pytest.raises(DeviceLostError, match="cuda:0, which has stopped working"):
        ImageErrors(GPU).reason("a", RuntimeError("CUDA error"))
    assert asked == [GPU]
    for harmless in (ImageErrors(torch.device("cpu")), ImageErrors()):
        assert harmless.reason("a", RuntimeError("out of memory")) == "RuntimeError: out of memory"
    assert asked == [GPU]


def test_a_gpu_that_still_works_was_only_too_small_for_one_image(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: None)
    assert ImageErrors(GPU).reason("a", RuntimeError("out of memory")) == "RuntimeError: out of memory"
