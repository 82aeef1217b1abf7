"""Which photos are held out."""

from __future__ import annotations

import pytest

from tasks.hold_out import held_out


class TestHeldOut:
    def test_names_by_hand(self) -> None:
        # The last digit of their SHA-256 is e, 8, 4, 8, 2, b.
        names = [f"{letter}.jpg" for letter in "abcdef"]
        assert [name for name in names if held_out(name)] == ["b.jpg", "c.jpg", "d.jpg"]

    def test_folders_do_not_count(self) -> None:
        assert held_out("deep/er/c.jpg")
        assert not held_out("c.jpg/a.jpg")

    def test_a_share_of_one_in_every(self) -> None:
        names = [f"photo_{number}.png" for number in range(4000)]
        assert sum(held_out(name, every=5) for name in names) == pytest.approx(800, abs=75)
