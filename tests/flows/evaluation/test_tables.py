"""The comparison tables: figures over rows, who wins what, the bars, and the Markdown of them."""

from __future__ import annotations

import math
import re
from dataclasses import replace

import pytest

from flows.evaluation.tables import (
    FIRST,
    SECOND,
    Line,
    Winners,
    line,
    markdown,
    measured_on,
    remarks,
    shown,
    stars,
    targets,
    why,
    winners,
)
from pipeline.intervals import Figure
from pipeline.methods.blended import BlendedDiffusion
from pipeline.methods.contract import About
from tests.flows.evaluation.rows import ABOUT, cell, edit, find, home, line_of, lines_of, refused, transfer

HEADINGS = [column.title for column in FIRST + SECOND]


def test_figures_are_over_all_rows_of_all_cells() -> None:
    found = line(
        "loco",
        ABOUT,
        {"timestep": 0.4},
        1,
        12.5,
        [
            cell(home("a", roir=0.2, move=-0.4, ssim=0.8, lpips=0.1), home("a", "hair", roir=0.6, success=False)),
            cell(home("b", roir=0.4, other_move=-0.5, limited=True), refused("b", "hair")),
        ],
    )
    assert (found.edits, found.refused, found.limited, found.learn_seconds) == (4, 1, 1, 12.5)
    assert found.success.estimate == 0.5 and found.success.count == 4
    assert found.roir.estimate == 0.5 and found.roir.count == 4  # the refused one is as bad as can be
    assert found.roir.low <= 0.5 <= found.roir.high
    assert found.own_move.estimate == 0.3 and found.other_move.estimate == 0.02  # magnitudes, without the refused one
    assert found.ssim.count == 3
    assert (found.lpips.estimate, found.lpips.count) == (0.1, 1)
    assert found.identity.count == 0
    assert found.failures == {"refused: nothing there": 1}


def test_transfers_are_told_apart_by_whether_the_edit_was_moved() -> None:
    rows = [transfer("a", True, True, True), transfer("b", True, False, True), transfer("a", False, False)]
    found = line_of("loco", home("a"), home("b"), *rows)
    assert (found.transfer.estimate, found.transfer_as_is.estimate) == (0.5, 0.0)
    assert (found.perfect.estimate, found.perfect.count) == (1.0, 2)


def test_costs_are_per_edit_found_and_products_count_as_passes() -> None:
    rows = [find("a", seconds=3.0, passes=10, jvp=4, vjp=5, edits=3), find("b", seconds=1.0, backward=13, edits=1)]
    found = line_of("loco", home("a"), *rows, edit(0.1), edit(0.5), edit(0.2))
    assert (found.find_seconds, found.find_passes, found.edit_seconds) == (1.0, 8.0, 0.2)


def test_seconds_of_several_machines_are_told_apart_and_those_of_this_one_need_no_word() -> None:
    def on(name: str, *machines: str, learned_on: str | None = None) -> Line:
        cells = [replace(cell(home("a")), machine=machine) for machine in machines]
        return line(name, ABOUT, {}, 1, 0.0, cells, learned_on=learned_on)

    here, both = on("loco", "here"), on("rival", "here", learned_on="there")
    assert both.machines == ("here", "there")
    assert measured_on([here], "here") == measured_on([here]) == measured_on([]) == ""
    assert measured_on([here], "there") == "here"
    assert measured_on([here, both], "here") == "loco: here; rival: here and there"
    assert measured_on([on("loco", "")], "here") == "a machine that is not known"
    assert "measured on" not in markdown([here, here])
    assert markdown([here, on("rival", "")]).endswith("measured on: loco: here; rival: a machine that is not known.\n")


def test_what_learning_took_is_shown_where_it_is_known() -> None:
    known = line("asyrp", ABOUT, {}, 64, 12.4, [cell(home("a"))], learn_passes=5000.0)
    unknown = line("asyrp", ABOUT, {}, 64, math.nan, [cell(home("a"))], learn_passes=math.nan)
    assert "learning, passes" in markdown([known])
    assert "| 64 | 12 | 5000 |" in markdown([known]) and "| 64 | - | - |" in markdown([unknown])


def test_the_interval_of_transfers_allows_for_the_images_that_they_go_to() -> None:
    """Five targets on which everything succeeds, five on which nothing does: ten values of an image say little."""
    rows = [
        {**transfer(f"image {i}", moved, j % 2 == 0, perfect=j % 2 == 0), "target": f"target {j}"}
        for i in range(10)
        for j in range(10)
        for moved in (True, False)
    ]
    found = line_of("loco", home("a"), *rows)
    for value in (found.transfer, found.transfer_as_is, found.perfect):
        assert value.estimate == 0.5 and value.high - value.low > 0.4


