"""What the README says is so: its commands run, its recipes load, its tree is what the demo leaves.

Every fenced `bash` and `python` block is executed, in order, in one empty folder that holds a small demo; those under
`<!-- not run: reason -->` are only parsed. `yaml` blocks under `<!-- save as: FILE -->` are checked as they stand, and
saved with a tiny model and small ranks in place of what takes minutes.
"""

from __future__ import annotations

import argparse
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import chdir
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import datasets
import pytest
import yaml
from PIL import Image
from pydantic import BaseModel

from catalog.reader import Catalog
from flows.cli import build_parser, main
from flows.datasets.kinds import KINDS
from flows.recipe import Method, Recipe, load_recipe, parse_recipe
from tests.pipeline.tiny_models import tiny_pipeline_folder

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
TERMS = {
    "direction", "region", "x-space", "h-space", "singular", "local", "joint", "individual", "gain", "leakage",
    "kept share", "ROIR", "visible strength", "homogeneity", "pack",
}  # fmt: skip
FAST_METHOD = {
    "inversion_steps": 6,
    "tolerance": 0.2,
    "loco": {"rank": 1, "null_rank": 2},
    "jive": {"rank": 2, "joint_rank": 2, "individual_rank": 1},
    "edit": {"steps": 3},
}
PLACEHOLDERS = {
    "CHUNK": "[0-9a-f]{32}", "NAME": "(x|h|effect)", "DIGEST": "[0-9a-f]{16}", "REVISION": "[0-9a-f]{40}",
    "SHA256": "[0-9a-f]{64}", r"\.\.\.": ".+",
}  # fmt: skip


@dataclass(frozen=True)
class Block:
    """One fenced block: its language, its text, and the HTML comment right above it ("" without one)."""

    language: str
    text: str
    mark: str
    line: int

    @property
    def runs(self) -> bool:
        return self.language in ("bash", "python") and not self.mark.startswith("not run")


def blocks_of(markdown: str) -> list[Block]:
    """All fenced blocks, in order."""
    found = []
    pattern = r"(?:^<!-- (?P<mark>[^\n]*) -->\n)?^```(?P<language>\w*)\n(?P<text>.*?)^```$"
    for match in re.finditer(pattern, markdown, re.MULTILINE | re.DOTALL):
        line = markdown.count("\n", 0, match.start("text"))
        found.append(Block(match["language"], match["text"], match["mark"] or "", line))
    return found


BLOCKS = blocks_of(README)


def examples() -> list[list[str]]:
    """Every `rhumb` command line of the bash blocks, split into arguments."""
    text = "\n".join(block.text for block in BLOCKS if block.language == "bash")
    return [shlex.split(line, comments=True) for line in re.findall(r"\brhumb ([a-z][^|\n]*)", text)]


def parsers() -> dict[str, argparse.ArgumentParser]:
    """The parser of every command."""
    action = next(a for a in build_parser()._actions if isinstance(a, argparse._SubParsersAction))
    return dict(action.choices)


def made_fast(text: str) -> str:
    """A recipe of the README with a tiny model, which has no licence of its own, two images and small ranks."""
    recipe = yaml.safe_load(text)
    recipe.update(model="tiny", method=FAST_METHOD, licence="apache-2.0")
    recipe["dataset"]["limit"] = 2
    return yaml.safe_dump(recipe)


