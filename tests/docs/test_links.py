"""Links of the documentation lead somewhere; those to other websites are not followed, only well formed."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import urlsplit

import pytest
import yaml

from tests.documentation import LINK, anchors, pages, prose

ROOT = Path(__file__).resolve().parents[2]
PICTURES_BYTES = 3 * 2**20


@pytest.mark.parametrize("page", pages(ROOT), ids=lambda page: page.relative_to(ROOT).as_posix())
def test_links_lead_somewhere(page: Path) -> None:
    broken = []
    for target in LINK.findall(prose(page)):
        address = urlsplit(target)
        if address.scheme:
            if address.scheme != "https" or "." not in address.netloc:
                broken.append(target)
            continue
        file = (page.parent / address.path).resolve() if address.path else page
        inside = file.is_relative_to(ROOT) and file.exists()
        if not inside or (address.fragment and address.fragment not in anchors(file)):
            broken.append(target)
    assert not broken


def test_every_page_is_in_the_navigation() -> None:
    navigation = yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))["nav"]

    def names(entry: object) -> list[str]:
        if isinstance(entry, str):
            return [entry]
        children = entry.values() if isinstance(entry, dict) else entry
        return [name for child in children for name in names(child)]  # type: ignore[union-attr]

    assert sorted(names(navigation)) == sorted(path.name for path in (ROOT / "docs").glob("*.md"))


def test_pages_of_the_site_link_to_nothing_outside_of_it() -> None:
    """What lies beside `docs/` is not published with it."""
    outside = [
        f"{page.name}: {target}"
        for page in sorted((ROOT / "docs").glob("*.md"))
        for target in LINK.findall(prose(page))
        if target.startswith("../")
    ]
    assert not outside


def test_every_picture_is_shown_and_small() -> None:
    text = "".join(page.read_text(encoding="utf-8") for page in pages(ROOT))
    pictures = [path for path in (ROOT / "docs" / "images").iterdir() if path.is_file()]
    assert [path.name for path in pictures if f"images/{path.name}" not in text] == []
    assert sum(path.stat().st_size for path in pictures) < PICTURES_BYTES
