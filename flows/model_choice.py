"""Which model a recipe means, and which version and class of it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import Field, SerializerFunctionWrapHandler, model_serializer, model_validator

from flows.datasets.config import Part, quiet

BUILTIN = "builtin"


class ModelChoice(Part):
    """`model` in a recipe: a name alone, or a mapping of these keys.

    `reference`: "builtin", a diffusers folder (relative paths start at the recipe's own folder), or a Hub id, where
    "owner/name@revision" is short for both. `revision`: branch, tag or commit of a Hub id. `class_label`: the class of
    a class-conditional model. A name alone and a mapping that says no more enter the fingerprint alike.
    """

    reference: str = Field(min_length=1)
    revision: str | None = quiet(None, min_length=1)
    class_label: int | None = quiet(None, ge=0)

    @model_validator(mode="before")
    @classmethod
    def _named_alone(cls, value: Any) -> Any:
        if not isinstance(value, str | Mapping | ModelChoice):
            raise ValueError("a name or a mapping")
        return {"reference": value} if isinstance(value, str) else value

    @model_validator(mode="after")
    def _builtin_has_no_versions(self) -> ModelChoice:
        if self.reference == BUILTIN and self.revision is not None:
            raise ValueError("no revision of the built-in model, which comes with the package")
        return self

    @model_serializer(mode="wrap")
    def _as_written(self, handler: SerializerFunctionWrapHandler) -> Any:
        content = handler(self)
        return self.reference if content.keys() == {"reference"} else content

    def at(self, reference: str) -> ModelChoice:
        """The same class of the model at another place; the same version too where the place is this one."""
        return self if reference == self.reference else ModelChoice(reference=reference, class_label=self.class_label)

    def pinned(self, commit: str | None) -> ModelChoice:
        """This model at one commit of the Hub; None, which folders have, pins nothing."""
        if commit is None:
            return self
        return self.model_copy(update={"reference": self.reference.partition("@")[0], "revision": commit})
