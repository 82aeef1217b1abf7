"""What a labelled face must fulfil, as expectations on the table of `tasks/label_table.py`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from models.types import LANDMARK_COUNT
from tasks.params import Params
from tasks.verdict import load_great_expectations

if TYPE_CHECKING:
    from great_expectations.expectations.expectation import Expectation

MIN_LANDMARK_BOX_PX = 12.0
MIN_LANDMARK_BOX_ASPECT = 0.25
"""A face seen from the side is still half as wide as high; less is a line, not a face."""
MIN_DISTINCT_POINTS = 34.0
"""The points of closed lips and eyes may coincide; of a face whose points collapsed, most do."""
MESH_SIDE_MM = (80.0, 400.0)
"""Longest side of a face's or head's bounding box. Metres and centimetres fall outside."""
MIN_MESH_DEPTH_MM = 30.0


def label_expectations(params: Params, vertex_count: int) -> list[Expectation]:
    """The expectations, most fundamental first: the first one that a row breaks is the reason of its refusal."""
    gxe = load_great_expectations().expectations
    from great_expectations.expectations.row_conditions import Column

    limits = params.validate_labels

    def between(reason: str, column: str, low: float | None, high: float | None, description: str) -> Expectation:
        return gxe.ExpectColumnValuesToBeBetween(
            column=column, min_value=low, max_value=high, description=description, meta={"reason": reason}
        )

    def exactly(reason: str, column: str, number: int, description: str) -> Expectation:
        return between(reason, column, number, number, description)

    def symmetric(reason: str, column: str, limit: float) -> Expectation:
        return between(reason, column, -limit, limit, f"{column} lies between -{limit:g} and {limit:g}")

    def same_split(reason: str, column: str, what: str) -> Expectation:
        return gxe.ExpectColumnPairValuesToBeEqual(
            column_A="split",
            column_B=column,
            description=f"the photo is in the split ({column}) in which its {what} is seen most often",
            meta={"reason": reason},
        )

    return [
        gxe.ExpectColumnValuesToNotBeNull(
            column="sample_id", description="the row names its photo", meta={"reason": "no_sample_id"}
        ),
        gxe.ExpectColumnValuesToBeUnique(
            column="sample_id", description="a photo has one row of landmarks", meta={"reason": "duplicate_sample"}
        ),
        exactly("not_one_manifest_row", "manifest_rows", 1, "the photo stands in the manifest exactly once"),
        exactly(
            "manifest_incomplete",
            "manifest_gaps",
            0,
            "source, person, split, size and whether it is labelled are known of the photo",
        ),
        exactly("not_one_image", "image_rows", 1, "the photo is stored exactly once"),
        same_split("person_in_two_splits", "person_split", "person"),
        same_split("mesh_in_two_splits", "mesh_split", "mesh"),
        exactly("landmark_count", "landmark_numbers", 2 * LANDMARK_COUNT, "there are x and y of 68 landmarks"),
        exactly("landmarks_not_finite", "landmark_not_finite", 0, "all coordinates of the landmarks are finite"),
        exactly("confidence_count", "confidence_numbers", LANDMARK_COUNT, "every landmark has a confidence"),
        exactly("confidence_not_finite", "confidence_not_finite", 0, "all confidences are finite"),
        between("confidence_range", "lowest_confidence", 0, None, "no confidence is below 0"),
        between("confidence_range", "highest_confidence", None, 1, "no confidence is above 1"),
        exactly("box_malformed", "box_numbers", 4, "the box has 4 numbers"),
        exactly("box_malformed", "box_not_finite", 0, "all numbers of the box are finite"),
        between("box_malformed", "box_short_side_px", 1, None, "the box is at least a pixel wide and high"),
        exactly("pose_not_finite", "pose_not_finite", 0, "yaw, pitch, roll and face score are finite"),
        between(
            "box_collapsed",
            "landmark_box_px",
            MIN_LANDMARK_BOX_PX,
            None,
            f"the landmarks span at least {MIN_LANDMARK_BOX_PX:g} pixels",
        ),
        between(
            "box_collapsed",
            "landmark_box_aspect",
            MIN_LANDMARK_BOX_ASPECT,
            None,
            f"the shorter side of the landmarks' box is at least {MIN_LANDMARK_BOX_ASPECT:g} of the longer one",
        ),
        between(
            "points_coincide",
            "distinct_points",
            MIN_DISTINCT_POINTS,
            None,
            f"at least {MIN_DISTINCT_POINTS:g} landmarks lie apart",
        ),
        between(
            "points_outside_photo",
            "outside_photo_share",
            None,
            limits.border_tolerance,
            f"no landmark lies outside the photo by more than {limits.border_tolerance:g} of the landmarks' box",
        ),
        between(
            "confidence_low",
            "mean_confidence",
            limits.min_mean_confidence,
            None,
            f"the mean confidence is at least {limits.min_mean_confidence:g}",
        ),
        symmetric("yaw_range", "yaw_deg", limits.max_abs_yaw_deg),
        symmetric("pitch_range", "pitch_deg", limits.max_abs_pitch_deg),
        symmetric("roll_range", "roll_deg", limits.max_abs_roll_deg),
        between("face_score_range", "face_score", 0, 1, "the face score lies between 0 and 1"),
        exactly("annotation_malformed", "annotation_numbers", 2 * LANDMARK_COUNT, "an annotation has 68 points"),
        exactly("annotation_malformed", "annotation_not_finite", 0, "all coordinates of an annotation are finite"),
        exactly("rotation_malformed", "rotation_numbers", 3, "a known rotation has 3 numbers"),
        exactly("rotation_malformed", "rotation_not_finite", 0, "all numbers of a known rotation are finite"),
        exactly("not_one_mesh", "mesh_rows", 1, "the mesh of a labelled photo is stored exactly once"),
        exactly(
            "mesh_vertex_count",
            "mesh_numbers",
            3 * vertex_count,
            f"the mesh has the {vertex_count} vertices of the face model",
        ),
        exactly(
            "mesh_vertex_count",
            "neutral_numbers",
            3 * vertex_count,
            f"the mesh without expression has the {vertex_count} vertices of the face model",
        ),
        exactly(
            "mesh_not_finite",
            "mesh_not_finite",
            0,
            "vertices, fit error and coverage of the mesh are finite, with and without expression",
        ),
        between(
            "mesh_size",
            "mesh_long_side_mm",
            *MESH_SIDE_MM,
            f"the mesh is {MESH_SIDE_MM[0]:g} to {MESH_SIDE_MM[1]:g} mm long",
        ),
        between(
            "mesh_size",
            "mesh_short_side_mm",
            MIN_MESH_DEPTH_MM,
            None,
            f"the mesh is at least {MIN_MESH_DEPTH_MM:g} mm deep",
        ),
        between("mesh_fit_error", "mesh_fit_error_mm", 0, None, "the fit error of the mesh is not negative"),
        between("mesh_coverage", "mesh_coverage", 0, 1, "the coverage of the mesh lies between 0 and 1"),
        between(
            "label_quality_low",
            "label_quality",
            limits.min_label_quality,
            1,
            f"the label quality is at least {limits.min_label_quality:g}",
        ),
        # Numbers that could not be computed pass the range above.
        gxe.ExpectColumnValuesToNotBeNull(
            column="label_quality",
            row_condition=Column("has_mesh") == True,  # noqa: E712 (a condition is built, not compared)
            description="the label quality of a labelled photo can be computed",
            meta={"reason": "label_quality_unknown"},
        ),
    ]
