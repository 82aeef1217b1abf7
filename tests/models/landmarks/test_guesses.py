"""Guesses: rank, joining, and which of them show the same face."""

from __future__ import annotations

import numpy as np

from models.landmarks.guesses import Guesses, without_duplicates


def guesses(*rows: tuple[int, float, float, float, float], dense: int = 0) -> Guesses:
    """Rows of photo, centre x, side, presence, sigma; the points fill a square around (x, 0)."""
    turn = np.arange(68) * (2 * np.pi / 68)
    circle = 0.5 * np.stack([np.cos(turn), np.sin(turn)], 1)
    points = np.array([circle * side + [x, 0.0] for _, x, side, _, _ in rows]).reshape(-1, 68, 2)
    return Guesses(
        np.array([row[0] for row in rows], np.int64),
        points,
        points + 1.0,
        np.array([np.full(68, row[4]) for row in rows]).reshape(-1, 68),
        np.array([row[3] for row in rows]),
        points[:, :dense],
        np.full((len(rows), dense), 0.1),
        points[:, :17] + 2.0,
        np.tile(np.eye(3), (len(rows), 1, 1)),
    )


def test_the_surer_of_two_on_one_face_stays() -> None:
    table = guesses((0, 0, 100, 0.7, 0.02), (0, 10, 90, 0.9, 0.02), (0, 200, 80, 0.6, 0.05))
    assert without_duplicates(table).tolist() == [1, 2]


def test_a_face_within_a_face_is_none() -> None:
    table = guesses((0, 0, 100, 0.9, 0.02), (0, 20, 20, 0.9, 0.03))
    assert without_duplicates(table).tolist() == [0]


def test_neighbours_and_other_photos_are_kept() -> None:
    table = guesses((0, 0, 100, 0.9, 0.02), (0, 70, 100, 0.9, 0.02), (1, 0, 100, 0.9, 0.02))
    assert sorted(without_duplicates(table).tolist()) == [0, 1, 2]


def test_nothing_has_no_duplicates() -> None:
    assert without_duplicates(Guesses.none()).tolist() == []


def test_join_with_nothing() -> None:
    table = guesses((0, 0, 100, 0.9, 0.02), dense=5)
    joined = Guesses.join([Guesses.none(), table, table])
    assert joined.dense.shape == (2, 5, 2)
    assert len(Guesses.join([Guesses.none(), Guesses.none()]).photo) == 0


def test_mirrored_dense_points_do_not_count() -> None:
    first, second = guesses((0, 0, 100, 0.8, 0.02), dense=3), guesses((0, 10, 100, 0.6, 0.04), dense=3)
    mean = first.average(second)
    np.testing.assert_allclose(mean.points, first.points + [5.0, 0.0])
    np.testing.assert_allclose(mean.annotated, first.annotated + [5.0, 0.0])
    np.testing.assert_allclose(mean.outline, first.outline + [5.0, 0.0])
    np.testing.assert_allclose(mean.sigma, 0.03)
    np.testing.assert_allclose(mean.presence, 0.7)
    np.testing.assert_array_equal(mean.dense, first.dense)


def test_rank_prefers_sure_points() -> None:
    rank = guesses((0, 0, 1, 0.9, 0.02), (0, 0, 1, 0.9, 0.08), (0, 0, 1, 0.4, 0.02)).rank()
    assert rank[0] > rank[1]
    assert rank[0] > rank[2]


def test_rows_are_replaced_in_their_place() -> None:
    table = guesses((0, 0, 100, 0.9, 0.02), (1, 70, 100, 0.8, 0.02), (2, 0, 100, 0.7, 0.02))
    others = guesses((3, 5, 50, 0.6, 0.02), (4, 6, 50, 0.5, 0.02))
    replaced = table.replace(np.array([2, 0]), others)
    assert replaced.photo.tolist() == [4, 1, 3]
    np.testing.assert_allclose(replaced.presence, [0.5, 0.8, 0.6])
