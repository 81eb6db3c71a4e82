"""The card of a pack: found by its YAML, loaded in parts by it, read by people, and never a way in for markup."""

from __future__ import annotations

import html
import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from catalog.card import CardFields
from catalog.hub.arranging import Arranged, arrange
from catalog.hub.card import FIGURES, CardContent, configs, figures_in, pack_card, tags
from catalog.hub.card_safety import check_card
from catalog.hub.citations import citations_of, cited
from catalog.hub.figures import Figures, Group, figures_of
from catalog.hub.licences import (
    carried_over,
    hub_licence,
    may_be_passed_on,
    non_commercial,
    pack_licence,
    sources_of,
    stated,
)
from catalog.hub.parts import part_name
from catalog.hub.portable import portable, portable_text
from catalog.hub.sheets import sheets
from catalog.manifest import Manifest, PackInfo, Provenance
from catalog.reader import Catalog
from catalog.records import Chunk
from catalog.schema import LEFT_OUT
from catalog.writer import CatalogWriter
from tests.catalog.samples import chunk_of, provenance

PACK = PackInfo(repository="org/pack", version="1.2.0")
SCRIPT = "<script>alert(1)</script>"
NASTY = f'"]: {SCRIPT} ![x](javascript:alert(1)) `a`|b --- \u202e\n---\n# h'
FIELDS = CardFields(
    title="Faces", summary="Made of faces.", licence="cc-by-4.0", citations=("LOCO (2024)",), tags=("small",)
)


def told(chunk: Chunk, dataset: str) -> Chunk:
    """The same chunk of another data set."""
    directions = tuple(replace(d, dataset=dataset) for d in chunk.directions)
    return replace(chunk, directions=directions, images=tuple(replace(i, dataset=dataset) for i in chunk.images))


def story(**data: object) -> Provenance:
    plain = provenance()
    return plain.model_copy(update={"data": {**plain.data, **data}})


def written(folder: Path, *chunks: Chunk, of: Provenance | None = None) -> Path:
    with CatalogWriter.create(folder, of or provenance()) as writer:
        for chunk in chunks:
            writer.commit(chunk)
    return folder


def content(
    source: Path, into: Path, fields: CardFields = FIELDS, former: Manifest | None = None, **options: object
) -> tuple[Arranged, CardContent]:
    into.mkdir()
    with Catalog.open(source) as catalog:
        figures = figures_of(catalog)
        pictures = {} if options else sheets(catalog, figures)
        version = arrange(catalog, PACK, former, into, pictures=pictures, **options)  # type: ignore[arg-type]
        return version, CardContent(version.manifest, figures, fields, former)


def halves(card: bytes) -> tuple[dict[str, Any], str]:
    """The YAML, parsed, and the page."""
    _, head, page = card.decode().split("---\n", 2)
    return yaml.safe_load(head), page


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return written(tmp_path / "source", chunk_of("one"), told(chunk_of("two"), "Other set"))


def test_the_card_says_what_is_in_the_pack_and_how_to_use_it(source: Path, tmp_path: Path) -> None:
    version, made = content(source, tmp_path / "new")
    head, page = halves(pack_card(made))
    assert head["license"] == "cc-by-4.0"
    assert head["pretty_name"] == "Faces"
    assert head["size_categories"] == ["n<1K"]
    assert {"rhumb", "editing-directions", "diffusion", "small", "random", "other-set", "hair", "mouth"} <= set(
        head["tags"]
    )
    for words in (
        "Made of faces.", "40 directions on 4 images", "cc-by-4.0", "LOCO (2024)", "This is the first version",
        'DirectionPack.from_pretrained("org/pack", revision="v1.2.0", region="hair")', "rhumb pull org/pack@1.2.0",
        'load_dataset("org/pack", "directions", revision="v1.2.0", split="train")',
        "| random | mouth | x | local | 4 | 2 |",
    ):  # fmt: skip
        assert words in page, words
    used = re.search(r"```python\n(.*?)```", page, re.DOTALL)
    assert used is not None
    assert len(used[1].strip().splitlines()) == 5
    for path in re.findall(r"!\[[^]]*\]\(([^)]*)\)", page):
        assert (tmp_path / "new" / path).is_file()
    assert page.count("](pictures/") == 4 == len(version.manifest.pictures)


def test_the_code_of_a_card_is_python(source: Path, tmp_path: Path) -> None:
    page = halves(pack_card(content(source, tmp_path / "new")[1]))[1]
    for code in re.findall(r"```python\n(.*?)```", page, re.DOTALL):
        compile(code, "card", "exec")


