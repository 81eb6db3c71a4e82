from __future__ import annotations

import copy
import functools
from pathlib import Path
from typing import Any, get_args

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

import flows.recipe
import pipeline.jive_ranks
from catalog.records import content_id
from flows.datasets.builtin import BuiltinDataset
from flows.datasets.folder import FolderDataset
from flows.paths import builtin_recipe
from flows.recipe import load_recipe, parse_recipe
from pipeline.errors import InputError, NotFoundError

TEXT = st.sampled_from(["", "a", "kind", "builtin", "folder", "path", "mouth"])
EXAMPLE = """
name: faces64-eyes-mouth
model: builtin
dataset: {kind: builtin, name: faces64, split: mine, limit: 24}
regions: [left_eye, right_eye, mouth, hair]
method:
  timestep: 0.35
  inversion_steps: 100
  loco: {rank: 5, null_rank: 30}
  jive: {rank: 20, joint_rank: 30, individual_rank: 3, scale: true}
  edit: {strength: visible, h_window: [0.35, 0.0]}
seed: 0
"""


def example() -> dict[str, Any]:
    content: dict[str, Any] = yaml.safe_load(EXAMPLE)
    return content


def changed(path: str, value: object) -> dict[str, Any]:
    content = example()
    *parents, last = path.split(".")
    part = content
    for key in parents:
        part = part[key]
    part[last] = value
    return content


def test_the_example_is_read_as_written() -> None:
    recipe = parse_recipe(example())
    assert recipe.regions == ("left_eye", "right_eye", "mouth", "hair")
    assert isinstance(recipe.dataset, BuiltinDataset)
    assert recipe.dataset.limit == 24
    assert recipe.method.loco.null_rank == 30
    assert recipe.method.edit.h_window == (0.35, 0.0)


def test_the_demo_recipe_asks_for_24_images_and_4_regions() -> None:
    recipe = load_recipe(builtin_recipe())
    assert recipe.dataset.limit == 24
    assert recipe.regions == ("left_eye", "right_eye", "mouth", "hair")
    with pytest.raises(NotFoundError, match="faces64-demo"):
        builtin_recipe("faces64-dmo")


def test_the_rules_of_a_recipe_are_those_of_the_pipeline() -> None:
    assert get_args(flows.recipe.Rule) == get_args(pipeline.jive_ranks.Rule)


def test_every_setting_has_a_default_but_name_dataset_and_regions() -> None:
    recipe = parse_recipe({"name": "a", "dataset": {"kind": "builtin"}, "regions": ["mouth"]})
    assert recipe.model.reference == "builtin"
    assert recipe.method.inversion_steps == 100


@pytest.mark.parametrize(
    ("path", "wrong", "right"),
    [
        ("", "regoins", "regions"),
        ("method", "timstep", "timestep"),
        ("method", "warmstart", "warm_start"),
        ("method.loco", "nullrank", "null_rank"),
        ("method.jive", "individual_rnk", "individual_rank"),
        ("method.edit", "h_windw", "h_window"),
        ("method.loco", "varient", "variant"),
        ("method.jive", "orthogonal_individual", "orthogonal_individuals"),
        ("method.jive", "rank_rul", "rank_rule"),
        ("method.edit", "etta", "eta"),
        ("method.edit", "eta_shar", "eta_share"),
        ("dataset", "splt", "split"),
    ],
)
def test_a_misspelt_key_names_where_it_stands_and_the_nearest_right_one(path: str, wrong: str, right: str) -> None:
    content = example()
    part = content
    for key in path.split(".") if path else []:
        part = part[key]
    part[wrong] = part.pop(right, None)
    with pytest.raises(InputError) as caught:
        parse_recipe(content)
    assert f"Did you mean '{right}'?" in str(caught.value)
    assert caught.value.field == f"recipe: {path}.{wrong}".replace(": .", ": ")


