"""A published pack of directions in a notebook: pulled once, searched, applied to a pipeline that is in memory.

    from diffusers import DDPMPipeline
    from flows.direction_pack import DirectionPack

    pack = DirectionPack.from_pretrained("org/faces-directions", region="mouth")
    found = pack.search(region="mouth")[0]
    pipe = DDPMPipeline.from_pretrained("org/faces-model")
    pack.apply(pipe, "face.png", {found.id: found.strength}).save("edited.png")

Nothing of mining is needed for it, and torch only to apply.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from functools import cached_property, wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any, Concatenate, Literal, ParamSpec, TypeVar

import numpy as np
from PIL import Image

from catalog.concepts import Concept, load_concepts
from catalog.places import texts
from catalog.reader import Catalog
from flows.pack_entries import (
    EFFECT,
    Choice,
    Entries,
    Entry,
    Values,
    alike,
    checked_query,
    listed,
    most_local,
    of_concept,
    of_directions,
)
from pipeline.errors import CatalogError, InputError, NotFoundError

if TYPE_CHECKING:
    from flows.pack_cache import CachedPack
    from flows.pack_editing import Masks, Picture
    from pipeline.models.contract import Denoiser

Units = Literal["absolute", "visible"]
Asked = ParamSpec("Asked")
Told = TypeVar("Told")
_PICTURES = ("effect", "image", "latent", "preview")  # what is looked at, and not needed to search or to apply


def _mending(
    method: Callable[Concatenate[DirectionPack, Asked], Told],
) -> Callable[Concatenate[DirectionPack, Asked], Told]:
    """A method that reads: where a pack of the cache proves damaged, it is mended, and the method called once more."""

    @wraps(method)
    def called(self: DirectionPack, /, *args: Asked.args, **kwargs: Asked.kwargs) -> Told:
        try:
            return method(self, *args, **kwargs)
        except CatalogError:
            if self._cached is None:
                raise
            self._reopen(self._cached)
        return method(self, *args, **kwargs)

    return called


class DirectionPack:
    """Directions of one model, and prototypes of them, by their ids. Not for use by several threads at once.

    `catalog` is all there is of it, `name` what it is called in errors.
    """

    def __init__(
        self,
        catalog: Catalog,
        name: str = "",
        only: Choice | None = None,
        prototypes: bool = False,
        cached: CachedPack | None = None,
    ) -> None:
        self.catalog, self.name = catalog, name or str(catalog.folder)
        self._only, self._prototypes, self._cached = only or Choice(), prototypes, cached

    @classmethod
    def from_pretrained(
        cls,
        name: str | Path,
        *,
        revision: str = "",
        region: Values = None,
        dataset: Values = None,
        kind: Values = None,
        space: Values = None,
        prototypes: bool = False,
        previews: bool = False,
    ) -> DirectionPack:
        """A pack of a hub, pulled into the cache and taken from there ever after; or a catalog in a folder, in place.

        Args:
            name: "org/pack" of the Hugging Face Hub, "builtin/faces64" of the hub that comes with this project,
                "HUB/org/pack" with the folder or URL of a local hub, or the folder of a catalog.
            revision: a version such as "v1.2.0", or a range such as ">=1.2,<2"; the newest of them, or of all.
            region, dataset, kind, space: one name, or several: only that part is fetched and listed.
            prototypes: list prototypes alone, and fetch only the directions that they are named after.
            previews: fetch the pictures of images and of what directions do, too.

        Access to private and gated repositories is the Hub client's own: HF_TOKEN, or what `hf auth login` has kept.

        Raises:
            NotFoundError: no such pack or version, or nothing in it of what is asked for.
            StoreError: the hub cannot be reached, and the cache does not have it.
            InputError: a name, version or range that cannot be one.

        A file of the cache that proves damaged when it is read is fetched again.
        """
        if not isinstance(name, str | Path):
            raise InputError("name", repr(name)[:80], "the name of a pack, or the folder of a catalog")
        if not isinstance(revision, str):
            raise InputError("revision", repr(revision)[:80], "a version or range, as text")
        only = Choice.of(region=region, dataset=dataset, kind=kind, space=space)
        if _is_catalog(name):
            if revision:
                raise InputError("revision", revision, f"none, as {name} is a folder", "Versions are those of a hub.")
            return cls(Catalog.open(name), str(name), only, prototypes)
        from catalog.hub.names import PackName
        from catalog.hub.parts import Part
        from flows.pack_cache import cached_pack

        pack = PackName.parse(str(name), revision)
        without = () if previews else _PICTURES
        try:
            part = Part(only.region, only.dataset, only.kind, only.space, prototypes, without)
        except CatalogError as error:  # a name that nothing in a catalog may have
            raise InputError(error.field, error.found, error.expected) from error
        cached = cached_pack(pack, part)
        return cls(Catalog.open(cached.folder), f"{pack}@{cached.version}", only, prototypes, cached)

    @_mending
    def __repr__(self) -> str:
        rows = self.catalog.manifest.rows("directions")
        return f"DirectionPack({self.name}: {rows} directions, {len(self._concepts)} prototypes)"

    # -- what there is ---------------------------------------------------------------------------------------------

    @_mending
    def entries(
        self, *, region: Values = None, kind: Values = None, space: Values = None, concepts: bool = True
    ) -> Entries:
        """All directions, and with `concepts` the prototypes too; one name or several of each narrow them down.

        Raises InputError for a name that nothing in the pack has.
        """
        choice, known = self._choice(region, kind, space), self._concepts if concepts else ()
        return listed(self.catalog, choice, known, not self._prototypes)

    @_mending
    def search(
        self,
        *,
        region: Values = None,
        kind: Values = None,
        space: Values = None,
        like: str | np.ndarray | None = None,
        by: Literal["vector", "effect"] = "vector",
        k: int = 10,
    ) -> Entries:
        """The k best of a region, kind and space, or those most like another, best first.

        Args:
            like: the id of a direction or prototype, or an array of the shape of a space, or, by effect, of
                `manifest.provenance.effect_shape`. Without it prototypes come first that most images bear out, then
                directions that change least outside their region for what they change inside.
            by: whether vectors of its space are compared, or effects, over both spaces.

        Sign-blind: the score of one whose opposite is alike is negative. Raises InputError, NotFoundError (no such id).
        """
        if k < 1:
            raise InputError("k", k, "at least 1")
        if by not in ("vector", "effect"):
            raise InputError("by", repr(by)[:80], "vector | effect")
        if like is None:
            return most_local(self.entries(region=region, kind=kind, space=space), k)
        choice = self._choice(region, kind, space)
        array, home, but = self._query(like, by, choice)
        query = checked_query(self.catalog, array, home)
        return alike(self.catalog, choice, self._concepts, not self._prototypes, query, home, k, but)

    @_mending
    def entry(self, key: str) -> Entry:
        """One direction or prototype, by its id or the first digits of it. Raises NotFoundError naming the nearest."""
        found = self._find(key)
        return (
            of_concept(self.catalog, found) if isinstance(found, Concept) else of_directions(self.catalog, [found])[0]
        )

    @_mending
    def vector(self, key: str) -> np.ndarray:
        """float32 of unit norm, in the shape of its space. Raises as `entry`."""
        found = self._find(key)
        return found.vector if isinstance(found, Concept) else self.catalog.vector(found)

    @_mending
    def effect(self, key: str) -> np.ndarray:
        """float32 (C, h, w) of unit norm: what it changes in the predicted picture, small. Raises as `entry`."""
        found = self._find(key)
        return found.effect if isinstance(found, Concept) else self.catalog.effect(found)

    @_mending
    def preview(self, key: str) -> Image.Image:
        """The picture it was found on, changed the minus way, unchanged, and changed the plus way, side by side.

        Raises NotFoundError where the pack was published, or pulled, without previews.
        """
        found = self._find(key)
        return Image.fromarray(found.pictures() if isinstance(found, Concept) else self.catalog.preview(found))

    # -- using it --------------------------------------------------------------------------------------------------

    @_mending
    def check(self, pipe: Any, *, other_model: bool = False) -> Denoiser:
        """The model of a diffusers pipeline, if it is that of the pack: by fingerprint, prediction type and schedule.

        What comes back may be given to `apply` in place of the pipeline, so that its weights are hashed once only,
        which takes about a second per gigabyte. With `other_model` a difference is a warning as long as shapes fit.

        Raises:
            ModelError: another model; it says what differs.
        """
        from flows.pack_editing import checked_model

        return checked_model(pipe, self.catalog, self.name, other_model)

    @_mending
    def apply(
        self,
        pipe: Any,
        image: Picture,
        strengths: Mapping[str, float],
        mask: Masks | None = None,
        *,
        units: Units = "absolute",
        other_model: bool = False,
    ) -> Image.Image:
        """A picture edited by one or several directions: inverted, shifted along all of them, decoded once.

        Args:
            pipe: a diffusers pipeline of the pack's model, or what `check` made of it.
            image: a picture of any size, fitted as those of the pack were: PIL, a file, or an array (H, W) or
                (H, W, C) of 0 to 255 (uint8) or 0 to 1 (floats).
            strengths: by id of a direction or prototype, or its first digits; a negative one goes the other way.
            mask: where the picture has the region, white, as a picture or array of its size: directions are moved
                there from where they were found. {region: mask} for directions of several regions. Without one a
                direction is applied where it was found, which suits aligned pictures.
            units: "absolute", as in `rhumb edit`, or "visible": in multiples of each entry's own `strength`.
            other_model: go on with a warning where the model is not that of the pack, as long as shapes fit.

        No randomness but what the pack's recipe asks for, by its seed. Cost: as many passes of the network as the
        recipe has steps of inversion and decoding.

        Raises:
            ModelError: another model.
            NotFoundError: no such id; the nearest are named.
            InputError: a picture, mask or strength that cannot be used.
        """
        from flows import pack_editing as editing
        from flows.edit_settings import edit_settings, fit_of, recipe_of
        from pipeline.images import as_image

        wanted = self.absolute(strengths, units)
        masks = editing.masks_by_region(mask, sorted({entry.region for entry, _ in wanted}))
        picture = editing.opened_picture(image)
        denoiser = self.check(pipe, other_model=other_model)
        edits = editing.placed_edits(self, wanted, masks, picture.size, denoiser)
        pixels = editing.fitted(denoiser, [picture], fit_of(self.catalog))
        settings = edit_settings(recipe_of(self.catalog), denoiser.info.train_timesteps)
        return as_image(editing.edited(denoiser, pixels, [edits], settings)[0])

    @_mending
    def absolute(self, strengths: Mapping[str, float], units: Units = "absolute") -> list[tuple[Entry, float]]:
        """The entries that strengths name, with these in absolute units; those of one entry add up.

        Raises NotFoundError (no such id), InputError (no finite number, or other units).
        """
        if units not in ("absolute", "visible"):
            raise InputError("units", repr(units)[:80], "absolute | visible")
        if not isinstance(strengths, Mapping):
            raise InputError("strengths", type(strengths).__name__, "a mapping of ids to numbers")
        found: dict[str, tuple[Entry, float]] = {}
        for key, value in strengths.items():
            number = finite(value, f"strength of {key!r}"[:80])
            entry = self.entry(key)
            before = found[entry.id][1] if entry.id in found else 0.0
            found[entry.id] = entry, before + number * (entry.strength if units == "visible" else 1.0)
        return list(found.values())

    @_mending
    def home_of(self, key: str) -> tuple[str, str | None]:
        """The image on which a direction was found, or whose region a prototype lies at, and the id of that region."""
        found = self._find(key)
        if isinstance(found, Concept):
            return found.image_id, found.region_id
        row = self.catalog.rows([found], ["image_id", "region_id"])[0]
        return row["image_id"], row["region_id"]

    # -- inside ----------------------------------------------------------------------------------------------------

    def _reopen(self, cached: CachedPack) -> None:
        """Mend the folder of the cache, and forget what was read of it. Raises CatalogError naming it."""
        self.catalog.close()
        cached.mend()
        self.catalog = Catalog.open(cached.folder)
        self.__dict__.pop("_concepts", None)

    @cached_property
    def _concepts(self) -> tuple[Concept, ...]:
        """The prototypes, of what was asked for; those of former directions are left out, with a warning."""
        manifest = self.catalog.manifest
        if manifest.concepts is None:
            return ()
        if manifest.concepts.directions_fingerprint != manifest.directions_fingerprint and manifest.part is None:
            warnings.warn(f"{self.name}: its prototypes are older than its directions, and left out", stacklevel=4)
            return ()
        return tuple(concept for concept in load_concepts(self.catalog) if self._only.meets(concept))

    def _choice(self, region: Values, kind: Values, space: Values) -> Choice:
        choice = Choice.of(region=region, kind=kind, space=space).within(self._only)
        choice.check(self.catalog, self._concepts)
        return choice

    def _find(self, key: str) -> Concept | str:
        """A prototype, or the whole id of a direction."""
        if not isinstance(key, str):
            raise InputError("id", repr(key)[:80], "the id of a direction or prototype, as text")
        try:
            return self.catalog.resolve(key)
        except NotFoundError:
            found = [concept for concept in self._concepts if concept.concept_id.startswith(key)]
        if len(found) == 1:
            return found[0]
        if found:
            raise InputError("id", f"{key}, the start of {len(found)} ids", "a longer prefix")
        raise NotFoundError("id", repr(key)[:80], f"an id of {self.name}", f"Nearest: {', '.join(self._near(key))}")

    def _near(self, key: str) -> list[str]:
        """The ids nearest to where a text would stand among them."""
        concepts = np.array([concept.concept_id for concept in self._concepts], dtype="S32")
        ids = np.sort(np.concatenate([self.catalog.ids(), concepts]))
        start = int(np.searchsorted(ids, np.bytes_(key.encode("ascii", errors="replace"))))
        return texts(ids[max(0, start - 2) : start + 1]) or ["none: the pack is empty"]

    def _query(self, like: str | np.ndarray, by: str, choice: Choice) -> tuple[np.ndarray, str, str]:
        """What to compare with, the space it is of ("effect" for an effect), and the id that it has, if any."""
        if isinstance(like, str):
            entry = self.entry(like)
            array = self.effect(entry.id) if by == EFFECT else self.vector(entry.id)
            return array, EFFECT if by == EFFECT else entry.space, entry.id
        array = np.asarray(like)
        if by == EFFECT:
            return array, EFFECT, ""
        shapes = self.catalog.layout.spaces
        fitting = [space for space in choice.space or shapes if tuple(shapes.get(space, ())) == array.shape]
        if len(fitting) != 1:
            known = ", ".join(f"{space}: {tuple(shape)}" for space, shape in shapes.items())
            raise InputError(
                "like", f"shape {array.shape}", f"that of one space ({known})", "Name its `space`, or ask by effect."
            )
        return array, fitting[0], ""


def _is_catalog(place: str | Path) -> bool:
    """Whether a name is that of a folder with a catalog."""
    try:
        return (Path(place) / "manifest.json").is_file()
    except OSError:  # too long for a path
        return False


def finite(value: Any, name: str) -> float:
    """A finite strength. Raises InputError naming it."""
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = float("nan")
    if not np.isfinite(number):
        raise InputError(name, repr(value)[:80], "a finite number")
    return number
