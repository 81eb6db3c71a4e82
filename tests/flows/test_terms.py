"""Licences, citations and the code on a card, from mining to a published pack: whose they are, and that they hold."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from PIL import Image

import flows.miner
from catalog import manifest as manifests
from catalog.hub.parts import part_name
from catalog.hub.usage import Use, usage
from catalog.manifest import PackInfo, Provenance
from flows.datasets import afhq, celebamask, cifar, classes, ffhq, flowers, lsun, metfaces
from flows.datasets.contract import Source
from flows.datasets.dataset import load_dataset
from flows.mining import provenance
from flows.opening import open_model
from flows.paths import builtin_folder
from flows.recipe import load_recipe
from pipeline.models.files import CONVERSION
from pipeline.models.guided_presets import PRESETS
from tests.catalog.local_hub import snapshot, versions
from tests.flows import tiny
from tests.flows.test_dataset_celebamask import part_mask, save_image, save_mask

Capture = pytest.CaptureFixture[str]
BIBTEX = "@misc{tiny,\n  title={Tiny {\\v{c}}{\\v{z}} models},\n  author={A. Author}\n}"
TOKENS = ("hf_" + "modelmodelmodel", "hf_" + "datadatadatadata", "hf_" + "namenamename")


@pytest.fixture(autouse=True)
def quick_mining(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flows.miner, "mine_image", tiny.quick_mine_image)


@pytest.fixture
def model(tiny_model: Path, tmp_path: Path) -> Path:
    """A model's folder that may be added to."""
    return Path(shutil.copytree(tiny_model, tmp_path / "model"))


def mined_by(folder: Path, model: Path, **changes: Any) -> Path:
    """The catalog of a recipe that names no licence of packs."""
    recipe = tiny.recipe(folder, model, licence=None, **changes)
    assert tiny.run("mine", recipe, "--out", folder / "catalog", "--workers", 1, "--json") == 0
    return folder / "catalog"


def card_of(catalog: Path, repository: Path, *options: str) -> tuple[dict[str, Any], str]:
    """YAML and page of the card under which a catalog is published."""
    assert tiny.run("publish", catalog, repository, "--version", "1.0.0", *options) == 0
    _, head, page = (snapshot(repository, "1.0.0") / "README.md").read_text().split("---\n", 2)
    return yaml.safe_load(head), page


def story(catalog: Path) -> Provenance:
    return manifests.load(catalog).provenance


def converted(model: Path, preset: str = "ffhq-p2") -> Path:
    """The model with the terms that `rhumb convert` writes of a preset."""
    told = {"licence": PRESETS[preset].licence, "citation": PRESETS[preset].citation}
    (model / CONVERSION).write_text(json.dumps({"format": 1, "preset": preset, **told}))
    return model


def celeba(root: Path) -> dict[str, Any]:
    """A small CelebAMask-HQ, and its section of a recipe."""
    for number in range(2):
        save_image(root, number)
        for part, box in (("mouth", (8, 20, 24, 26)), ("nose", (12, 10, 20, 18))):
            save_mask(root, number, part, part_mask(box))
    return {"dataset": {"kind": "celebamask-hq", "path": root.name}, "regions": ["mouth", "nose"]}


def test_a_pack_of_a_converted_model_and_celebamask_carries_the_terms_of_both(model: Path, tmp_path: Path) -> None:
    catalog = mined_by(tmp_path, converted(model), **celeba(tmp_path / "faces"))
    preset, of = PRESETS["ffhq-p2"], story(catalog)
    assert (of.model["licence"], of.model["citation"]) == (preset.licence, preset.citation)
    assert of.data["citation"] == celebamask.CITATION
    head, page = card_of(catalog, tmp_path / "hub" / "org" / "pack")
    assert head["license"] == "other" and head["license_name"].endswith("with-non-commercial-sources")
    bound = page[page.index("**Not for commercial use**") :]
    assert f"model ({preset.licence})" in bound and "celebamask-hq (CelebAMask-HQ agreement: non-commercial" in bound
    cited = page[page.index("Please cite") :]
    assert "- Choi et al., Perception Prioritized Training of Diffusion Models" in cited
    assert "```bibtex\n@inproceedings{CelebAMask-HQ,\n  title={MaskGAN" in cited
    assert "arXiv:2409.02374" in cited and "Nobody stated" not in page
    assert "citation: " not in page  # it stands once, where it can be copied