def run_shell(block: Block, folder: Path) -> None:
    """Run a bash block as a user would, with the commands of this Python's environment."""
    environment = {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "HF_HOME": str(folder / ".hf"),
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
    }
    done = subprocess.run(
        ["bash", "-euxo", "pipefail", "-c", block.text],
        cwd=folder, env=environment, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, f"README.md:{block.line}\n{done.stdout}\n{done.stderr}"


def run_block(block: Block, folder: Path) -> None:
    """Run one block; a python block starts afresh, as a new script or notebook does."""
    if block.mark.startswith("save as: "):
        (folder / block.mark.removeprefix("save as: ")).write_text(made_fast(block.text))
    elif block.runs and block.language == "bash":
        run_shell(block, folder)
    elif block.runs:
        exec(compile(block.text, f"README.md:{block.line}", "exec"), {"__name__": "__main__"})


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A working directory in which the demo has run, small and fast."""
    where = tmp_path_factory.mktemp("readme")
    tiny_pipeline_folder(where / "tiny", size=16)
    recipe = {"name": "small", "dataset": {"kind": "builtin"}, "regions": ["left_eye", "mouth"]}
    (where / "small.yaml").write_text(made_fast(yaml.safe_dump(recipe)))
    with chdir(where):
        assert main(["demo", "--recipe", "small.yaml", "--json"]) == 0
        yield where


def test_the_tree_is_what_the_demo_leaves(folder: Path) -> None:
    (tree,) = [block for block in BLOCKS if block.mark == "tree"]
    parents: list[str] = []
    patterns = []
    for line in tree.text.splitlines():
        name = line.split()[0]
        depth = (len(line) - len(line.lstrip())) // 2
        parents[depth:] = [name]
        if not name.endswith("/"):
            patterns.append("".join(parents))
    expressions = []
    for pattern in patterns:
        expression = re.escape(pattern)
        for word, meaning in PLACEHOLDERS.items():
            expression = expression.replace(word, meaning)
        expressions.append(re.compile(expression))
    paths = [path.relative_to(folder) for path in (folder / "rhumb-demo").rglob("*") if path.is_file()]
    files = [path.as_posix() for path in paths if not any(part.startswith(".") for part in path.parts)]
    assert [file for file in files if not any(e.fullmatch(file) for e in expressions)] == []
    assert [e.pattern for e in expressions if not any(e.fullmatch(file) for file in files)] == []


def test_every_block_of_the_readme_runs(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(folder / ".hf"))
    for block in BLOCKS:
        run_block(block, folder)
    for picture in ("face.png", "edited.png", "mouth.png"):
        with Image.open(folder / picture) as opened:
            assert opened.mode == "RGB"
    assert (folder / "face_mouth.png").is_file()
    assert (folder / "my-report" / "index.html").is_file()
    for name in ("my-catalog", "my-pulled-catalog", "photos-catalog"):
        with Catalog.open(folder / name) as catalog:
            assert catalog.manifest.rows("images") == 2, name
            assert set(catalog.directions().column("region").to_pylist()) == {"left_eye", "mouth"}, name


def test_blocks_that_do_not_run_say_why() -> None:
    skipped = [block for block in BLOCKS if block.language in ("bash", "python") and not block.runs]
    assert len(skipped) < sum(block.runs for block in BLOCKS)
    assert all(block.language == "bash" and len(block.mark) > len("not run: ") for block in skipped)


def test_every_command_has_an_example_that_parses() -> None:
    used = {build_parser().parse_args(example).command for example in examples()}
    assert used == set(parsers())


def test_every_command_and_option_that_is_mentioned_exists() -> None:
    known = parsers()
    assert set(re.findall(r"`rhumb ([a-z]+)", README)) <= set(known)
    options = {option for parser in known.values() for option in parser._option_string_actions}
    own = {"--quick"}  # of the benchmarks
    assert set(re.findall(r"(?<![\w-])--[a-z][a-z-]*", re.sub(r"<!--|-->", "", README))) <= options | own


def test_every_make_target_and_module_that_is_mentioned_exists() -> None:
    make = shutil.which("make")
    assert make is not None
    targets = set(re.findall(r"^make ([a-z]+)|`make ([a-z]+)", README, re.MULTILINE))
    names = sorted({one or other for one, other in targets})
    assert {"demo", "test", "help"} <= set(names)
    clean = {key: value for key, value in os.environ.items() if not key.startswith("MAKE") and key != "MFLAGS"}
    done = subprocess.run([make, "-n", *names], cwd=ROOT, env=clean, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    modules = re.findall(r"python -m (tests[\w.]+)", README)
    assert modules and all(find_spec(module) is not None for module in modules)


def missing_keys(model: type[BaseModel], values: dict[str, Any], path: str = "") -> list[str]:
    """Keys of a recipe model that `values` lacks; a data set is checked against the kind that it names."""
    missing = []
    for name, field in model.model_fields.items():
        if name not in values:
            missing.append(path + name)
        elif isinstance(values[name], dict):
            inner: Any = KINDS[values[name]["kind"]] if name == "dataset" else field.annotation
            assert isinstance(inner, type) and issubclass(inner, BaseModel)
            missing += missing_keys(inner, values[name], f"{path}{name}.")
    return missing


PHOTOS_LEAVE_OUT = [
    *(f"dataset.{key}" for key in ("licence", "resize", "nested", "label_maps", "labels")), "method", "gates",
    "licence", "seed",
]  # fmt: skip


@pytest.mark.parametrize(("name", "left_out"), [("recipe.yaml", []), ("photos.yaml", PHOTOS_LEAVE_OUT)])
def test_the_recipes_are_valid_and_show_every_key(tmp_path: Path, name: str, left_out: list[str]) -> None:
    (block,) = [block for block in BLOCKS if block.mark == f"save as: {name}"]
    (tmp_path / name).write_text(block.text)
    assert load_recipe(tmp_path / name).name
    assert missing_keys(Recipe, yaml.safe_load(block.text)) == left_out


def test_the_full_recipe_explains_every_key_and_shows_the_defaults() -> None:
    (block,) = [block for block in BLOCKS if block.mark == "save as: recipe.yaml"]
    bare = [line for line in block.text.splitlines() if "#" not in line]
    assert bare == ["dataset:", "method:"]
    assert parse_recipe(yaml.safe_load(block.text)).method == Method()


def test_parts_of_recipes_are_valid_and_every_kind_of_data_set_is_named() -> None:
    parts = [yaml.safe_load(block.text) for block in BLOCKS if block.language == "yaml" and not block.mark]
    assert {key for part in parts for key in part} == {"model", "regions"}
    for part in parts:
        parse_recipe({"name": "a", "dataset": {"kind": "builtin"}, "regions": ["mouth"], **part})
    table = README.split("| kind |")[1].split("\n\n")[0]
    assert set(KINDS) - {"builtin"} <= set(re.findall(r"`([a-z0-9-]+)`", table))


def test_every_term_of_the_field_is_explained() -> None:
    terms = README.split("## Terms\n")[1].split("\n## ")[0]
    assert set(re.findall(r"\*\*([^*]+)\*\*", terms)) >= TERMS


def test_every_link_within_the_repository_leads_somewhere() -> None:
    links = [link for link in re.findall(r"\]\(([^)]+)\)", README) if "://" not in link]
    assert links and all((ROOT / link).exists() for link in links)


def test_a_block_is_found_with_its_mark_and_language() -> None:
    found = blocks_of("a\n<!-- not run: why -->\n```bash\nx\n```\n\n```python\ny\n```\n```\nz\n```\n")
    assert [(b.language, b.text, b.mark, b.runs) for b in found] == [
        ("bash", "x\n", "not run: why", False), ("python", "y\n", "", True), ("", "z\n", "", False),
    ]  # fmt: skip