def test_a_method_of_which_nothing_was_measured_has_no_figures() -> None:
    found = line_of("loco")
    assert found.edits == 0 and found.success.count == 0
    assert math.isnan(found.success.estimate) and math.isnan(found.edit_seconds)
    assert winners([found]) == {} and targets([found]) == [] and remarks([found]) == []
    assert markdown([found]).count("| - |") >= 1


def test_a_figure_is_shown_with_its_interval_and_none_as_a_dash() -> None:
    assert shown(Figure(0.5, 0.25, 0.751, 9)) == "0.50 (0.25 to 0.75)"
    assert shown(Figure(30.04, 29.0, 31.0, 9), 1) == "30.0 (29.0 to 31.0)"
    assert shown(Figure(math.inf, 1.0, math.inf, 9)) == "inf (1.00 to inf)"
    assert shown(Figure(math.nan, math.nan, math.nan, 0)) == "-"


def test_the_best_wins_a_column_and_those_within_their_interval_are_named_beside_it() -> None:
    lines = lines_of(loco=[0.4] * 9, rival=[0.3, 0.5] * 5, other=[0.9] * 9, best=[0.35] * 9)
    assert winners(lines)["ROIR, median"] == Winners(["best"], ["rival"])  # less is better
    higher = [replace(each, ssim=Figure(0.1 * i, 0.1 * i, 0.1 * i, 9)) for i, each in enumerate(lines)]
    assert winners(higher)["SSIM outside"] == Winners(["best"], [])  # more is better
    assert "LPIPS (AlexNet) outside" not in winners(lines)  # nobody has any


def test_a_remark_is_made_where_a_rival_wins_and_none_where_a_paper_of_ours_does() -> None:
    ours, rival = lines_of(loco=[0.4] * 5, rival=[0.2] * 5)
    said = remarks([ours, rival])
    (about_roir,) = [sentence for sentence in said if sentence.startswith("ROIR, median")]
    assert "0.20 (0.20 to 0.20)" in about_roir and "loco 0.40 (0.40 to 0.40)" in about_roir
    assert not any(sentence.startswith("ROIR") for sentence in remarks([replace(rival, name="individual"), ours]))


def test_all_that_share_the_best_figure_win_in_whatever_order_they_come() -> None:
    lines = lines_of(rival=[0.2] * 3, loco=[0.2] * 3, other=[0.3] * 3)
    for order in (lines, lines[::-1]):
        assert set(winners(order)["ROIR, median"].best) == {"rival", "loco"}
        assert {name for title, name in stars(order) if title == "ROIR, median"} == {"rival", "loco"}
        assert markdown(order).count("**0.20 (0.20 to 0.20)**") == 2


def test_a_remark_names_ties_and_our_own_method_does_not_beat_an_equal_rival_in_silence() -> None:
    loco, rival, other = (
        replace(each, about=replace(ABOUT, title=each.name.upper()))
        for each in lines_of(loco=[0.2] * 3, rival=[0.2] * 3, other=[0.4] * 3)
    )
    said = remarks_on("ROIR, median", [rival, loco, other])
    assert "LOCO and RIVAL share the best figure, 0.20." in said and "reason" not in said
    said = remarks_on("ROIR, median", [replace(loco, name="third"), rival, replace(other, name="loco")])
    assert "LOCO and RIVAL share the best figure, 0.20 (loco 0.40" in said


def test_nobody_wins_a_column_in_which_nobody_has_anything() -> None:
    failed = [line_of(name, home("a", success=False, move=0.0), transfer("a", True, False)) for name in ("loco", "x")]
    won = winners(failed)
    assert not {"local edit success", "transfer success", "own attribute moved"} & won.keys()
    assert won["SSIM outside"].best == ["loco", "x"]
    assert "ROIR, median" not in winners([line_of("loco", refused("a"))])
    assert not [said for said in remarks(failed[1:]) if "success:" in said]


def remarks_on(title: str, lines: list[Line]) -> str:
    """The one remark on who wins a column."""
    (said,) = [
        sentence for sentence in remarks(lines) if sentence.startswith(f"{title}:") and "best figure" in sentence
    ]
    return said


