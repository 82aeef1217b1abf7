"""The pages of the documentation, with their links, headings and blocks of code."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)")
HEADING = re.compile(r"^#{1,6} +(.+?)\s*$")


@dataclass(frozen=True)
class Block:
    """A block of code."""

    page: Path
    line: int
    language: str
    """After the fence; empty for indented blocks."""
    text: str

    def __str__(self) -> str:
        return f"{self.page.name}:{self.line}"

    def commands(self) -> list[str]:
        """Lines as a shell reads them: continued ones joined, without comments."""
        joined = self.text.replace("\\\n", " ")
        return [stripped for line in joined.splitlines() if (stripped := line.split("  #")[0].strip())]


def pages(root: Path) -> list[Path]:
    """Everything that is read as documentation."""
    return [
        *(root / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "mlflow/README.md")),
        *sorted((root / "docs").glob("*.md")),
    ]


def blocks(page: Path) -> Iterator[Block]:
    """Fenced and indented blocks of code."""
    fence, language, first, held = "", "", 0, []
    in_list, before = False, ""
    for number, line in enumerate([*page.read_text(encoding="utf-8").splitlines(), ""], 1):
        mark = re.match(r"^(```+)(\w*)", line)
        if fence:
            if line.startswith(fence):
                yield Block(page, first, language, "\n".join(held) + "\n")
                fence, held = "", []
            else:
                held.append(line)
        elif mark and not held:
            fence, language, first = mark[1], mark[2], number + 1
        elif line.startswith("    ") and (held or (not in_list and (not before.strip() or HEADING.match(before)))):
            first = first if held else number
            held.append(line[4:])
        elif held and line.strip():
            yield Block(page, first, "", "\n".join(held).rstrip() + "\n")
            held = []
        elif held:
            held.append("")
        if line.strip() and not line.startswith(" "):
            in_list = bool(re.match(r"^([-*]|\d+\.) ", line))
        before = line
    if held:
        yield Block(page, first, "", "\n".join(held).rstrip() + "\n")


def prose(page: Path) -> str:
    """A page without its blocks and spans of code."""
    text = re.sub(r"(?ms)^```.*?^```", "", page.read_text(encoding="utf-8"))
    return re.sub(r"`[^`\n]*`", "", re.sub(r"(?m)^    .*$", "", text))


def anchors(page: Path) -> set[str]:
    """The headings of a page as links name them."""
    found = set()
    for line in re.sub(r"(?ms)^```.*?^```", "", page.read_text(encoding="utf-8")).splitlines():
        if heading := HEADING.match(line):
            plain = re.sub(r"[^\w\- ]", "", heading[1].lower())
            found.add(re.sub(r"[ ]+", "-", plain.strip()))
    return found
