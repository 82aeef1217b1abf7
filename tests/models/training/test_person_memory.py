from __future__ import annotations

import pytest
import torch

from models.training.person_memory import FACES_REMEMBERED, PersonMemory, hashed


def memory(*names: str, size: int = 2) -> PersonMemory:
    made = PersonMemory(names or ("a", "b", "c"), identity_size=size, center_rate=1.0)
    made.number(["b", "a", "z", "c"])
    return made


def test_numbers_of_batches_become_rows() -> None:
    assert memory().rows_of(torch.tensor([0, 1, 3, 0])).tolist() == [1, 0, 2, 1]
    with pytest.raises(KeyError, match="person 2 has no row in the memory of 3 persons"):
        memory().rows_of(torch.tensor([0, 2]))


def test_persons_begin_at_the_weighted_mean_of_their_faces() -> None:
    made = memory()
    faces = torch.tensor([[3.0, 0.0], [0.0, 4.0], [6.0, 8.0]])
    made.begin(torch.tensor([1, 1, 0]), faces, torch.tensor([3.0, 1.0, 0.5]))
    torch.testing.assert_close(made.centers[0], torch.tensor([2.25, 1.0]))
    torch.testing.assert_close(made.centers[1], torch.tensor([6.0, 8.0]))
    torch.testing.assert_close(made.class_weights[1].detach(), torch.tensor([0.6, 0.8]))
    assert made.centers[2].tolist() == [0.0, 0.0]


def test_a_face_that_says_nothing_still_gives_its_person_a_centre() -> None:
    made = memory()
    made.begin(torch.tensor([0]), torch.tensor([[5.0, 0.0]]), torch.tensor([0.0]))
    assert made.centers[1].tolist() == pytest.approx([5.0, 0.0])


def test_notes_take_effect_when_the_step_is_over() -> None:
    made = memory()
    made.note_centers(torch.tensor([2]), torch.tensor([[2.0, 4.0]]), torch.tensor([1.0]))
    made.note_moments(torch.ones(10, 2))
    assert not made.centers.any()
    assert made.square.tolist() == [1.0, 1.0]
    made.settle()
    assert made.centers[2].tolist() == [1.0, 2.0]
    assert made.mean.tolist() == pytest.approx([10 / FACES_REMEMBERED] * 2)
    assert int(made.steps) == 1
    before = made.centers.clone()
    made.settle()
    assert torch.equal(made.centers, before)


def test_portions_change_nothing() -> None:
    whole, parts = memory(), memory()
    rows, faces, weight = torch.tensor([0, 1, 0, 2]), torch.randn(4, 2), torch.rand(4)
    whole.note_centers(rows, faces, weight)
    whole.note_moments(faces)
    for part in (slice(0, 1), slice(1, 4)):
        parts.note_centers(rows[part], faces[part], weight[part])
        parts.note_moments(faces[part])
    for made in (whole, parts):
        made.settle()
    for name, value in whole.state_dict().items():
        torch.testing.assert_close(parts.state_dict()[name], value)


def test_a_checkpoint_brings_back_who_it_knew() -> None:
    first = memory()
    first.begin(torch.tensor([1, 0, 3]), torch.randn(3, 2), torch.ones(3))
    first.begin_moments(torch.randn(20, 2))
    first.settle()
    content = first.content()
    assert content["persons"] == [hashed(name) for name in "abc"]
    assert "a" not in content["persons"]
    later = PersonMemory(("b", "new", "c"), identity_size=2, center_rate=1.0)
    assert later.recall(content) == ("b", "c")
    assert torch.equal(later.centers[[0, 2]], first.centers[[1, 2]])
    assert torch.equal(later.class_weights[[0, 2]], first.class_weights[[1, 2]])
    assert torch.equal(later.square, first.square)
    assert int(later.steps) == 1
    later.number(["b", "new"])
    later.begin(torch.tensor([0, 1]), torch.ones(2, 2), torch.ones(2), known=("b", "c"))
    assert torch.equal(later.centers[0], first.centers[1])
    assert later.centers[1].tolist() == [1.0, 1.0]


def test_a_memory_of_other_coefficients_is_left_alone() -> None:
    other = memory(size=5)
    assert memory().recall(other.content()) == ()


def test_persons_at_the_mean_face_begin_in_different_directions() -> None:
    made = memory()
    made.begin(torch.tensor([1, 0, 3]), torch.zeros(3, 2), torch.ones(3))
    weights = made.class_weights.detach()
    torch.testing.assert_close(weights.norm(dim=1), torch.ones(3))
    assert (weights[0] - weights[1]).norm() > 1e-3
    assert not made.centers.any()
