"""One line of JSON for every stage that ran: what went in, what came out, what was refused and why, time and memory.

`.mien/log.jsonl` of a workspace is made for programs: `jq 'select(.event == "failed")' .mien/log.jsonl`.
"""

from __future__ import annotations

import json
import os
import resource
import socket
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

LOG = Path(".mien") / "log.jsonl"

KIB_PER_MIB = 1024


def record(workspace: Path, stage: str, *, seconds: float, error: BaseException | None = None) -> str:
    """Append what became of a stage; returns the counts in words, empty where the stage does not count."""
    counts, reasons = counted(workspace / "artifacts" / stage) if error is None else ({}, {})
    entry: dict[str, Any] = {
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "stage": stage,
        "event": "done" if error is None else "failed",
        "seconds": round(seconds, 2),
        "counts": counts,
        "reasons": reasons,
        "peak_memory_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // KIB_PER_MIB,
        "host": socket.gethostname(),
        "process": os.getpid(),
    }
    if error is not None:
        entry["error"] = {"kind": type(error).__name__, "message": str(error)}
    path = workspace / LOG
    path.parent.mkdir(parents=True, exist_ok=True)
    # One write of one line, so that runs beside each other do not mix theirs.
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(entry, ensure_ascii=False) + "\n")
    words = ", ".join(f"{name.replace('_', ' ')} {count}" for name, count in counts.items())
    why = ", ".join(f"{reason} {count}" for reason, count in reasons.items())
    return f"{words} ({why})" if why else words


def counted(folder: Path) -> tuple[dict[str, int], dict[str, int]]:
    """How many samples a stage counts under which name, and for which reasons it refused some."""
    path = folder / "summary.json"
    if not path.is_file():
        return {}, {}
    content = json.loads(path.read_text(encoding="utf-8"))
    block = content.get("total", content)
    numbers = {name: value for name, value in block.items() if isinstance(value, int) and not isinstance(value, bool)}
    reasons = block.get("reasons")
    return numbers, dict(reasons) if isinstance(reasons, dict) else {}