CARD = f"""---
license: cc-by-nc-4.0
tags: [diffusion]
model-index: [{{name: tiny}}]
---
# Tiny

```python
@decorated
def nothing(): ...
```

```bibtex
{BIBTEX}
```
"""


def test_a_pack_of_a_model_with_a_hub_card_carries_the_cards_terms(model: Path, tmp_path: Path) -> None:
    (model / "README.md").write_text(CARD)
    tiny.photographs(tmp_path, count=2)
    catalog = mined_by(tmp_path, model)
    assert (story(catalog).model["licence"], story(catalog).model["citation"]) == ("cc-by-nc-4.0", BIBTEX)
    assert "README.md" not in story(catalog).model["files"]  # no number comes of it
    head, page = card_of(catalog, tmp_path / "hub" / "org" / "pack")
    assert head["license"] == "cc-by-nc-4.0"
    assert "**Not for commercial use** is what comes from: model (cc-by-nc-4.0)" in page
    assert f"```bibtex\n{BIBTEX}\n```" in page


def test_an_open_licence_over_bound_sources_does_not_stand_alone(model: Path, tmp_path: Path, capsys: Capture) -> None:
    (model / "README.md").write_text("---\nlicense: cc_by_nc_4.0\n---\n")
    tiny.photographs(tmp_path, count=2)
    catalog = mined_by(tmp_path, model)
    repository = tmp_path / "hub" / "org" / "pack"
    for word in ("none", "n/a", " None "):
        assert tiny.run("publish", catalog, repository, "--version", "1.0.0", "--licence", word) == 2
        assert "nothing was published" in capsys.readouterr().err
    assert not (tmp_path / "hub" / "datasets").exists()
    head, page = card_of(catalog, repository, "--licence", "cc-by-4.0")
    assert head["license"] == "other" and head["license_name"] == "cc-by-4.0-with-non-commercial-sources"
    assert "This pack: cc-by-4.0." in page and "(cc_by_nc_4.0)" in page.replace("&#95;", "_")


def test_the_terms_of_the_built_in_model_are_known_and_a_silent_model_has_none(model: Path, tmp_path: Path) -> None:
    tiny.photographs(tmp_path, count=1)
    found = []
    for reference in ("builtin", str(model)):
        recipe = load_recipe(tiny.recipe(tmp_path, Path(reference)))
        denoiser = open_model(recipe.model)
        found.append(provenance(recipe, denoiser, load_dataset(recipe, denoiser.info.image_shape)).model)
    assert found[0]["licence"] == "apache-2.0"
    assert not {"licence", "citation"} & found[1].keys()


@pytest.mark.parametrize("kind", [afhq, celebamask, cifar, classes, ffhq, flowers, lsun, metfaces])
def test_what_a_data_set_asks_to_be_cited_is_a_whole_entry_of_bibtex(kind: Any) -> None:
    entry: str = kind.CITATION
    sources = [found for found in vars(kind).values() if isinstance(found, type) and issubclass(found, Source)]
    own = [source for source in sources if source.__module__ == kind.__name__]
    assert own and all(source.citation == entry for source in own if source is not classes.ClassFoldersSource)
    assert re.match(r"@\w+\{[\w-]+,\n", entry) and entry.endswith("\n}")
    assert entry.count("{") == entry.count("}")
    assert {"title", "author", "year"} <= set(re.findall(r"^  (\w+)=", entry, re.MULTILINE))


