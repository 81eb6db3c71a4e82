"""Every kind of data set a recipe may name. A new kind is one file with its config and source, and one line here."""

from __future__ import annotations

from functools import reduce
from operator import or_
from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from flows.datasets.afhq import AfhqDataset
from flows.datasets.builtin import BuiltinDataset
from flows.datasets.celebamask import CelebaMaskDataset
from flows.datasets.cifar import CifarDataset
from flows.datasets.classes import ClassFoldersDataset
from flows.datasets.config import DatasetConfig
from flows.datasets.ffhq import FfhqDataset
from flows.datasets.flowers import FlowersDataset
from flows.datasets.folder import FolderDataset
from flows.datasets.huggingface import HuggingFaceDataset
from flows.datasets.lsun import LsunDataset
from flows.datasets.metfaces import MetFacesDataset
from flows.datasets.parquet import ParquetDataset
from flows.datasets.webdataset import WebDatasetDataset

KINDS: dict[str, type[DatasetConfig]] = {
    "builtin": BuiltinDataset,
    "folder": FolderDataset,
    "celebamask-hq": CelebaMaskDataset,
    "lsun": LsunDataset,
    "ffhq": FfhqDataset,
    "metfaces": MetFacesDataset,
    "afhq": AfhqDataset,
    "flowers102": FlowersDataset,
    "cifar10": CifarDataset,
    "class-folders": ClassFoldersDataset,
    "huggingface": HuggingFaceDataset,
    "parquet": ParquetDataset,
    "webdataset": WebDatasetDataset,
}

if TYPE_CHECKING:
    AnyDataset = DatasetConfig
else:
    AnyDataset = Annotated[reduce(or_, KINDS.values()), Field(discriminator="kind")]
