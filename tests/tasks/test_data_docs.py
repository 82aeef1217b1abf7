from __future__ import annotations

from tasks.data_docs import overview, plain_page

PAGE = """<html><head><title>t</title><link rel="stylesheet" href="https://host/a.css"><script src="https://host/a.js"></script>
</head><body>
<img src="https://host/logo.png?d=20261121T115458.761855Z">
<a href="../../../../index.html">Home</a> <a href="../../../../expectations/labels.html">suite</a>
<a href="https://host/newsletter">news</a>
<a href="#body-66a99678-0a72-4d0f-86b6-36aea65020a2">more</a> Status: 2026-11-21T11:54:58Z
<div id=body-66a99678-0a72-4d0f-86b6-36aea65020a2>42</div><script>alert(1)</script>
</body></html>"""


def test_nothing_is_loaded_and_nothing_runs() -> None:
    page = plain_page(PAGE, style="b { color: red }")
    assert "http" not in page
    assert "<script" not in page
    assert "<img" not in page
    assert "<style>\nb { color: red }</style>" in page


def test_links_stay_within_the_folder() -> None:
    page = plain_page(PAGE, style="")
    assert '<a href="index.html">Home</a>' in page
    assert '<a href="suite.html">suite</a>' in page


def test_times_and_random_names_go_but_their_links_hold() -> None:
    page = plain_page(PAGE, style="")
    assert "2026" not in page
    assert '<a href="#body-part-1">more</a>' in page
    assert "<div id=body-part-1>42</div>" in page


def test_overview_escapes_what_comes_from_users() -> None:
    numbers = {"in": 2, "clean": 1, "quarantined": 1, "mean_label_quality": None}
    summary = {
        **numbers,
        "failed_share": 0.5,
        "gate": {"passed": False, "max_failed_share": 0.2},
        "reasons": {"yaw_range": 1},
        "sources": {"photos": numbers},
    }
    page = overview(summary, examples={"yaw_range": "sample_id is <b>x</b>"}, style="")
    assert "Stopped the pipeline: 50.0% of 2 rows failed, at most 20.0% may." in page
    assert "sample_id is &lt;b&gt;x&lt;/b&gt;" in page
    assert "no meshes" in page
