"""How a pack is used, for its card: code that runs as it stands, wherever the pack's hub is."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from catalog.hub.names import BUILTIN
from catalog.hub.portable import portable_text
from catalog.manifest import PackInfo
from catalog.store import as_url

_HUB_ID = re.compile(r"([A-Za-z0-9][\w.-]{0,95}/[\w.-]{1,96})(?:@([\w.-]{1,96}))?", re.ASCII)
_FOLDER = re.compile(r"\w[\w.+-]{0,95}", re.ASCII)
_URL = re.compile(r"[a-z][a-z0-9+.-]{0,31}://[\w./:+-]{1,300}", re.ASCII)


@dataclass(frozen=True)
class Use:
    """What the code names: the pack; its hub, as in `PackName`; the section of the provenance on its model; a region of
    it, and the configuration that loads this.
    """

    pack: PackInfo
    hub: str | None
    model: Mapping[str, Any]
    region: str
    config: str

    @property
    def builtin(self) -> bool:
        """Whether the pack is of the hub that comes with the project."""
        return self.hub is not None and self.pack.repository.startswith(f"{BUILTIN}/")

    @property
    def place(self) -> str | None:
        """The hub's URL, or the last component of its folder, since no local path travels; None where the repository
        alone says which hub it is in.
        """
        if self.hub is None or self.builtin:
            return None
        url, folder = as_url(self.hub), Path(self.hub).expanduser().absolute()
        if url is not None:
            shown = portable_text(url)
            return shown if _URL.fullmatch(shown) else "HUB"
        return folder.name if _FOLDER.fullmatch(folder.name) and portable_text(str(folder)) == folder.name else "HUB"

    @property
    def in_folder(self) -> bool:
        """Whether a folder has to be named to find the hub."""
        return self.place is not None and as_url(str(self.hub)) is None

    @property
    def name(self) -> str:
        """What rhumb calls the pack; where its hub is a folder, from beside it."""
        return self.pack.repository if self.place is None else f"{self.place}/{self.pack.repository}"

    @property
    def model_folder(self) -> str | None:
        """The last component of the model's folder; None for a model that is found without."""
        reference = portable_text(str(self.model.get("reference", "")))
        here = self.model.get("commit", "unknown") is None
        if reference == BUILTIN or (_HUB_ID.fullmatch(reference) and not here):
            return None
        last = reference.replace("\\", "/").rstrip("/").rpartition("/")[2]
        return last if _FOLDER.fullmatch(last) else "MODEL"


def usage(use: Use) -> str:
    """Markdown: how to search and apply in five lines, how to pull, and how to load tables."""
    return f"""```python
{_applied(use)}
```

{_folders(use)}On the command line, whole or in part, to search, apply and merge as any other catalog:

```
rhumb pull {use.name}@{use.pack.version} --region "{use.region}" --out CATALOG
```

{_tables(use)}"""


def _folders(use: Use) -> str:
    """What folders the code names, if any."""
    hub = f"`{use.place}` is the folder of the hub" if use.in_folder else ""
    model = f"`{use.model_folder}` is the folder of the model" if use.model_folder is not None else ""
    told = " and ".join(filter(None, (hub, model)))
    return f"Here {told}: run it beside, or write where it is.\n\n" if told else ""


def _applied(use: Use) -> str:
    pack = f'DirectionPack.from_pretrained("{use.name}", revision="v{use.pack.version}", region="{use.region}")'
    if use.model.get("reference") == BUILTIN:
        return f"""from diffusers import DiffusionPipeline
from flows.direction_pack import DirectionPack  # of rhumb
from flows.paths import builtin_folder
pack, pipe = {pack}, DiffusionPipeline.from_pretrained(builtin_folder() / "denoiser")
pack.apply(pipe, "picture.png", {{best.id: best.strength for best in pack.search(k=1)}}).save("edited.png")"""
    return f"""from diffusers import DiffusionPipeline
from flows.direction_pack import DirectionPack  # of rhumb
pack = {pack}
best, pipe = pack.search(region="{use.region}")[0], DiffusionPipeline.from_pretrained({_model(use)})
pack.apply(pipe, "picture.png", {{best.id: best.strength}}).save("edited.png")"""


def _model(use: Use) -> str:
    """The arguments of `from_pretrained`, in Python."""
    if use.model_folder is not None:
        return f'"{use.model_folder}"'
    found = _HUB_ID.fullmatch(str(use.model.get("reference", "")))
    assert found is not None  # else it has a folder
    return f'"{found[1]}"' + (f', revision="{found[2]}"' if found[2] else "")


def _tables(use: Use) -> str:
    """How `datasets` reads it: from the Hub, from the folder of a hub, or what was pulled."""
    version, datasets = use.pack.version, "from datasets import load_dataset"
    both: tuple[tuple[str, str], ...] = (("directions", "directions"), ("one_region", use.config))
    if use.hub is None:
        told, lines, load = "Without rhumb, as tables", [datasets, ""], f'"{use.name}", "{{}}", revision="v{version}"'
    elif use.builtin or use.in_folder:
        told, load, home = "As tables, where it lies", 'folder, "{}"', f"datasets/{use.pack.repository}"
        found = "from flows.paths import builtin_folder" if use.builtin else "from pathlib import Path"
        place = f'builtin_folder() / "hub/{home}"' if use.builtin else f'Path("{use.place}/{home}")'
        lines = [found, datasets, "", f"home = {place}"]
        lines.append(f'folder = str(home / "snapshots" / (home / "refs/tags/v{version}").read_text().strip())')
    else:
        told, lines, load = "What was pulled, as tables", [datasets, ""], '"CATALOG", "{}"'
        both = both[:1]
    lines += [f'{name} = load_dataset({load.format(config)}, split="train")' for name, config in both]
    code = "\n".join(lines)
    return f"{told}; how vectors are stored is in `manifest.json`, under `vectors`:\n\n```python\n{code}\n```"
