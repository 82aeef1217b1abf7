"""What the card of a model says."""

from __future__ import annotations

from pathlib import Path

from tasks.artifacts import Workspace
from tests.tasks.trained_workspace import METRICS


def test_the_card_names_licence_sources_numbers_and_limits(registered: Workspace) -> None:
    card = (registered.folder("register") / "model_card.md").read_text(encoding="utf-8")
    for line in (
        "# mien-reconstructor",
        "| face model | tiny |",
        "| its licence | CC0-1.0 |",
        "| faces | rendered from the face model: nobody's face |",
        "| mean face, for comparison | – | 2 | 0.08 | 6 | – |",
        "| test split | – | 1.5 | 0.04 | 5 | – |",
        "neither made nor measured to recognise or watch people",
        "- data: unknown, there is no dvc.lock",
    ):
        assert line in card
    assert METRICS["refusion"]["landmark_nme"] == 0.04


def test_the_card_goes_with_the_model(registered: Workspace) -> None:
    cards = list((registered.root / "mlruns").rglob("model_card.md"))
    assert cards
    card = (registered.folder("register") / "model_card.md").read_text(encoding="utf-8")
    assert {Path(path).read_text(encoding="utf-8") for path in cards} == {card}
