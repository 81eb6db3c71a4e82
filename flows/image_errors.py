"""Which errors are one image's own, to be recorded as its failure, and which end a run."""

from __future__ import annotations

import torch

from catalog.secrecy import without_secrets
from flows.datasets.contract import BrokenImageError
from flows.transient import is_transient
from pipeline.errors import RhumbError

EXPECTED = (RhumbError, RuntimeError, ArithmeticError, ValueError)  # of single images, however many they are
ALIKE = 5  # images in a row that fail by one unexpected type: then it is none of theirs


class RunError(RhumbError, RuntimeError):
    """What is wrong with no single image, and would make all that follow fail."""


class DeviceLostError(RunError):
    """The GPU answers no more: nothing can be computed in this process."""


class ImageErrors:
    """Judges what goes wrong with one image after the other. `device`: where they are computed, None for nowhere."""

    def __init__(self, device: torch.device | None = None) -> None:
        self._device = device
        self._kind: type[Exception] | None = None  # the unexpected type by which the last images failed,
        self._alike: set[str] = set()  # and which those are

    def none(self) -> None:
        """An image went well."""
        self._kind = None

    def reason(self, image: str, error: Exception) -> str:
        """Why an image, by its key or id, failed: for its record. A broken image has, even where its source was only
        out of reach.

        Raises RunError: the error may pass, and trying again did not help; the GPU is gone; or too many images in a row
        failed alike. Raises the error itself where it may pass and is clear.
        """
        said = without_secrets(f"{type(error).__name__}: {error}")
        passing = is_transient(error)
        if isinstance(error, RunError) or (passing and isinstance(error, RhumbError)):
            raise error
        if passing and not isinstance(error, BrokenImageError):
            raise RunError("images", said, "an answer", "Run it again: what was mined is kept") from error
        if isinstance(error, RuntimeError) and not self._device_works():
            again = "Run it again: what was mined is kept"
            raise DeviceLostError("device", f"{self._device}, which has stopped working ({said})", "a GPU", again)
        if isinstance(error, EXPECTED):
            self.none()
            return said
        self._alike = {*self._alike, image} if type(error) is self._kind else {image}
        self._kind = type(error)
        if len(self._alike) >= ALIKE:
            raise RunError(
                "images", f"{ALIKE} in a row that failed alike, by {said}", "failures that are the images' own",
                "Mend what is wrong and run it again: what was mined is kept",
            ) from error  # fmt: skip
        return said

    def _device_works(self) -> bool:
        """Whether the GPU still answers: after some errors every call fails, until the process ends."""
        if self._device is None or self._device.type != "cuda":
            return True
        try:
            torch.cuda.synchronize(self._device)
        except RuntimeError:
            return False
        return True
