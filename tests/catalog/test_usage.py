"""The code on a card names the pack and its model so that it runs, and nothing that is nobody's business."""

from __future__ import annotations

import re
from typing import Any

import pytest

from catalog.hub.usage import Use, usage
from catalog.manifest import PackInfo

PACK = PackInfo(repository="org/pack", version="1.2.0")


def used(hub: str | None = None, pack: PackInfo = PACK, **model: Any) -> str:
    page = usage(Use(pack, hub, model, "left eye", "faces_left-eye"))
    for code in re.findall(r"```python\n(.*?)```", page, re.DOTALL):
        compile(code, "card", "exec")
    return page


@pytest.mark.parametrize(
    ("hub", "name"),
    [
        (None, "org/pack"), ("/home/alice/hubs/mine", "mine/org/pack"), ("relative/mine/", "mine/org/pack"),
        ("/home/alice", "HUB/org/pack"), ('/srv/"; import os; "', "HUB/org/pack"), ("/srv/`x`", "HUB/org/pack"),
        ("s3://bucket/hub", "s3://bucket/hub/org/pack"), ("s3://u:secret@bucket/hub", "s3://bucket/hub/org/pack"),
        ('s3://bucket/"+x', "HUB/org/pack"),
    ],
)  # fmt: skip
def test_a_pack_is_called_by_its_hub_without_local_paths_and_passwords(hub: str | None, name: str) -> None:
    page = used(hub, reference="owner/model", commit="0" * 40)
    assert f'DirectionPack.from_pretrained("{name}", revision="v1.2.0", region="left eye")' in page
    assert f'rhumb pull {name}@1.2.0 --region "left eye"' in page
    assert not re.search(r"alice|secret|import os", page)
    assert ("is the folder of the hub" in page) is (hub is not None and "://" not in hub)


def test_tables_are_loaded_from_where_they_are() -> None:
    assert 'load_dataset("org/pack", "faces_left-eye", revision="v1.2.0", split="train")' in used(None)
    assert 'Path("mine/datasets/org/pack")' in used("/srv/mine")
    assert 'load_dataset("CATALOG", "directions", split="train")' in used("s3://bucket/hub")
    shipped = used("data/builtin/hub", PackInfo(repository="builtin/faces64", version="1.0.0"), reference="builtin")
    assert 'builtin_folder() / "hub/datasets/builtin/faces64"' in shipped
    assert 'from_pretrained("builtin/faces64", ' in shipped and "hub/builtin" not in shipped


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        ({"reference": "builtin", "commit": None}, 'builtin_folder() / "denoiser"'),
        ({"reference": "owner/model", "commit": "0" * 40}, '"owner/model"'),
        ({"reference": "owner/model"}, '"owner/model"'),
        ({"reference": "owner/model@v2", "commit": "0" * 40}, '"owner/model", revision="v2"'),
        ({"reference": "owner/model", "commit": None}, '"model"'),
        ({"reference": "ffhq-p2", "commit": None}, '"ffhq-p2"'),
        ({"reference": "/home/alice/ffhq-p2", "commit": None}, '"ffhq-p2"'), ({}, '"MODEL"'),
        ({"reference": '"); import os; ("'}, '"MODEL"'),
    ],
)  # fmt: skip
def test_the_model_is_named_as_diffusers_finds_it(model: dict[str, Any], expected: str) -> None:
    page = used(None, **model)
    assert f"DiffusionPipeline.from_pretrained({expected})" in page
    assert not re.search(r"alice|import os", page)
    assert len(re.findall(r"```python\n(.*?)```", page, re.DOTALL)[0].strip().splitlines()) == 5
