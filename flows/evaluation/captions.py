"""Captions of what edits are to change: under CLIP for trained and guided rivals where no reader of attributes tells
them, and as prompts for methods of models that take text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import torch

from pipeline.errors import InputError
from pipeline.methods.clip_guidance import ClipGuidance
from pipeline.methods.contract import About, Reader
from pipeline.methods.guidance import Goal
from pipeline.models.contract import Denoiser
from pipeline.models.prompted import PromptedDenoiser


@dataclass(frozen=True)
class Captions:
    """`folder` of a CLIPModel of transformers, and what each region's edit is to change, in words; prompts need no
    CLIP."""

    folder: str | None = None
    goals: tuple[Goal, ...] = ()

    def check(self, denoiser: Denoiser) -> None:
        """Raises InputError for captions that no method could be told: without CLIP, of a model that takes no text."""
        if self.goals and self.folder is None and not isinstance(denoiser, PromptedDenoiser):
            raise InputError(
                "--clip, --caption", "one without the other, and a model that takes no text",
                "the folder of a CLIPModel, and what its captions are",
            )  # fmt: skip

    def told(self, about: About) -> Captions:
        """What of them a method is told; nothing of any other method depends on them."""
        if about.supervision == "prompts":
            return replace(self, folder=None)
        return NO_CAPTIONS if about.supervision == "none" or self.folder is None else self

    def reader(self, device: torch.device | str) -> Reader | None:
        """CLIP as a classifier with a reading for each goal; None without captions."""
        return None if self.folder is None else _loaded(self.folder, str(device)).reader(self.goals)

    def evidence(self) -> dict[str, object]:
        """What figures depend on: the files of CLIP; nothing without captions."""
        if self.folder is None:
            return {}
        files = _loaded(self.folder, "cpu").origin.files
        return {"clip_files": {name: record.sha256 for name, record in sorted(files.items())}}


NO_CAPTIONS = Captions()


@cache
def _loaded(folder: str, device: str) -> ClipGuidance:
    return ClipGuidance.load(folder, device)


def captions_of(folder: Path | None, given: Sequence[str], regions: Sequence[str]) -> Captions:
    """Captions as users write them, "REGION: before -> after".

    Raises:
        InputError: CLIP without captions, another form, or a region that the recipe lacks. (Captions without CLIP:
            `Captions.check`, which knows the model.)
    """
    if folder is None and not given:
        return NO_CAPTIONS
    if not given:
        raise InputError(
            "--clip, --caption", "one without the other", "the folder of a CLIPModel, and what its captions are",
        )  # fmt: skip
    goals: list[Goal] = []
    for text in given:
        region, _, words = text.partition(":")
        source, arrow, target = (part.strip() for part in words.partition("->"))
        if not arrow or not source or not target or region.strip() not in regions:
            expected = f"REGION: before -> after, with one of {', '.join(regions)}"
            raise InputError("--caption", text[:120], expected)
        name = target.replace("/", " ")
        goals.append(Goal(region.strip(), name, index=len(goals), source=source, target=target))
    return Captions(None if folder is None else str(folder), tuple(goals))