COLUMNS = {column.name: column for column in FIRST + SECOND}


def reasons(winner: Line) -> dict[str, list[str]]:
    """What explains a good figure in each column."""
    return {name: why(winner, column) for name, column in COLUMNS.items()}


def test_a_method_that_pastes_the_source_is_said_to_in_the_columns_that_it_explains() -> None:
    pasted = "it pastes the source's own pixels outside the mask"
    about = BlendedDiffusion.about
    found = reasons(line_of("blended", home("a"), about=about))
    explained = {"roir", "psnr", "ssim", "lpips", "other_move", "reconstruction"}
    assert {name for name, own in found.items() if own == [pasted]} == explained
    assert not [own for name, own in found.items() if pasted in own and name not in explained]
    said = remarks_on(
        "ROIR, median", [line_of("blended", home("a", roir=0.0), about=about), line_of("loco", home("a"))]
    )
    assert f"(loco 0.40 (0.40 to 0.40)). What may explain it: {pasted}." in said and "told the attribute" not in said


def test_a_reason_is_given_only_in_columns_that_it_explains() -> None:
    weak = reasons(line_of("rival", *(home(str(i), limited=True) for i in range(4))))
    assert weak["ssim"] == ["4 of its 4 edits stay too weak to be seen"] == weak["other_move"]
    assert weak["roir"] == weak["own_move"] == weak["success"] == []
    lost = reasons(line_of("rival", home("a"), home("b"), refused("c")))
    assert lost["psnr"] == ["1 of its 3 edits were refused and are not counted here"]
    assert lost["roir"] == lost["success"] == []  # there they count as failed
    failing = reasons(line_of("rival", *(home(str(i), success=False, failure="ROIR above 1") for i in range(4))))
    assert failing["own_move"] == ["only 0% of its edits succeed (most fail: ROIR above 1)"]
    about = replace(ABOUT, supervision="attribute reader")
    trained = reasons(line_of("asyrp", home("a"), about=about, images=64))
    assert trained["success"] == ["it is told the attribute by the reader that judges it and learns from 64 images"]
    by_clip = reasons(line_of("asyrp", home("a"), about=replace(ABOUT, supervision="CLIP")))
    assert by_clip["success"] == ["it is told the attribute (CLIP)"]
    assert trained["ssim"] == trained["kid"] == []


def test_the_reconstruction_is_explained_by_how_it_is_made_and_older_rows_have_none() -> None:
    own = [replace(each, settings={"timestep": 0.4, "inversion_steps": 50, "steps": 10}) for each in lines_of(x=[0.4])]
    assert own[0].reconstruction.count == 0 and "reconstruction, PSNR dB" not in winners(own)
    (told,) = [replace(each, settings=own[0].settings) for each in [line_of("x", home("a", reference_psnr=31.0))]]
    assert told.reconstruction.estimate == 31.0 and "31.0 (31.0 to 31.0)" in markdown([told])
    assert why(told, COLUMNS["reconstruction"]) == ["it goes up to 0.4 T in 50 steps and down again in 10"]


def test_an_edit_of_strength_zero_is_a_refused_one_without_picture_quality() -> None:
    none = home("b", strength=0.0, reached=False, psnr=math.inf, ssim=1.0, roir=math.inf, success=False, failure="none")
    found = line_of("rival", home("a"), none)
    assert (found.edits, found.refused, found.success.estimate) == (2, 1, 0.5)
    assert (found.ssim.count, found.psnr.estimate, found.roir.count) == (1, 30.0, 2)


def test_edits_that_end_beside_the_visible_change_are_counted_apart_from_those_at_the_limit() -> None:
    rows = [home("a"), home("b", reached=False), home("c", reached=False, limited=True), refused("d")]
    gone = [{**transfer("a", True, False), "strength": 1.0, "reached": False}, transfer("a", True, True)]
    found = line_of("rival", *rows, *gone)
    assert (found.limited, found.off_target, found.transfers_off_target) == (1, 1, 1)
    assert "off target" in markdown([found])


@pytest.mark.parametrize(("source", "used"), [("", "attribute reader"), ("a face", "CLIP")])
def test_supervision_is_what_told_the_attribute_here(source: str, used: str) -> None:
    goal = {"region": "mouth", "name": "smile", "source": source}
    about = replace(ABOUT, supervision="attribute reader or CLIP")
    assert line("x", about, {"goals": [goal]}, 1, 0.0, []).about.supervision == used
    assert line("x", ABOUT, {"goals": [goal]}, 1, 0.0, []).about.supervision == "none"