LOADED = """
import sys
from datasets import load_dataset
for name, rows in (pair.split("=") for pair in sys.argv[2:]):
    found = load_dataset(sys.argv[1], name, split="train")
    assert len(found) == int(rows), (name, len(found))
    part = load_dataset(sys.argv[1], name, split="train", streaming=True)
    assert sum(1 for _ in part) == int(rows), name
assert load_dataset(sys.argv[1], split="train").column_names[0] == "direction_id"
"""


def test_every_configuration_loads_just_its_part(tmp_path: Path) -> None:
    """Region names that begin with one another, or end as a shard's name does, are told apart."""
    regions = ("mouth", "mouth-left", "Mouth", "mouth-0123456789abcdef")
    source = written(tmp_path / "source", chunk_of("one", 1, regions), told(chunk_of("two", 2, regions), "Other/set"))
    version, made = content(source, tmp_path / "pack")
    version.with_card(pack_card(made))
    expected = {"directions": 60, "images": 3, "regions": 12, "other-set-24c4f5_all": 40}
    for region in regions:
        own = part_name("random", region).partition(".")[2]
        expected |= {f"random_{own}": 5, f"all_{own}": 15}
        expected[part_name("Other/set", region).replace(".", "_")] = 10
    names = [name for name, _ in configs(made)]
    expected = {
        name if name in names else next(n for n in names if n.endswith("_all")): n for name, n in expected.items()
    }
    assert set(names) >= set(expected)
    assert all(re.fullmatch(r"[a-z0-9_-]+", name) for name in names)
    assert len(set(names)) == len(names)
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "hf"), "HF_DATASETS_OFFLINE": "1"}
    pairs = [f"{name}={rows}" for name, rows in expected.items()]
    command = [sys.executable, "-c", LOADED, str(tmp_path / "pack"), *pairs]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr[-3000:]


def test_markup_from_data_recipes_and_publishers_never_gets_into_a_card(tmp_path: Path) -> None:
    chunk = chunk_of("one", 1, (SCRIPT, "a|b`c`", "[x](javascript:alert(1))"))
    of = story(name=NASTY, licence=NASTY, homepage=f"<img src=x onerror={SCRIPT}>")
    of = of.model_copy(update={"code_version": NASTY, "model": {**of.model, "reference": NASTY}})
    fields = CardFields(
        title=NASTY, summary=NASTY, licence=NASTY, model_licence=NASTY, data_licence=NASTY, citations=(NASTY,),
        tags=(NASTY,), remarks=(NASTY,), changes=(NASTY,),
    )  # fmt: skip
    source = written(tmp_path / "source", told(chunk, "<b>set</b>"), of=of)
    made = content(source, tmp_path / "new", fields)[1]
    card = pack_card(made)
    head, page = halves(card)
    assert not re.search(rb"<[a-zA-Z/!?]", card)
    assert "](javascript:" not in html.unescape(page)
    check_card(card, "README.md")
    assert "\u202e" not in card.decode()
    assert page.count("\n# ") == 1
    assert page.count("```") == 6
    assert set(head) == {
        "license", "license_name", "pretty_name", "tags", "task_categories", "size_categories", FIGURES, "configs"
    }  # fmt: skip
    for code in re.findall(r"```python\n(.*?)```", page, re.DOTALL):
        compile(code, "card", "exec")


def test_the_card_is_the_same_for_the_same_pack_and_does_not_grow_with_its_shards(tmp_path: Path) -> None:
    cards: list[bytes] = []
    for images in (1, 1, 9):
        name = f"{len(cards)}"
        source = written(tmp_path / f"s{name}", *(chunk_of(f"c{i}", 1) for i in range(images)))
        cards.append(pack_card(content(source, tmp_path / f"n{name}")[1]))
    assert cards[0] == cards[1]
    assert abs(len(cards[2]) - len(cards[0])) < 100


def test_a_card_tells_what_has_changed_since_the_version_before(tmp_path: Path) -> None:
    one = written(tmp_path / "one", chunk_of("a", 1), chunk_of("b", 1))
    first, before = content(one, tmp_path / "first")
    worse = chunk_of("c", 3, ("mouth", "nose"))
    worse = replace(worse, directions=tuple(replace(d, gain=8.0) for d in worse.directions))
    two = written(tmp_path / "two", chunk_of("b", 1), worse)
    fields = replace(FIELDS, changes=("ROIR was measured by others.",))
    _, made = content(two, tmp_path / "second", fields, first.manifest)
    page = pack_card(replace(made, before=figures_in(pack_card(before)))).decode()
    for words in (
        "directions: 40; 30 added, 10 dropped", "nose (random): new, 15 directions",
        "hair (random): 5 directions, before 10",
        "| mouth x local (random) | gain | 2 | 8 |", "ROIR was measured by others.",
    ):  # fmt: skip
        assert words in page, words
    unnamed = pack_card(made).decode()
    assert "| gain | 2 | 8 |" not in unnamed


