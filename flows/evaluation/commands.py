"""What `rhumb evaluate` does."""

from __future__ import annotations

import os
from argparse import Namespace
from collections.abc import Sequence

from flows.console import answer, say, table
from flows.evaluation.captions import captions_of
from flows.evaluation.evaluating import Evaluated, Wanted
from flows.evaluation.evaluating import evaluate as run
from flows.evaluation.experiments import EXPERIMENTS
from flows.evaluation.kept import strict
from flows.evaluation.tables import FIRST, SECOND, shown
from flows.named_recipes import open_recipe
from flows.plain import plain
from pipeline.errors import InputError
from pipeline.methods.choices import METHODS


def evaluate(arguments: Namespace) -> int:
    """`rhumb evaluate [RECIPE] --out FOLDER`. Exit code 0: a target that was missed is an answer, not a failure."""
    if arguments.list:
        _list(arguments.json)
        return 0
    recipe = open_recipe(arguments.recipe)
    workers = _workers() if arguments.workers is None else arguments.workers
    if arguments.tune:
        from flows.evaluation.tuning import show, tune

        _only_tuning(arguments)
        tuned = tune(recipe, arguments.out, arguments.budget, workers)
        answer(plain(tuned), arguments.json, lambda: show(tuned))
        return 0
    wanted = Wanted(
        methods=_named(arguments.method, list(METHODS), list(METHODS)),
        figures=_named(arguments.figure, list(EXPERIMENTS), []),
        quick=arguments.quick,
        images=arguments.images,
        choosing=arguments.choosing,
        workers=workers,
        backbones=arguments.backbones,
        captions=captions_of(arguments.clip, arguments.caption, recipe.region_names),
    )
    result = run(recipe, arguments.out, wanted)
    answer(strict(result), arguments.json, lambda: _show(result))
    return 0


def _only_tuning(arguments: Namespace) -> None:
    """Raises InputError for options that a search would ignore."""
    names = ("quick", "method", "figure", "images", "choosing", "backbones", "clip", "caption")
    given = [f"--{name}" for name in names if getattr(arguments, name) not in (None, False, [])]
    if given:
        raise InputError("--tune", f"with {', '.join(given)}", "--out, --budget and --workers beside it, and no more")


def _workers() -> int:
    """One process a core; one in all where a GPU does the work."""
    import torch

    return 1 if torch.cuda.is_available() else len(os.sched_getaffinity(0))


def _named(given: Sequence[str], every: list[str], default: list[str]) -> list[str]:
    """The names asked for: "all" are all there are, "none" none."""
    if not given:
        return default
    if "none" in given:
        return []
    return every if "all" in given else list(dict.fromkeys(given))


def _list(as_json: bool) -> None:
    methods = [(name, kind.about.title, kind.about.paper, kind.about.supervision) for name, kind in METHODS.items()]
    figures = [(name, experiment.title, experiment.source) for name, experiment in EXPERIMENTS.items()]

    def text() -> None:
        table("methods", ("name", "what", "paper", "supervision"), methods)
        table("figures", ("name", "what", "measures again"), figures)

    names = {"methods": [row[0] for row in methods], "figures": [row[0] for row in figures]}
    answer(names, as_json, text)


def _show(result: Evaluated) -> None:
    if result.lines:
        columns = FIRST + SECOND
        rows = [
            (each.name, each.edits, *(shown(getattr(each, c.name), c.digits) for c in columns)) for each in result.lines
        ]
        table("comparison", ("method", "edits", *(c.title for c in columns)), rows)
        bars = [(t["name"], f"{t['value']:.3g}", t["target"], "yes" if t["met"] else "NO") for t in result.targets]
        if bars:
            table("targets", ("target", "measured", "wanted", "met"), bars)
    for sentence in (*result.remarks, *(said for each in result.figures.values() for said in each)):
        say(sentence)
    for name, reason in result.absent.items():
        say(f"{name} was not measured: {reason}")
    say(f"-> {result.folder / 'index.html'}")
