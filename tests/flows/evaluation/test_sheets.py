from __future__ import annotations

import torch

from flows.evaluation.pictures import encoded
from flows.evaluation.plots import panels, save
from flows.evaluation.sheets import same_heights, sheet


def test_a_sheet_has_every_picture_in_its_place_and_leaves_gaps_empty() -> None:
    red = encoded(torch.stack([torch.ones(4, 4), -torch.ones(4, 4), -torch.ones(4, 4)]))
    figure = sheet([[red, None], [None, red]], rows=["a", "b"], columns=["x", "y"], captions=[["1", ""], ["", "4\n5"]])
    first, second, third, fourth = figure.axes
    assert [len(ax.images) for ax in figure.axes] == [1, 0, 0, 1]
    assert (first.get_ylabel(), third.get_ylabel(), second.get_title(), fourth.get_xlabel()) == ("a", "b", "y", "4\n5")
    boxes = [ax.get_position() for ax in figure.axes]
    assert boxes[0].x1 <= boxes[1].x0 and boxes[2].y1 < boxes[0].y0  # nothing lies over anything else
    assert save(figure).startswith(b"\x89PNG")


def test_panels_that_are_compared_have_one_range() -> None:
    _, axes = panels(2)
    axes[0].set_ylim(0, 1)
    axes[1].set_ylim(-2, 0.5)
    same_heights(axes)
    assert axes[0].get_ylim() == axes[1].get_ylim() == (-2, 1)