def test_the_figures_that_a_card_keeps_are_read_back_and_nothing_else_is(source: Path, tmp_path: Path) -> None:
    made = content(source, tmp_path / "new")[1]
    found = figures_in(pack_card(made))
    assert found is not None
    assert found.keys() == {group.key for group in made.figures.groups}
    assert found["random", "mouth", "x", "local"].leakage_ratio == 0.25
    group = made.figures.groups[0].plain()
    wrong: tuple[object, ...] = (
        {**group, "gain": "1"},
        {**group, "images": -1},
        {**group, "more": 1},
        {},
        [],
        None,
        {**group, "gain": 1e999},
    )
    for odd in wrong:
        assert Group.parse(odd) is None
    for card in (
        b"",
        b"---\n",
        b"---\n- a\n---\n",
        b"---\nrhumb_figures: [1, {}]\n---\n",
        b"---\n{{{\n---\n",
        b"\xff\xfe",
    ):
        assert figures_in(card) is None


def test_sources_that_forbid_commercial_use_are_named(tmp_path: Path) -> None:
    of = story(name="celebamask-hq", licence="Agreement: non-commercial research only", redistributable=False)
    source = written(tmp_path / "source", chunk_of("a", 1), of=of)
    made = content(source, tmp_path / "new", replace(FIELDS, data_licence="x"), left_out=LEFT_OUT)[1]
    page = halves(pack_card(made))[1]
    assert "Not for commercial use" in page
    assert "celebamask-hq (Agreement: non-commercial research only)" in page
    assert "It comes without pictures of effects, images, latents, masks, previews, since pictures" in page
    assert "](pictures/" not in page


def test_every_source_of_a_merged_catalog_is_named_with_its_licence(tmp_path: Path) -> None:
    sources = [{"name": "a", "licence": "CC0-1.0"}, {"name": "b", "licence": "CC BY-NC 4.0 (B)"}]
    source = written(tmp_path / "source", chunk_of("a", 1), of=story(name="a + b", sources=sources))
    page = halves(pack_card(content(source, tmp_path / "new")[1]))[1]
    assert "b (CC BY-NC 4.0 (B))" in page
    assert "CC0-1.0" in page
    assert "a (CC0" not in page


@pytest.mark.parametrize(
    ("text", "name", "named"),
    [
        ("Apache-2.0", "apache-2.0", None), ("cc-by-4.0", "cc-by-4.0", None), ("MIT", "mit", None),
        ("CC BY-NC-SA 4.0 (NVIDIA Corporation); each picture under its own", "cc-by-nc-sa-4.0", None),
        ("CelebAMask-HQ agreement: non-commercial (https://x.org/a)", "other", "celebamask-hq-agreement"),
        ("several licences: CC BY-NC 4.0; CC BY-NC-SA 4.0", "other", "several-licences"), ("§§", "other", "other"),
        ("cc_by_nc_4.0", "cc-by-nc-4.0", None), ("CC BY\u2011NC\u00a04.0", "cc-by-nc-4.0", None),
        ("Weights: MIT. Images: FFHQ", "other", "mit.-images"), ("weights: MIT", "mit", None),
    ],
)  # fmt: skip
def test_licences_are_called_as_the_hub_knows_them(text: str, name: str, named: str | None) -> None:
    found = hub_licence(text)
    assert found["license"] == name
    assert found.get("license_name") == named
    assert found.get("license_link") in (None, "https://x.org/a")


@pytest.mark.parametrize(
    ("text", "bound"),
    [("CC BY-NC 4.0", True), ("cc-by-nc-sa-2.0", True), ("Non-commercial research", True), ("noncommercial", True),
     ("not for commercial use", True), ("No commercial use", True), ("cc_by_nc_4.0", True), ("research only", True),
     ("non\u2011commercial", True), ("non\u00adcommercial", True), ("CC BY\u2013NC 4.0", True),
     ("For research-use-only", True),
     ("commercial use is strictly prohibited", True), ("may not be used for any commercial purposes", True),
     ("Only for academic purposes", True), ("research and educational use only", True), ("deepfloyd-if-license", True),
     ("Apache-2.0", False), ("ncsa", False), (None, False), ("commercial use allowed", False), ("read-only", False),
     ("without restriction, including commercial use", False), ("no restriction on commercial use", False),
     ("no redistribution", False), ("free for research", False)],
)  # fmt: skip
def test_licences_that_forbid_commercial_use_are_known(text: str | None, bound: bool) -> None:
    assert non_commercial(text) is bound
    if text is not None:
        named = hub_licence(text)
        assert non_commercial(named.get("license_name", named["license"])) is bound  # the name says what the text does