def test_no_token_of_a_recipe_a_data_set_or_a_model_is_published(model: Path, tmp_path: Path, capsys: Capture) -> None:
    (model / "README.md").write_text(f"---\nlicense: 'mit, see https://x.org/a?token={TOKENS[0]}'\n---\n")
    tiny.photographs(tmp_path, count=2)
    data = {"kind": "folder", "path": "photos", "masks": "masks"}
    data["licence"] = f'by letter: curl -H "Authorization: Bearer {TOKENS[1]}" https://u:secretpass@x.org'
    catalog = mined_by(tmp_path, model, dataset=data, name=f"tiny-{TOKENS[2]}")
    card_of(catalog, tmp_path / "hub" / "org" / "pack", "--licence", f"mit {TOKENS[1]}")
    files = [path for path in (tmp_path / "hub").rglob("*") if path.is_file()]
    assert {"manifest.json", "README.md"} <= {path.name for path in files}
    for path in files:
        content = path.read_bytes()
        assert not [token for token in (*TOKENS, "secretpass") if token.encode() in content], path
    manifest = (snapshot(tmp_path / "hub" / "org" / "pack", "1.0.0") / "manifest.json").read_text()
    assert "by letter: curl" in manifest and "***" in manifest
    assert not [token for token in TOKENS if token in "".join(capsys.readouterr())]


# -- the code of a card ------------------------------------------------------------------------------------------------


def blocks(page: str) -> list[str]:
    return re.findall(r"```python\n(.*?)```", page, re.DOTALL)


@pytest.fixture
def beside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with a picture, and caches of its own."""
    import datasets

    place = tmp_path / "beside"
    place.mkdir()
    monkeypatch.chdir(place)
    monkeypatch.setenv("RHUMB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "datasets")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    datasets.disable_progress_bars()
    tiny.photograph(3, (40, 30)).save(place / "picture.png")
    return place


def test_the_code_of_a_card_runs_as_it_stands_beside_the_hubs_folder(
    mined: Path, tiny_model: Path, beside: Path
) -> None:
    """With the real directions of a small catalog, and its real model under the name that the card calls it."""
    (beside / tiny_model.name).symlink_to(tiny_model)
    _, page = card_of(mined / "catalog", beside / "my-hub" / "org" / "pack")
    assert str(beside) not in page
    assert "`my-hub` is the folder of the hub and `tiny` is the folder of the model" in page
    applied, tables = blocks(page)
    assert len(applied.strip().splitlines()) == 5
    exec(applied, {})
    with Image.open("edited.png") as edited:
        assert edited.size == (16, 16)
    found: dict[str, Any] = {}
    exec(tables, found)
    rows = manifests.load(snapshot(beside / "my-hub" / "org" / "pack", "1.0.0")).rows("directions")
    assert len(found["directions"]) == rows > len(found["one_region"]) > 0
    command = next(line for line in page.splitlines() if line.startswith("rhumb pull "))
    assert tiny.run(*command.replace('"', "").split()[1:]) == 0
    assert manifests.load(beside / "CATALOG").rows("directions") == len(found["one_region"])


def test_what_is_pulled_from_a_hub_at_a_url_loads_as_the_card_says(mined: Path, beside: Path) -> None:
    repository = "memory://cards/hub/org/pack"
    assert tiny.run("publish", mined / "catalog", repository, "--version", "1.0.0") == 0
    assert versions(repository) == ["1.0.0"]
    assert tiny.run("pull", f"{repository}@1.0.0", "--region", "eye", "--out", "CATALOG") == 0
    page = usage(Use(PackInfo(repository="org/pack", version="1.0.0"), "memory://cards/hub", {}, "eye", "x"))
    assert f'rhumb pull {repository}@1.0.0 --region "eye" --out CATALOG' in page
    found: dict[str, Any] = {}
    exec(blocks(page)[1], found)
    assert len(found["directions"]) == manifests.load(Path("CATALOG")).rows("directions") > 0


def test_the_code_for_the_built_in_pack_finds_its_folder_and_its_model(beside: Path) -> None:
    folder = builtin_folder() / "hub" / "datasets" / "builtin" / "faces64" / "refs" / "tags"
    version = sorted(path.name for path in folder.iterdir())[-1].removeprefix("v")
    pack, config = PackInfo(repository="builtin/faces64", version=version), part_name("faces64", "nose")
    page = usage(Use(pack, "data/builtin/hub", {"reference": "builtin"}, "nose", config.replace(".", "_")))
    applied, tables = blocks(page)
    assert len(applied.strip().splitlines()) == 5
    exec(applied, {})
    with Image.open("edited.png") as edited:
        assert edited.size == (64, 64)
    found: dict[str, Any] = {}
    exec(tables, found)
    assert set(found["one_region"]["region"]) == {"nose"}
    assert len(found["directions"]) > len(found["one_region"])
