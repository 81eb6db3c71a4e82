"""Animal Faces-HQ (Choi et al. 2020, StarGAN v2), version 1 or 2, in its original layout: SPLIT/ANIMAL/*.jpg or *.png.

A folder or an archive; a folder around the splits, as in the archives that are published, does not matter.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from flows.datasets.archives import open_members
from flows.datasets.config import DatasetConfig, Resolve
from flows.datasets.listed import FIELD, ListedSource, by_key, pictures, wrong_layout
from pipeline.errors import InputError

SPLITS = ("train", "val", "test")
ANIMALS = ("cat", "dog", "wild")
LAYOUT = f"AFHQ's {{{','.join(SPLITS)}}}/{{{','.join(ANIMALS)}}}/*.jpg or *.png"
CITATION = """\
@inproceedings{choi2020starganv2,
  title={StarGAN v2: Diverse Image Synthesis for Multiple Domains},
  author={Yunjey Choi and Youngjung Uh and Jaejun Yoo and Jung-Woo Ha},
  booktitle={Proceedings of the IEEE Conference on Computer Vision and Pattern Recognition},
  year={2020}
}"""


class AfhqDataset(DatasetConfig):
    """`split` and `animal`: only those. Version 1 has train and val, version 2 train and test."""

    kind: Literal["afhq"]
    path: str = Field(min_length=1)
    split: Literal["all", "train", "val", "test"] = "all"
    animal: Literal["all", "cat", "dog", "wild"] = "all"

    def open(self, resolve: Resolve) -> AfhqSource:
        return AfhqSource(self, resolve)


class AfhqSource(ListedSource):
    """Keys are SPLIT/ANIMAL/NAME, such as `train/dog/flickr_dog_000002.jpg`."""

    licence = "CC BY-NC 4.0 (NAVER Corporation)"
    citation = CITATION

    def __init__(self, config: AfhqDataset, resolve: Resolve) -> None:
        path = resolve(config.path)
        members = open_members(path)
        every = [name for name in pictures(members.names()) if _is_placed(name)]
        if not every:
            wrong_layout(path, members.names(), LAYOUT, "Name the folder that holds the splits.")
        roots = sorted({"/".join(name.split("/")[:-3]) for name in every})
        if len(roots) > 1:
            raise InputError(FIELD, f"several sets in {path}: {', '.join(roots[:3])}", LAYOUT, "Name one of them.")
        chosen = [name for name in every if _is_chosen(name, config)]
        if not chosen:
            there = sorted({"/".join(name.split("/")[-3:-1]) for name in every})
            raise InputError(
                "dataset.split" if config.animal == "all" else "dataset.animal",
                f"{config.split}, {config.animal}",
                f"one that is in {path}: {', '.join(there)}",
            )
        name = "afhq" if config.animal == "all" else f"afhq-{config.animal}"
        super().__init__(config, name, members, by_key(chosen, _key))
        self.split = config.split


def _key(name: str) -> str:
    return "/".join(name.split("/")[-3:])


def _is_placed(name: str) -> bool:
    parts = name.split("/")
    return len(parts) >= 3 and parts[-3] in SPLITS and parts[-2] in ANIMALS


def _is_chosen(name: str, config: AfhqDataset) -> bool:
    split, animal = name.split("/")[-3:-1]
    return config.split in ("all", split) and config.animal in ("all", animal)