@pytest.mark.parametrize("text", ["", " None ", "n/a", "N.A.", "unknown", "Not stated", "not_specified", "\u2014", 3])
def test_words_that_name_no_licence_are_none(text: object) -> None:
    assert stated(text) is None


def test_a_licence_over_sources_that_forbid_commercial_use_says_so_in_its_name() -> None:
    assert pack_licence("cc-by-4.0", False) == {"license": "cc-by-4.0"}
    assert pack_licence("CC BY-NC 4.0 (NAVER)", True) == {"license": "cc-by-nc-4.0"}
    for own in ("cc-by-4.0", "Weights: published with MIT-licensed code; the card asks for research use only."):
        fields = pack_licence(own, True)
        assert fields["license"] == "other"
        assert non_commercial(fields["license_name"])
    assert len(pack_licence("x" * 200, True)["license_name"]) <= 60


def test_what_model_data_and_masks_ask_to_be_cited_is_found_once_each_and_within_merged_catalogs() -> None:
    inner = [{"name": "a", "citation": "@misc{a}"}, {"name": "b", "citation": "@misc{a} ", "redistributable": False}]
    outer = {"name": "a + b", "sources": inner}, {"name": "c", "mask_model": {"citation": "SAM"}, "licence": "mit"}
    of = story(sources=list(outer))
    of = of.model_copy(update={"model": {**of.model, "citation": "The model (2020)"}})
    assert citations_of(of) == ("The model (2020)", "@misc{a}", "SAM")
    assert [source["name"] for source in sources_of(of)] == ["a", "b", "c"]
    assert not may_be_passed_on(of)
    assert citations_of(story(citation=["no text"], mask_model="none")) == ()


def test_bibtex_stands_in_a_block_that_nothing_in_it_can_end() -> None:
    text = cited(("Plain & <b>bold</b>", f"@misc{{a,\n\n  title={{{NASTY}}},\n\tnote={{\\v{{c}}}}\n}}\n```\n# h"))
    assert text.startswith("- Plain &amp; \u2039b\u203abold")
    block = text[text.index("```bibtex\n") :]
    assert block.count("`") == 6 and block.endswith("\n```")
    assert "\n  note={\\v{c}}\n}" in block and "\u202e" not in block
    assert "](" not in block and "<" not in block
    check_card(text.encode(), "README.md")
    assert cited(()) == "- none given"


def test_a_pack_inherits_the_licence_of_its_sources_where_they_tell() -> None:
    assert carried_over(story(licence="apache-2.0"), "apache-2.0", "apache-2.0") == "apache-2.0"
    assert carried_over(story(licence="CC BY-NC 4.0"), None, None) == "CC BY-NC 4.0"
    assert carried_over(story(licence="mit"), "cc-by-nc-4.0", None) == "cc-by-nc-4.0"
    both = story(sources=[{"licence": "CC BY-NC 4.0"}, {"licence": "CC BY-NC-SA 4.0"}, {"licence": "mit"}])
    assert carried_over(both, "mit", None) == "several licences: CC BY-NC 4.0; CC BY-NC-SA 4.0"
    assert carried_over(story(licence="apache-2.0"), None, None) is None
    assert carried_over(story(licence="apache-2.0"), "mit", None) is None
    assert carried_over(story(licence=None), None, None) is None


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("/home/alice/data/CelebAMask-HQ", "CelebAMask-HQ"), ("~/faces", "faces"), ("~", "local"),
        ("/home/alice", "local"), ("local", "local"),
        ("C:\\Users\\bob\\My faces", "My faces"), ("file:///srv/alice/faces/", "faces"), ("../../alice/faces", "faces"),
        ("data/../../alice/faces", "faces"), ("./faces", "faces"), ("CelebAMask-HQ", "CelebAMask-HQ"),
        ("google/ddpm-ema-celebahq-256", "google/ddpm-ema-celebahq-256"), ("**/*.png", "**/*.png"),
        ("and/or", "and/or"),
        ("OSError: [Errno 2] no such file: '/home/alice/a b/x.png'", "OSError: [Errno 2] no such file: 'x.png'"),
        ("cannot read /mnt/alice/x.png (torn)", "cannot read x.png (torn)"), ("root:/home/alice/x", "root:x"),
        ("agreement (https://github.com/a/b)", "agreement (https://github.com/a/b)"),
        ("https://alice:secret@host/faces", "https://host/faces"), ("s3://bucket/faces?X-Sig=1", "s3://bucket/faces"),
        ('pipe:curl -H "Authorization: Bearer hf_abcdefgh1234" https://x.org/y.tar',
         'pipe:curl -H "Authorization: ***" https://x.org/y.tar'),
        ("why, token=hf_abcdefgh1234", "why, token=***"), ("https://u:p/w@x.org/a", "https://x.org/a"),
        ("/home/alice/hf_abcdefgh1234", "***"), ("hf_abcdefgh1234", "***"),
        ("line\\n/home/alice/x", "line\\nx"), ("why? because", "why? because"), ("1/2", "1/2"), ("", ""),
    ],
)  # fmt: skip
def test_only_the_last_component_of_a_local_path_travels(text: str, expected: str) -> None:
    assert portable_text(text) == expected


