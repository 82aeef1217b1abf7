"""The command `mien demo`: a page on this machine that turns photos into faces and lets them speak."""

from __future__ import annotations

import contextlib
import socket
import tempfile
import threading
import webbrowser
from pathlib import Path
from typing import Annotated

import typer

from flows.console import AnimatorOption, CheckpointOption, WorkspaceOption, command, examples

LOOPBACK = ("127.0.0.1", "localhost")
EXAMPLES = examples("mien demo", "mien demo --workspace workspaces/portraits --port 8000 --no-open")


def demo(
    workspace: WorkspaceOption = Path(),
    checkpoint: CheckpointOption = None,
    animator: AnimatorOption = None,
    host: Annotated[str, typer.Option(help="Address to listen on; 0.0.0.0 lets other machines in.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes a free one.")] = 7860,
    show: Annotated[bool, typer.Option("--open/--no-open", help="Open the page in the browser.")] = True,
) -> None:
    """Open a web page: drop photos, turn the 3D face, move its expression, let it speak, download everything.

    Nothing leaves this machine, and nothing is fetched from elsewhere.
    """
    with command("demo", workspace):
        if not (workspace / "params.yaml").is_file():
            missing = workspace / "params.yaml"
            raise FileNotFoundError(f"{missing}: no such file; run in a Mien workspace or name one with --workspace")
        # Bound before anything is loaded, so that a port that is taken is said at once.
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        with socket.socket(family, socket.SOCK_STREAM) as listener, tempfile.TemporaryDirectory(prefix="mien-") as made:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                listener.bind((host, port))
            except OSError as error:
                raise ValueError(
                    f"{host}:{port}: {error.strerror}; choose another --port, 0 takes a free one"
                ) from None
            import uvicorn

            from tasks.artifacts import Workspace
            from tasks.demo import Studio
            from tasks.demo_server import demo_app

            studio = Studio(Workspace(workspace), Path(made), checkpoint=checkpoint, animator=animator)
            for lacking in filter(None, (studio.no_photos, studio.no_speech)):
                print(f"note: {lacking}")
            shown = "127.0.0.1" if host in ("0.0.0.0", "::") else host
            address = f"http://{f'[{shown}]' if ':' in shown else shown}:{listener.getsockname()[1]}/"
            print(f"The page is at {address} (Ctrl+C ends it)", flush=True)
            if host not in LOOPBACK:
                print("note: other machines can reach it; there is no password", flush=True)
            app = demo_app(studio, hosts=() if host in LOOPBACK else ("*",))
            settings = uvicorn.Config(app, log_level="warning", lifespan="off", timeout_graceful_shutdown=2)
            if show:
                threading.Timer(0.5, webbrowser.open, [address]).start()
            listener.listen(64)
            # The server hands the signal on when it has ended; that is how a page is closed, not a failure.
            with contextlib.suppress(KeyboardInterrupt):
                uvicorn.Server(settings).run(sockets=[listener])
