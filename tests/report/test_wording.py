import math

import pytest

from neurovol.report.data import QuarantinedBlock, ReportData, SampleRow, StageRow
from neurovol.report.wording import all_warnings, annotated_share, best, scores, verdict


def report(dices: dict, **parts) -> ReportData:
    methods = {m: {"dice": d, "confusion": {"tn": 90, "fp": 2, "fn": 3, "tp": 5}} for m, d in dices.items()}
    return ReportData("p", "2025-01-02T03:04:05", "0.1.0", metrics={"methods": methods} if methods else {}, **parts)


@pytest.mark.parametrize(
    ("dices", "said"),
    [
        ({}, "Nothing was scored"),
        ({"cnn2d": None, "unet3d_pseudo": math.nan}, "No method has a defined Dice"),
        ({"cnn2d": 0.6}, "the 2D CNN reaches a Dice of 0.600; no other method was scored"),
        (
            {"cnn2d": 0.6, "unet3d_sparse": 0.7, "unet3d_pseudo": 0.8},
            "the U-Net with pseudo-labels agrees best: Dice 0.800, against 0.700 for the U-Net trained on annotated "
            "voxels only and 0.600 for the 2D CNN.",
        ),
        ({"cnn2d": 0.8, "unet3d_pseudo": 0.5}, "the 2D CNN agrees best: Dice 0.800"),
        (
            {"cnn2d": 0.6, "unet3d_sparse": 0.795, "unet3d_pseudo": 0.8},
            "the U-Net with pseudo-labels and the U-Net trained on annotated voxels only are level: Dice 0.800, "
            "within 0.01, ahead of 0.600 for the 2D CNN.",
        ),
        ({"cnn2d": 0.8, "unet3d_pseudo": 0.8}, "are level: Dice 0.800, within 0.01."),
        ({"cnn2d": None, "unet3d_pseudo": 0.5}, "no other method was scored"),
    ],
)
def test_verdict_says_no_more_than_the_numbers(dices, said):
    assert said in verdict(report(dices))


def test_methods_come_in_the_fixed_order():
    assert [s.method for s in scores(report({"mine": 0.1, "unet3d_pseudo": 0.2, "cnn2d": 0.3}))] == [
        "cnn2d",
        "unet3d_pseudo",
        "mine",
    ]


def test_equal_scores_share_the_first_place_and_a_lone_one_has_none():
    assert best(scores(report({"cnn2d": 0.7, "unet3d_pseudo": 0.7001})), "dice") == {"cnn2d", "unet3d_pseudo"}
    assert best(scores(report({"cnn2d": 0.7, "unet3d_pseudo": None})), "dice") == set()


def test_rows_of_the_confusion_matrix_add_up_to_one():
    (score,) = scores(report({"cnn2d": 0.5}))
    assert score.share("tp") == 5 / 8
    assert score.share("tp") + score.share("fn") == pytest.approx(1)
    assert score.share("fp") + score.share("tn") == pytest.approx(1)


def test_quarantined_blocks_are_warned_of_first():
    stage = StageRow("segment", quarantined=(QuarantinedBlock(3, "OSError"), QuarantinedBlock(5, "OSError")))
    warnings = all_warnings(report({}, stages=(stage,), warnings=("a training box touches a test box",)))
    assert warnings[0].startswith("2 blocks were quarantined")
    assert warnings[1:] == ["a training box touches a test box"]


def test_annotated_share_is_weighed_by_voxels():
    samples = (
        SampleRow("a", (1, 10, 10), (1, 1, 1), annotated_share=0.5),
        SampleRow("b", (3, 10, 10), (1, 1, 1), annotated_share=0.1),
        SampleRow("c", (9, 10, 10), (1, 1, 1)),
    )
    assert annotated_share(report({}, samples=samples)) == pytest.approx(0.2)
