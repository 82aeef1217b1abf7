from __future__ import annotations

from tasks.prior_variants import prior_variants
from tests.tiny_workspace import LABELLED, UNLABELLED, tiny_params


def test_each_prior_is_tried_alone_and_with_the_others() -> None:
    params = tiny_params()
    variants = {variant.name: variant for variant in prior_variants(params)}
    assert list(variants) == ["mean_face", "without", "symmetry", "albedo_variance", "skin_photo", "all"]
    assert variants["without"].params == params
    first = {name: variant.params.train_self_supervised.sources[0].losses for name, variant in variants.items()}
    assert first["symmetry"] == {**UNLABELLED, "symmetry": 0.01}
    assert first["albedo_variance"] == {**UNLABELLED, "albedo_variance": 5.0}
    plain = {name: weight for name, weight in UNLABELLED.items() if name != "photo"}
    assert first["skin_photo"] == {**plain, "skin_photo": UNLABELLED["photo"]}
    assert first["all"] == {**plain, "skin_photo": UNLABELLED["photo"], "symmetry": 0.01, "albedo_variance": 5.0}
    # Labelled photos, where the mesh is the label, are left as they are.
    assert variants["all"].params.train_fused.sources[1].losses == LABELLED
