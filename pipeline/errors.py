"""The one family of errors. Each message names the field, what was found, what was expected and what to do next."""

from __future__ import annotations


class RhumbError(Exception):
    """Base of every error this project raises on purpose.

    Args:
        field: what is wrong: an argument, a recipe key, a file.
        found: what was there.
        expected: what should have been there.
        action: what to do next; left out where `expected` already says it.
    """

    def __init__(self, field: str, found: object, expected: str, action: str = "") -> None:
        self.field, self.found, self.expected, self.action = field, str(found), expected, action
        message = f"{field}: found {self.found}; expected {expected}"
        super().__init__(f"{message}. {action}" if action else message)

    def __reduce__(self) -> tuple[type[RhumbError], tuple[str, str, str, str]]:
        return type(self), (self.field, self.found, self.expected, self.action)


class InputError(RhumbError, ValueError):
    """A value given by the user does not fit: a recipe key, a region name, a mask, an image, a rank."""


class ModelError(RhumbError, ValueError):
    """A model folder or checkpoint cannot be used as it is."""


class CatalogError(RhumbError, ValueError):
    """A catalog or pack is incomplete, damaged, or belongs to something else."""


class ConflictError(RhumbError, FileExistsError):
    """Something already there would have to be overwritten."""


class BusyError(ConflictError):
    """Another process is writing to the same place."""


class NotFoundError(RhumbError, LookupError):
    """A named thing (direction, image, version, region) does not exist."""
