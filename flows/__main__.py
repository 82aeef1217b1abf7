"""`python -m flows STAGE` runs one stage as a flow run, `python -m flows pipeline` all that are stale.

`torchrun --nproc-per-node 2 -m flows train_fused` runs a training stage in two processes.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from flows.environment import prepare
from flows.failures import reported
from flows.server import prefect_server
from flows.stages import FUNCTIONS, check_processes, run_beside
from flows.workspace import allow_without_git, refresh_graph


def main(arguments: list[str] | None = None) -> None:
    """Read the command line and run."""
    parser = argparse.ArgumentParser(prog="python -m flows", description=__doc__)
    parser.add_argument(
        "name", choices=[*FUNCTIONS, "pipeline"], metavar="NAME", help=f"pipeline, {', '.join(FUNCTIONS)}"
    )
    parser.add_argument("--workspace", type=Path, default=Path(), help="folder with params.yaml and dvc.yaml")
    parser.add_argument("--retries", type=int, default=2, help="pipeline: further tries of a stage that broke")
    parser.add_argument("--retry-delay", type=float, default=10.0, help="pipeline: seconds before a further try")
    parser.add_argument("--cron", help="pipeline: do not run now but at these times, e.g. '0 3 * * *', until stopped")
    parser.add_argument("--debug", action="store_true", help="show the whole trace of an error")
    options = parser.parse_args(arguments)
    prepare(options.workspace)
    with reported(options.workspace, options.name, debug=options.debug):
        if not (options.workspace / "params.yaml").is_file():
            missing = options.workspace / "params.yaml"
            raise FileNotFoundError(f"{missing}: no such file; run in a Mien workspace or name one with --workspace")
        check_processes(options.name, int(os.environ.get("WORLD_SIZE", "1")))
        if int(os.environ.get("RANK", "0")) > 0:
            run_beside(options.name, options.workspace)
            return
        if options.name == "pipeline":
            allow_without_git(options.workspace)
            refresh_graph(options.workspace)
        with prefect_server(options.workspace, scheduler=bool(options.cron)):
            if options.name == "pipeline":
                from flows.pipeline import run_pipeline, serve_pipeline

                if options.cron:
                    serve_pipeline(options.workspace, cron=options.cron, retries=options.retries)
                else:
                    run_pipeline(options.workspace, retries=options.retries, retry_delay_s=options.retry_delay)
            else:
                from flows.stages import run_stage

                run_stage(options.name, options.workspace)


if __name__ == "__main__":
    main()
