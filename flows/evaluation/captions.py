"""Captions under CLIP, which tell trained and guided rivals an attribute where no reader of attributes does."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch

from pipeline.errors import InputError
from pipeline.methods.clip_guidance import ClipGuidance
from pipeline.methods.contract import Reader
from pipeline.methods.guidance import Goal


@dataclass(frozen=True)
class Captions:
    """`folder` of a CLIPModel of transformers, and what each region's edit is to change, in words."""

    folder: str | None = None
    goals: tuple[Goal, ...] = ()

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
        InputError: captions without CLIP or the other way round, another form, or a region that the recipe lacks.
    """
    if folder is None and not given:
        return NO_CAPTIONS
    if folder is None or not given:
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
    return Captions(str(folder), tuple(goals))
