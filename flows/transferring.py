"""Which catalogued directions will work on a picture: candidates by likeness, predicted, and the best really tried."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from catalog.lookup import Transfer, transfer_candidates
from catalog.reader import Catalog
from flows.console import say, table
from flows.edit_settings import fit_of, recipe_of
from flows.editing import (
    check_out,
    load_picture,
    mask_beside,
    model_of,
    own_mask,
    picture_shape,
    placed,
    placed_effect,
    region_mask,
)
from flows.files import write_whole
from flows.left_out import remark
from flows.pictures import png
from flows.transfer_sheet import transfer_sheet
from pipeline.editing import invert_pictures
from pipeline.errors import InputError
from pipeline.images import as_tensor
from pipeline.mined import MiningSettings
from pipeline.models.contract import Denoiser
from pipeline.transfer import Candidate, Outcome, Prediction, predict, verify

CANDIDATES = 32  # predicted by default: 1.4 s of one core for the built-in model


@dataclass(frozen=True)
class Choice:
    """One candidate, with what it would do on the picture and what an edit with it really did, where asked for.

    `score` is what orders the choices: the prediction's, or without one the likeness of `candidate`.
    """

    candidate: Transfer
    score: float
    prediction: Prediction | None = None
    outcome: Outcome | None = None


@dataclass(frozen=True)
class Cost:
    """What predicting and trying took: products of single vectors, network calls of inversion and decoding, seconds."""

    jvp: int
    inversion_steps: int
    decodes: int
    seconds: float


@dataclass(frozen=True)
class TransferDone:
    """The best choices first, at most as many as asked for, of `compared` candidates.

    `shifted`: whether directions were moved to the picture's own mask; without one they are used as mined, as `rhumb
    edit` does. `left_out` gives the reason for each candidate that could not be moved there. `remarks`: what the
    catalog was published without, and what was done instead.
    """

    region: str
    compared: int
    shifted: bool
    choices: list[Choice]
    left_out: dict[str, str] = field(default_factory=dict)
    cost: Cost | None = None
    picture: str | None = None
    remarks: tuple[str, ...] = ()


@dataclass(frozen=True)
class Ask:
    """What is asked of a picture: the `k` best of `candidates`, predicted or not, and the best `verify` really tried.

    `verify` None tries none, or all shown where a `picture` of the edits is to be drawn.
    """

    region: str
    mask: Path | None = None
    k: int = 10
    candidates: int = CANDIDATES
    predict: bool = True
    verify: int | None = None
    picture: Path | None = None
    model: str | None = None

    @property
    def tried(self) -> int:
        """How many edits are made."""
        shown = self.k if self.picture is not None else 0
        return min(self.k, shown if self.verify is None else self.verify)


@dataclass(frozen=True)
class _Subject:
    """The picture, its mask of the region, and whether that mask is its own."""

    pixels: np.ndarray
    mask: np.ndarray
    own: bool


def find_transfers(folder: Path, image: Path, ask: Ask) -> TransferDone:
    """The directions of a catalog that will do on a picture what they did at home, best first.

    Candidates come from `catalog.lookup.transfer_candidates`, without any model. Predictions take the catalog's
    model, one inversion of the picture and one JVP per candidate; trying takes one decode per edit.

    Raises:
        InputError: options that make no sense together; pictures, masks and regions as `flows.editing`.
        ModelError: the catalog's model is not there.
    """
    _check(ask, image)
    with Catalog.open(folder) as catalog:
        # A catalog without images does not say how large they are, but its model does.
        opened = model_of(catalog, ask.model) if catalog.lacks("image") else None
        subject = _subject(catalog, image, ask, opened[0].info.image_shape if opened else picture_shape(catalog))
        shifted, remarks = subject.own and not catalog.lacks("mask"), _remarks(catalog)
        wanted = max(ask.k, ask.candidates) if ask.predict else ask.k
        found = transfer_candidates(catalog, subject.pixels, subject.mask, ask.region, wanted)
        if not ask.predict:
            choices = [Choice(candidate, candidate.score) for candidate in found]
            return TransferDone(ask.region, len(found), shifted, choices, remarks=remarks)
        denoiser, settings = opened or model_of(catalog, ask.model)
        moved, left_out = moved_candidates(catalog, found, subject.mask if subject.own else None)
        steps = recipe_of(catalog).method.inversion_steps
    begun = time.monotonic()
    mask = torch.from_numpy(subject.mask)
    x_t = invert_pictures(denoiser, as_tensor(subject.pixels)[None], settings.timestep, steps)[0]
    candidates = [moved[c.direction_id] for c in found if c.direction_id in moved]
    predictions, spent = predict(denoiser, x_t, settings.timestep, mask, candidates, memory=settings.memory)
    kept = [c for c in found if c.direction_id in moved]
    ranked = sorted(
        (Choice(c, p.score, p) for c, p in zip(kept, predictions, strict=True)),
        key=lambda choice: (-choice.score, choice.candidate.direction_id),
    )
    best = ranked[: ask.k]
    if ask.tried:
        best = _tried(denoiser, settings, x_t, subject, best, moved, ask)
    decodes = 1 + min(ask.tried, len(best)) if ask.tried else 0
    cost = Cost(spent.jvp, steps, decodes, time.monotonic() - begun)
    picture = None if ask.picture is None else str(ask.picture)
    return TransferDone(ask.region, len(kept), shifted, best, left_out, cost, picture, remarks)


def _remarks(catalog: Catalog) -> tuple[str, ...]:
    place = remark(catalog, ["mask"], "directions are used where they were mined")
    return place + remark(catalog, ["image", "mask"], "candidates are chosen by the likeness of what is there")


def _check(ask: Ask, image: Path) -> None:
    for name, value, least in (("-k", ask.k, 1), ("--candidates", ask.candidates, 1), ("--verify", ask.verify, 0)):
        if value is not None and value < least:
            raise InputError(name, value, f"at least {least}")
    if not ask.predict and (ask.verify or ask.picture is not None):
        raise InputError("--no-predict", "with --verify or --picture", "without", "Edits are made as predicted.")
    if ask.picture is not None:
        check_out(ask.picture, image, [ask.mask or mask_beside(image, ask.region)], "--picture")


def _subject(catalog: Catalog, image: Path, ask: Ask, shape: tuple[int, int, int]) -> _Subject:
    fit = fit_of(catalog)
    pixels = load_picture(image, shape, fit)
    own = own_mask(ask.mask, image, ask.region, pixels, fit)
    mask = region_mask(catalog, ask.mask, image, ask.region, pixels) if own is None else own
    return _Subject(pixels, mask, own is not None)


def moved_candidates(
    catalog: Catalog, found: Sequence[Transfer], target: np.ndarray | None
) -> tuple[dict[str, Candidate], dict[str, str]]:
    """Candidates by id, moved to the mask (H, W) of a picture, and the reasons of those that cannot be.

    As they were mined where `target` is None.
    """
    ids = [candidate.direction_id for candidate in found]
    moved: dict[str, Candidate] = {}
    left_out: dict[str, str] = {}
    for key, row in zip(ids, catalog.rows(ids), strict=True):
        try:
            vector, _ = placed(catalog, row, target)
            effect = placed_effect(catalog, row, target)
        except InputError as error:
            left_out[key] = error.found
            continue
        if not row["gain"] > 0:
            left_out[key] = "no gain at home"
            continue
        moved[key] = Candidate(row["space"], vector, effect, row["gain"], row["leakage"], row["sigma"])
    return moved, left_out


def _tried(
    denoiser: Denoiser,
    settings: MiningSettings,
    x_t: torch.Tensor,
    subject: _Subject,
    best: list[Choice],
    moved: dict[str, Candidate],
    ask: Ask,
) -> list[Choice]:
    """The choices with what the first of them did when really edited; draws the sheet where one is asked for."""
    tried = best[: ask.tried]
    strengths = [choice.prediction.strength for choice in tried if choice.prediction is not None]
    outcomes, pictures = verify(
        denoiser,
        x_t,
        settings.timestep,
        torch.from_numpy(subject.mask),
        [moved[choice.candidate.direction_id] for choice in tried],
        strengths,
        settings.decode,
    )
    done = [replace(choice, outcome=outcome) for choice, outcome in zip(tried, outcomes, strict=True)]
    if ask.picture is not None:
        captions = [_caption(choice) for choice in done]
        write_whole(ask.picture, png(transfer_sheet(pictures, subject.mask, captions)))
    return [*done, *best[len(done) :]]


def _caption(choice: Choice) -> list[str]:
    assert choice.prediction is not None and choice.outcome is not None  # only choices that were tried are drawn
    c, p, o = choice.candidate, choice.prediction, choice.outcome
    return [
        f"{c.direction_id[:12]}  {c.space} {c.kind} {c.rank}  strength {p.strength:+.2f}",
        f"ROIR {p.roir:.2f} predicted, {o.roir:.2f} measured",
        f"effect as at home: {abs(p.agreement):.2f} predicted, {o.agreement:.2f} measured",
        f"change inside {o.rms:.3f} (predicted 0.15)" if not p.limited else f"change inside {o.rms:.3f} (at the limit)",
    ]


def as_document(done: TransferDone) -> dict[str, Any]:
    """The answer as one JSON document holds it: of each candidate what it was at home, is predicted to do, and did."""
    candidates = [
        {
            **asdict(choice.candidate),
            "score": choice.score,
            "likeness": choice.candidate.score,
            "prediction": choice.prediction,
            "outcome": choice.outcome,
        }
        for choice in done.choices
    ]
    names = ("region", "compared", "shifted", "left_out", "cost", "picture", "remarks")
    return {**{name: getattr(done, name) for name in names}, "candidates": candidates}


def show(done: TransferDone) -> None:
    """Print the answer for people."""
    for told in done.remarks:
        say(told)
    predicted = any(choice.prediction is not None for choice in done.choices)
    if not predicted:
        header = ("likeness", "direction", "space", "kind", "rank", "mask IoU", "image", "effect inside", "shift x, y")
        rows = [(*_named(c), *_likeness(c.candidate), _shift(c.candidate)) for c in done.choices]
        table("transfer candidates, by likeness", header, rows)
        return
    tried = any(choice.outcome is not None for choice in done.choices)
    header = ("score", "direction", "space", "kind", "rank", "gain / home", "ROIR", "agreement", "strength",
              *(("ROIR done", "agreement done", "change") if tried else ()), "shift x, y")  # fmt: skip
    table(f"transfer candidates, the best of {done.compared} predicted", header, [_row(c, tried) for c in done.choices])
    if done.left_out:
        say(f"{len(done.left_out)} candidates left out: {'; '.join(sorted(set(done.left_out.values())))}")
    if done.cost is not None:
        tries = f" and {done.cost.decodes} pictures decoded" if done.cost.decodes else ""
        say(
            f"{done.cost.jvp} JVPs after an inversion of {done.cost.inversion_steps} steps{tries}: "
            f"{done.cost.seconds:.1f} s"
        )
    if done.picture is not None:
        say(f"wrote {done.picture}")


def _named(choice: Choice) -> tuple[object, ...]:
    c = choice.candidate
    return f"{choice.score:.3f}", c.direction_id, c.space, c.kind, c.rank


def _row(choice: Choice, tried: bool) -> tuple[object, ...]:
    p, o = choice.prediction, choice.outcome
    assert p is not None
    strength = f"{p.strength:+.3g}" + (" (limit)" if p.limited else "")
    done: tuple[object, ...] = ()
    if tried:
        done = ("", "", "") if o is None else (o.roir, o.agreement, o.rms)
    return (*_named(choice), p.gain_ratio, p.roir, p.agreement, strength, *done, _shift(choice.candidate))


def _likeness(candidate: Transfer) -> tuple[object, ...]:
    """The parts of the score; a dash for what cannot be compared."""
    parts = (candidate.mask_iou, candidate.image_similarity, candidate.effect_inside)
    return tuple("-" if part is None else part for part in parts)


def _shift(candidate: Transfer) -> str:
    """Pixels to the right and down; a dash where the home mask is left out."""
    if candidate.shift is None:
        return "-"
    return f"{candidate.shift[0]:+.1f}, {candidate.shift[1]:+.1f}"