@pytest.mark.parametrize(
    ("path", "value", "field", "expected"),
    [
        ("method.timestep", 1.5, "recipe: method.timestep", "less than 1"),
        ("method.timestep", 0, "recipe: method.timestep", "greater than 0"),
        ("method.loco.rank", 0, "recipe: method.loco.rank", "greater than or equal to 1"),
        ("method.loco.rank", "five", "recipe: method.loco.rank", "valid integer"),
        ("method.edit.h_window", [0.0, 0.35], "recipe: method.edit.h_window", "start > end"),
        ("method.edit.h_window", [0.6, 0.0], "recipe: method", "at or below timestep"),
        ("method.edit.strength", "visble", "recipe: method.edit.strength", "'visible'"),
        ("method.edit.strength", -1.0, "recipe: method.edit.strength", "visible"),
        ("method.edit.convention", "asyrp", "recipe: method.edit.convention", "'both' or 'x0'"),
        ("method.edit.eta", 1.5, "recipe: method.edit.eta", "less than or equal to 1"),
        ("method.edit.eta_share", 0.0, "recipe: method.edit.eta_share", "greater than 0"),
        ("method.loco.variant", "within", "recipe: method.loco.variant", "'projected' or 'inside'"),
        ("method.jive.orthogonal_individuals", "perhaps", "recipe: method.jive.orthogonal_individuals", "boolean"),
        ("method.jive.joint_rank", "atuo", "recipe: method.jive.joint_rank", "'auto' or a valid integer"),
        ("method.jive.joint_rank", -1, "recipe: method.jive.joint_rank", "'auto' or greater than or equal to 0"),
        ("method.jive.rank_rule", "angels", "recipe: method.jive.rank_rule", "'permutation', 'angles' or 'product'"),
        ("method.jive.individual_rank", 0, "recipe: method.jive.individual_rank", "'auto' or greater than"),
        ("method.warm_start", "perhaps", "recipe: method.warm_start", "boolean"),
        ("method.tolerance", 0.0, "recipe: method.tolerance", "greater than 0"),
        ("dataset.kind", "bultin", "recipe: dataset.kind", "builtin, folder"),
        ("dataset.name", "faces65", "recipe: dataset.name", "'faces64'"),
        ("dataset.limit", 0, "recipe: dataset.limit", "greater than or equal to 1"),
        ("regions", [], "recipe: regions", "at least 1"),
        ("regions", ["mouth", "mouth"], "recipe: regions", "every region once"),
        ("name", "../elsewhere", "recipe: name", "pattern"),
        ("seed", -1, "recipe: seed", "greater than or equal to 0"),
    ],
)
def test_a_value_that_does_not_fit_names_field_found_and_expected(
    path: str, value: object, field: str, expected: str
) -> None:
    with pytest.raises(InputError) as caught:
        parse_recipe(changed(path, value))
    assert caught.value.field == field
    assert expected in caught.value.expected
    assert str(caught.value).startswith(f"{field}: found ")


def test_a_missing_key_and_a_missing_kind_are_named() -> None:
    content = example()
    del content["regions"]
    with pytest.raises(InputError, match="recipe: regions: found nothing"):
        parse_recipe(content)
    with pytest.raises(InputError, match="dataset.kind"):
        parse_recipe(changed("dataset", {"name": "faces64"}))


@pytest.mark.parametrize("content", [None, [], "text", 3])
def test_what_is_not_a_mapping_is_refused(content: object) -> None:
    with pytest.raises(InputError, match="expected a mapping"):
        parse_recipe(content)


def test_files_that_are_no_recipes_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="not a file"):
        load_recipe(tmp_path / "none.yaml")
    broken = tmp_path / "broken.yaml"
    broken.write_text("name: [a\nseed: 0\n")
    with pytest.raises(InputError, match="unreadable YAML"):
        load_recipe(broken)
    broken.write_text("name: !!python/object/apply:os.getcwd []\n")
    with pytest.raises(InputError, match="unreadable YAML"):
        load_recipe(broken)


