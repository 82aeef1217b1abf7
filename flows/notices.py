"""What scheduled runs tell people: a message to a webhook when something fails, tables and bars on Prefect's page."""

from __future__ import annotations

import base64
import json
import logging
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

WEBHOOK_SECONDS = 10.0

PICTURES = {
    "train_detector": ("balance.png",),
    "evaluate": ("pictures/by_yaw.png", "pictures/error_distribution.png"),
}
"""Of a stage's outputs, what Prefect's page shows."""

MAX_PICTURE_BYTES = 500_000


def notify(webhook: str, message: Mapping[str, Any]) -> bool:
    """Post a message as JSON with a readable `text`, as chat programs take it; whether it was taken.

    A run must not fail because nobody can be told.
    """
    logger = logging.getLogger(__name__)
    if not webhook.startswith(("http://", "https://")):
        logger.warning("webhook %s: expected an address that begins with http:// or https://", webhook)
        return False
    request = urllib.request.Request(
        webhook, data=json.dumps(message).encode(), headers={"Content-Type": "application/json"}, method="POST"
    )
    try:
        with urllib.request.urlopen(request, timeout=WEBHOOK_SECONDS) as answer:
            return 200 <= int(answer.status) < 300
    except (urllib.error.URLError, TimeoutError, OSError) as error:
        logger.warning("webhook %s: %s; nobody was told of: %s", webhook, error, message.get("text"))
        return False


def tell_failure(flow: Any, flow_run: Any, state: Any) -> None:
    """Hook of a flow that failed, crashed or was cancelled: tells the webhook among the run's parameters, if any."""
    webhook = (flow_run.parameters or {}).get("webhook")
    if webhook:
        reason = str(state.message or "no reason given").split("StageError: ")[-1]
        notify(
            str(webhook),
            {
                "text": f"{flow.name} {state.name.lower()}: {reason}",
                "flow": flow.name,
                "run": flow_run.name,
                "run_id": str(flow_run.id),
                "state": state.name,
                "reason": reason,
                "workspace": str((flow_run.parameters or {}).get("workspace", "")),
            },
        )


def tell(webhook: str | None, flow: str, workspace: str, text: str, **more: Any) -> None:
    """Tell the webhook, where there is one, of something that is no failure."""
    if webhook:
        notify(webhook, {"text": f"{flow}: {text}", "flow": flow, "workspace": workspace, **more})


def show_table(key: str, rows: Sequence[Mapping[str, Any]], description: str) -> None:
    """A table on Prefect's page; values that are not plain are written out."""
    from prefect.artifacts import create_table_artifact

    plain = [
        {name: value if isinstance(value, (int, float, str)) else _text(value) for name, value in row.items()}
        for row in rows
    ]
    create_table_artifact(key=key, table=plain, description=description)


def show_pictures(stage: str, folder: Path) -> None:
    """The pictures of a stage on Prefect's page, as far as it drew them; they are small enough to travel with it."""
    from prefect.artifacts import create_image_artifact

    for name in PICTURES.get(stage, ()):
        path = folder / name
        if path.is_file() and path.stat().st_size <= MAX_PICTURE_BYTES:
            content = base64.b64encode(path.read_bytes()).decode()
            key = f"{stage}-{path.stem}".replace("_", "-").lower()
            create_image_artifact(f"data:image/png;base64,{content}", key=key, description=f"{stage}: {name}")


def _text(value: Any) -> str:
    return "–" if value is None else json.dumps(value, ensure_ascii=False, default=str)