def test_it_is_said_which_regions_a_method_that_is_told_attributes_was_told_nothing_of() -> None:
    about = replace(ABOUT, title="Told", supervision="CLIP")
    told, other = line_of("asyrp", home("a", "eye"), about=about), line_of("x", home("a", "eye"), home("a", "mouth"))
    (said,) = [sentence for sentence in remarks([told, other]) if sentence.startswith("Told is measured")]
    assert said == "Told is measured on eye alone: nothing tells it what to change in mouth."
    assert not [sentence for sentence in remarks([told]) if "alone" in sentence]


def test_where_no_reason_is_known_a_remark_says_so_and_whether_it_may_be_chance() -> None:
    rival, loco = lines_of(rival=[0.2] * 5, loco=[0.4] * 5)
    said = remarks_on("ROIR, median", [rival, loco])
    assert "No reason is known for a method." in said and "chance" not in said
    rival, loco = lines_of(rival=[0.3] * 5, loco=[0.2, 0.4, 0.4, 0.4, 0.2])
    assert "The interval of loco reaches it, so it may be chance." in remarks_on("ROIR, median", [rival, loco])


def test_how_far_a_perfect_editor_transfers_is_said_beside_what_loco_does() -> None:
    tried = line_of("loco", home("a"), transfer("a", True, False, True), transfer("a", True, True, True))
    (said,) = [sentence for sentence in remarks([tried]) if sentence.startswith("Transfer success")]
    assert "has 0.50" in said and re.search(r"has 1\.00 \(0\.\d\d to 1\.00\) on the same pairs", said)
    untold = line_of("loco", home("a"), transfer("a", True, True))
    assert remarks([untold]) == []  # the truth of these images is not known


@pytest.mark.parametrize(("good", "met"), [(10, True), (9, True), (8, False)])
def test_the_bar_of_local_edit_success_is_nine_of_ten(good: int, met: bool) -> None:
    found = targets([line_of("loco", *(home(str(i), success=i < good) for i in range(10)))])
    by_name = {target["name"]: target for target in found}
    bar = by_name["LOCO: local edit success"]
    assert (bar["value"], bar["target"], bar["met"]) == (good / 10, ">= 0.9", met)
    assert by_name["LOCO: median ROIR"]["met"] is True
    assert "LOCO: transfer success, mask IoU >= 0.5" not in by_name  # nothing was transferred


def test_the_bar_of_individual_components_is_two_thirds_of_the_masked_ones() -> None:
    def ratio(individual: float, masked: float) -> list[tuple[float, bool]]:
        lines = lines_of(individual=[individual] * 3)
        lines += [replace(each, name="h-masked") for each in lines_of(masked=[masked] * 3)]
        return [(round(target["value"], 3), target["met"]) for target in targets(lines)]

    assert ratio(0.4, 0.8) == [(0.5, True)]
    assert ratio(0.7, 0.8) == [(0.875, False)]
    assert ratio(math.inf, math.inf) == [] and ratio(0.1, 0.0) == []  # no ratio, no verdict
    assert targets(lines_of(individual=[0.1])) == []


def test_a_method_that_cannot_transfer_is_told_apart_from_one_that_was_not_tried() -> None:
    still = line_of("blended", home("a"), about=About("still", "B", "eps", transfers=False))
    text = markdown([still, line_of("loco", home("a"))])
    first = [row for row in text.splitlines() if row.startswith(("| still", "| a method"))][:2]
    column = 1 + [c.name for c in FIRST].index("transfer")
    assert [row.split(" | ")[column] for row in first] == ["cannot", "-"]


def test_every_row_of_the_markdown_has_as_many_cells_as_its_heading_whatever_a_method_is_called() -> None:
    hostile = About("a | b\n| c", "Someone | 2020", "x")
    text = markdown([line_of("loco", home("a"), about=hostile), line_of("rival", home("a", roir=0.1))])
    tables = text.strip().split("\n\n")
    assert len(tables) == 2
    for table in tables:
        counts = [len(re.findall(r"(?<!\\)\|", row)) for row in table.split("\n")]
        assert len(counts) == 4 and len(set(counts)) == 1
    assert "a \\| b \\| c" in text
    assert [heading for heading in HEADINGS if f"| {heading} |" not in text] == []
    assert "**0.10 (0.10 to 0.10)**" in text and "**0.40 (0.40 to 0.40)**" not in text