def test_paths_start_at_the_recipe_and_its_place_does_not_change_the_fingerprint(tmp_path: Path) -> None:
    content = changed("dataset", {"kind": "folder", "path": "photos", "masks": "masks"})
    prints = set()
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        file = tmp_path / name / "recipe.yaml"
        file.write_text(yaml.safe_dump(content))
        recipe = load_recipe(file)
        assert isinstance(recipe.dataset, FolderDataset)
        assert recipe.resolve(recipe.dataset.path) == tmp_path / name / "photos"
        prints.add(recipe.fingerprint())
    assert len(prints) == 1


def test_the_fingerprint_follows_every_setting_but_the_name_and_the_number_of_images() -> None:
    base = parse_recipe(example()).fingerprint()
    for path, value in (("name", "other"), ("dataset.limit", 23)):
        assert parse_recipe(changed(path, value)).fingerprint() == base
    spelled_out = copy.deepcopy(example())
    del spelled_out["seed"], spelled_out["method"]["jive"]["scale"]  # the defaults
    assert parse_recipe(spelled_out).fingerprint() == base
    others = [("seed", 1), ("method.timestep", 0.4), ("method.loco.null_rank", 29), ("regions", ["hair"])]
    others += [
        ("model", "elsewhere"),
        ("method.edit.strength", 3.0),
        ("method.edit.steps", 50),
        ("method.tolerance", 1e-3),
        ("method.jive.joint_rank", "auto"),
        ("method.jive.individual_rank", "auto"),
        *QUIET,
    ]
    prints = {parse_recipe(changed(path, value)).fingerprint() for path, value in others}
    assert len(prints | {base}) == len(others) + 1


QUIET: list[tuple[str, object]] = [
    ("method.warm_start", True),
    ("method.loco.variant", "inside"),
    ("method.jive.orthogonal_individuals", True),
    ("method.jive.rank_rule", "product"),
    ("method.edit.eta", 1.0),
    ("method.edit.eta_share", 0.5),
]


def test_keys_at_their_default_leave_ids_as_they_were_before_these_keys() -> None:
    base = parse_recipe(example())
    assert base.fingerprint() == "9e47706b67d053ee5d7e78b1f38d30b9"
    assert content_id(base.numerical()) == "a729789f3c4c896d1c71f62dfba670b4"
    for path, value in QUIET:
        default = functools.reduce(getattr, path.split("."), base)
        assert parse_recipe(changed(path, default)).numerical() == base.numerical()
        other = parse_recipe(changed(path, value))
        assert other.numerical() != base.numerical()
        assert parse_recipe(other.model_dump(mode="json")) == other


@pytest.mark.parametrize(("written", "read"), [("4GB", 4 * 10**9), ("1.5 MB", 1_500_000), (700, 700), (None, None)])
def test_memory_is_a_number_of_bytes_and_changes_no_id(written: object, read: int | None) -> None:
    recipe = parse_recipe(changed("method.memory", written))
    assert recipe.method.memory == read
    base = parse_recipe(example())
    assert (recipe.fingerprint(), recipe.numerical()) == (base.fingerprint(), base.numerical())


@pytest.mark.parametrize("written", ["much", "4 XB", 0, -1, "0"])
def test_memory_that_is_no_size_is_named(written: object) -> None:
    with pytest.raises(InputError, match="method.memory"):
        parse_recipe(changed("method.memory", written))


@settings(deadline=None, max_examples=60)
@given(
    st.dictionaries(
        st.sampled_from(["name", "model", "dataset", "regions", "method", "seed", "sede"]),
        st.recursive(
            st.none() | st.booleans() | st.integers() | st.floats() | TEXT,
            lambda inner: st.lists(inner, max_size=2) | st.dictionaries(TEXT, inner, max_size=2),
            max_leaves=4,
        ),
    )
)
def test_any_mapping_is_read_or_refused_with_the_one_error(content: dict[str, Any]) -> None:
    try:
        recipe = parse_recipe(content)
    except InputError as error:
        assert error.field.startswith("recipe: ")
    else:
        assert recipe.regions