def test_a_story_keeps_everything_but_where_things_lay() -> None:
    plain = provenance()
    of = plain.model_copy(
        update={
            "recipe": {
                "dataset": {"path": "/home/alice/faces", "limit": 3},
                "model": "/home/alice/model",
                "regions": ["mouth"],
            },
            "model": {"fingerprint": "m", "reference": "/home/alice/model", "commit": None},
            "data": {"fingerprint": "d", "sources": [{"name": "x", "mask_model": {"reference": "~alice/sam"}}]},
        }
    )
    found = portable(of)
    assert found.recipe == {"dataset": {"path": "faces", "limit": 3}, "model": "model", "regions": ["mouth"]}
    assert found.model == {"fingerprint": "m", "reference": "model", "commit": None}
    assert found.data["sources"] == [{"name": "x", "mask_model": {"reference": "sam"}}]
    assert found.identity() == of.identity()
    accents = "@misc{a, author={{\\v{c}}{\\v{z}}in{\\'o}vi{\\'c}}, url={https://x.org/a/b}"
    entry = accents + ", file={/home/alice/a.pdf}, t={hf_abcdefgh12}}"
    told = of.model_copy(update={"data": {**of.data, "citation": entry}})
    assert portable(told).data["citation"] == accents + ", file={a.pdf}, t={***}}"
    assert "alice" not in found.model_dump_json()


def test_tags_are_short_words_and_few(source: Path, tmp_path: Path) -> None:
    _, made = content(source, tmp_path / "new")
    groups = tuple(replace(made.figures.groups[0], region=f"region {i} " + "x" * 90) for i in range(90))
    found = tags(replace(made, figures=Figures(groups, {})))
    assert len(found) <= 100
    assert all(re.fullmatch(r"[\w.+-]{1,60}", tag) for tag in found)


def test_tags_name_regions_beside_many_data_sets_and_tags_of_the_publisher(source: Path, tmp_path: Path) -> None:
    _, made = content(source, tmp_path / "new")
    one = made.figures.groups[0]
    groups = tuple(replace(one, dataset=f"set-{i:03}", region=f"region-{i % 6}") for i in range(200))
    fields = replace(FIELDS, tags=tuple(f"tag-{i}" for i in range(200)))
    found = tags(replace(made, figures=Figures(groups, {}), fields=fields))
    assert len(found) == 100
    assert {"rhumb", "tag-0", "set-000", *(f"region-{i}" for i in range(6))} <= set(found)


def test_a_data_set_or_region_that_is_called_all_is_told_from_all_of_them(tmp_path: Path) -> None:
    regions = ("mouth", "all")
    chunks = [told(chunk_of(name, 1, regions), name) for name in ("all", "other")]
    made = content(written(tmp_path / "source", *chunks), tmp_path / "pack")[1]
    found = {name: pattern.replace("-" + "?" * 16, "") for name, pattern in configs(made)[3:]}
    assert found == {
        "all-5ef5ef_all-5ef5ef": "directions/all.all.parquet", "all-5ef5ef_mouth": "directions/all.mouth.parquet",
        "other_all-5ef5ef": "directions/other.all.parquet", "other_mouth": "directions/other.mouth.parquet",
        "all_all-5ef5ef": "directions/*.all.parquet", "all_mouth": "directions/*.mouth.parquet",
        "all-5ef5ef_all": "directions/all.*.parquet", "other_all": "directions/other.*.parquet",
    }  # fmt: skip
    assert "`all-5ef5ef_mouth`" in halves(pack_card(made))[1]
