"""Data Docs that open from a folder, without a network, and that are the same for the same data.

Great Expectations writes pages that load styles and scripts from several hosts and carry the time and random names.
Here they become three plain pages: an overview of ours, the result on every expectation, and the suite.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Mapping
from html import escape
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from great_expectations.data_context import AbstractDataContext

RESULTS_PAGE, SUITE_PAGE = "results.html", "suite.html"
STYLE = Path(__file__).parent / "templates" / "data_docs.css"

_REMOVED = re.compile(
    r"<script\b.*?</script>|<style\b.*?</style>|<link\b[^>]*>|<img\b[^>]*>|<title>\s*</title>|<footer\b.*?</footer>",
    re.DOTALL,
)
_UNUSABLE = (
    # What follows needs scripts, or sells something.
    re.compile(
        r'<div class="card mb-3">\s*<div class="card-header p-2">\s*<strong>Actions<.*?</label>(?:\s*</div>){5}',
        re.DOTALL,
    ),
    re.compile(r'<div[^>]*id="ge-cta-footer".*?</div>', re.DOTALL),
    re.compile(r"<p>Stay current on everything GX.*?</p>", re.DOTALL),
)
_FAILED_ONLY = '<label class="filter"><input type="checkbox" id="failed-only"> only what failed</label>'
_TIMES = re.compile(r"\d{8}T\d{6}\.\d+Z|\d{4}-\d{2}-\d{2}T\d{2}:\d{2}:\d{2}Z")
_RANDOM_NAMES = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}")


def write_data_docs(
    context: AbstractDataContext,
    folder: Path,
    *,
    summary: Mapping[str, Any],
    examples: Mapping[str, str],
    subject: str = "Labels",
) -> None:
    """Write `index.html`, `results.html` and `suite.html` about the validation that ran in this context.

    `examples` says for every reason in the summary what was found in one row.
    Raises: RuntimeError if Great Expectations did not leave exactly one page of each kind.
    """
    folder.mkdir(parents=True)
    style = STYLE.read_text(encoding="utf-8")
    with tempfile.TemporaryDirectory(prefix="mien-data-docs-") as temporary:
        site = Path(temporary)
        context.add_data_docs_site(
            "mien",
            {
                "class_name": "SiteBuilder",
                "site_index_builder": {"class_name": "DefaultSiteIndexBuilder"},
                "show_how_to_buttons": False,
                "store_backend": {"class_name": "TupleFilesystemStoreBackend", "base_directory": str(site)},
            },
        )
        context.build_data_docs(site_names=["mien"])
        for kind, name in (("validations", RESULTS_PAGE), ("expectations", SUITE_PAGE)):
            pages = sorted((site / kind).rglob("*.html"))
            if len(pages) != 1:
                raise RuntimeError(f"Data Docs: {len(pages)} pages of {kind}, expected 1")
            page = plain_page(pages[0].read_text(encoding="utf-8"), style=style)
            (folder / name).write_text(page, encoding="utf-8")
    (folder / "index.html").write_text(
        overview(summary, examples=examples, style=style, subject=subject), encoding="utf-8"
    )


def plain_page(page: str, *, style: str) -> str:
    """A page of Great Expectations without anything that is loaded, that runs, or that differs on the same data."""
    for pattern in _UNUSABLE:
        page = pattern.sub("", page)
    page = _REMOVED.sub("", page)
    page = re.sub(r'href="[^"#]*index\.html"', 'href="index.html"', page)
    page = re.sub(r'href="[^"#]*/expectations/[^"]*"', f'href="{SUITE_PAGE}"', page)
    page = re.sub(r'href="https?://[^"]*"', "", page)
    page = _TIMES.sub("", page)
    numbers = count(1)
    names: dict[str, str] = {}
    page = _RANDOM_NAMES.sub(lambda found: names.setdefault(found[0], f"part-{next(numbers)}"), page)
    # Empty fields: a table in memory has no name, and a run needs none.
    page = page.replace("Data asset: None<br>", "").replace(" / __none__ / ", "")
    page = re.sub(r"[ \t]+\n", "\n", re.sub(r"\n\s*\n+", "\n", page))
    page = page.replace("</head>", f"<style>\n{style}</style>\n</head>", 1)
    return page.replace("<body>", f"<body>\n{_FAILED_ONLY}" if "Status:" in page else "<body>", 1)


def overview(summary: Mapping[str, Any], *, examples: Mapping[str, str], style: str, subject: str = "Labels") -> str:
    """The first page: the gate's verdict, and what was refused, by reason and by source."""
    gate = summary["gate"]
    share = f"{summary['failed_share']:.1%} of {summary['in']} rows failed, at most {gate['max_failed_share']:.1%} may"
    state, words = ("passed", "Passed") if gate["passed"] else ("stopped", "Stopped the pipeline")
    reasons = [(reason, examples[reason], rows) for reason, rows in summary["reasons"].items()]
    # Only photos can have meshes, and only those have a quality.
    scored = all("mean_label_quality" in numbers for numbers in summary["sources"].values())
    heads = ("source", "rows", "clean", "quarantined", *(("mean label quality",) if scored else ()))
    sources = [
        (
            *(name, numbers["in"], numbers["clean"], numbers["quarantined"]),
            *((_share(numbers["mean_label_quality"]),) if scored else ()),
        )
        for name, numbers in summary["sources"].items()
    ]
    parts = [
        f'<!DOCTYPE html><html lang="en"><head><meta charset="utf-8"><title>{subject}: what was validated</title>',
        f"<style>\n{style}</style></head><body>",
        f"<h1>{subject}: what was validated</h1>",
        f'<p class="verdict {state}">{words}: {share}.</p>',
        f'<p><a href="{RESULTS_PAGE}">Results</a> · <a href="{SUITE_PAGE}">All expectations</a></p>',
        "<h2>By source</h2>",
        _table(heads, sources),
        "<h2>Quarantined, by first reason</h2>",
        _table(("reason", "for example", "rows"), reasons)
        if reasons
        else '<p class="note">Nothing was quarantined.</p>',
        '<p class="note">Every refused row and what was found: <code>quarantine.parquet</code> beside this folder.</p>',
        "</body></html>\n",
    ]
    return "\n".join(parts)


def _share(value: float | None) -> str:
    return "no meshes" if value is None else f"{value:.3f}"


def _table(heads: tuple[str, ...], rows: list[tuple[Any, ...]]) -> str:
    def line(cells: tuple[Any, ...], tag: str) -> str:
        return "".join(
            f'<{tag} class="{kind}">{escape(str(cell))}</{tag}>' for cell, kind in zip(cells, kinds, strict=True)
        )

    kinds = ["text" if name in ("source", "reason", "for example") else "number" for name in heads]
    body = "\n".join(f"<tr>{line(row, 'td')}</tr>" for row in rows)
    return f"<table><thead><tr>{line(heads, 'th')}</tr></thead><tbody>\n{body}\n</tbody></table>"
