"""The files that come with the code and are none: parameters, graph, presets and rules of promotion."""

from __future__ import annotations

from pathlib import Path

CODE = Path(__file__).resolve().parent.parent
"""Where flows/, tasks/ and models/ lie: the checkout, or where pip installed them."""

SHIPPED = CODE if (CODE / "params.yaml").is_file() else Path(__file__).with_name("shipped_files")
"""The checkout itself; where pip installed Mien a folder of this package, which `setup.py` fills."""
