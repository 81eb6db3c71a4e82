"""Pictures in one folder per class, as ImageNet has them: ROOT/CLASS/*.JPEG, or ROOT/SPLIT/CLASS/*.JPEG."""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from typing import Annotated, Literal

from pydantic import Field

from flows.datasets.archives import open_members
from flows.datasets.config import DatasetConfig, Resolve
from flows.datasets.listed import ListedSource, by_key, pictures, wrong_layout
from pipeline.errors import InputError

SPLITS = ("train", "training", "val", "valid", "validation", "dev", "test")
LAYOUT = "pictures in one folder per class, ROOT/CLASS/*.JPEG or ROOT/SPLIT/CLASS/*.JPEG"
CITATION = """\
@article{ILSVRC15,
  title={{ImageNet Large Scale Visual Recognition Challenge}},
  author={Olga Russakovsky and Jia Deng and Hao Su and Jonathan Krause and Sanjeev Satheesh and Sean Ma and
    Zhiheng Huang and Andrej Karpathy and Aditya Khosla and Michael Bernstein and Alexander C. Berg and Li Fei-Fei},
  journal={International Journal of Computer Vision (IJCV)},
  doi={10.1007/s11263-015-0816-y},
  volume={115},
  number={3},
  pages={211-252},
  year={2015}
}"""
_SYNSET = re.compile(r"n\d{8}")


class ClassFoldersDataset(DatasetConfig):
    """`split`: the folder of `path` that holds the classes; left out, every split that is there, or none if `path`
    holds the classes itself. `classes`: only these.
    """

    kind: Literal["class-folders"]
    path: str = Field(min_length=1)
    split: str | None = Field(default=None, min_length=1)
    classes: Annotated[tuple[str, ...], Field(min_length=1)] | None = None

    def open(self, resolve: Resolve) -> ClassFoldersSource:
        return ClassFoldersSource(self, resolve)


class ClassFoldersSource(ListedSource):
    """Keys are [SPLIT/]CLASS/NAME. `classes`: names of those that are listed, sorted.

    Where every class is a WordNet id (n01440764) it is ImageNet, whose terms of access forbid to pass pictures on.
    """

    classes: Sequence[str]

    def __init__(self, config: ClassFoldersDataset, resolve: Resolve) -> None:
        path = resolve(config.path)
        members = open_members(path)
        names = pictures(members.names())
        tops = sorted({name.split("/")[0] for name in names if "/" in name})
        if config.split is not None and config.split not in tops:
            raise InputError("dataset.split", config.split, f"a folder with pictures in {path}: {_few(tops)}")
        if config.split is not None:
            names = [name for name in names if name.startswith(f"{config.split}/")]
        depth = 1 if config.split is not None or (tops and set(tops) <= set(SPLITS)) else 0
        if not names:
            wrong_layout(path, members.names(), LAYOUT)
        stray = [name for name in names if name.count("/") <= depth]
        if stray:
            wrong_layout(path, stray, LAYOUT, "Set `split` to the one that has classes, or put these into theirs.")
        every = sorted({name.split("/")[depth] for name in names})
        _check_classes(config.classes, every)
        self.classes = every if config.classes is None else sorted(set(config.classes))
        wanted = set(self.classes)
        chosen = [name for name in names if name.split("/")[depth] in wanted]
        name = path.resolve().name if path.is_dir() else path.name.split(".")[0]
        if all(_SYNSET.fullmatch(each) for each in every):
            self.licence = "ImageNet terms of access: non-commercial research and education"
            self.redistributable, self.citation = False, CITATION
        super().__init__(config, name, members, by_key(chosen))
        splits = {name.split("/")[0] for name in chosen} if depth else set()
        self.split = splits.pop() if len(splits) == 1 else "all"


def _check_classes(asked: Sequence[str] | None, every: Sequence[str]) -> None:
    for each in asked or ():
        if each not in every:
            near = difflib.get_close_matches(each, every, n=3) or every
            raise InputError("dataset.classes", each, f"one of the {len(every)} classes, such as {_few(near)}")


def _few(names: Sequence[str]) -> str:
    return ", ".join(names[:5]) + (", ..." if len(names) > 5 else "") if names else "there is none"
