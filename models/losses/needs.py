"""The names of all losses and what each needs beside photo and landmarks; checking parameters imports no more."""

from __future__ import annotations

NOTHING: frozenset[str] = frozenset()
SCAN = frozenset({"scan"})
PERSON = frozenset({"person"})
CONFIDENCE = frozenset({"confidence"})

SOURCE_NEEDS = {"scan": "labelled meshes", "person": "several photos of a person, who is known"}
"""What a source must have; the rest comes from training itself."""

NEEDS: dict[str, frozenset[str]] = {
    "photo": NOTHING,
    "landmark": NOTHING,
    "vertex": SCAN,
    "normal": SCAN,
    "photo_on_scan": SCAN,
    "landmark_on_scan": SCAN,
    "photo_likelihood": CONFIDENCE,
    "separation": PERSON,
    "distance_separation": PERSON,
    "center": PERSON,
    "distribution": PERSON,
    "identity_anchor": NOTHING,
    "identity_prior": NOTHING,
    "expression_prior": NOTHING,
    "albedo_prior": NOTHING,
    "light_prior": NOTHING,
    "skin_photo": NOTHING,
    "albedo_variance": NOTHING,
    "symmetry": NOTHING,
}
"""Every loss that `params.yaml` may name: L1 to L6 of method A in this order, those of method D, then the priors."""
