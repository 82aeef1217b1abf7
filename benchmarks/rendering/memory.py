"""Peak extra memory of forward plus backward, beyond what goes in; and beyond what comes out as well.

On the processor each number comes from a process of its own (`python -m benchmarks.rendering.memory`): it builds the
inputs, draws a tiny scene so that kernels are compiled and threads started, hands free memory back to the system,
resets the peak of its resident size (Linux: 5 written to /proc/self/clear_refs), runs once, and takes the peak (VmHWM)
less the size before (VmRSS). So everything counts that the run needs at once: buffers, autograd's saved tensors, free
blocks that the allocator keeps. The last are kept low by its own settings (`ALLOCATOR`), so that the number is memory
in use and repeats well. What comes out are the image and the gradients.
Where the peak cannot be reset, `ru_maxrss` after less before gives a lower bound. On CUDA the caching allocator counts.
"""

from __future__ import annotations

import ctypes
import gc
import json
import os
import resource
import subprocess
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.rendering.runs import Run, prepare_runs
from benchmarks.rendering.scene import build_scene

ALLOCATOR = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
"""For glibc: blocks over 64 kB are mapped alone and returned when freed; by default that bound grows as they are."""

MEGABYTE = 1e6
WARM_UP_VERTICES, WARM_UP_PX = 400, 16


@dataclass(frozen=True)
class Peak:
    """Of one forward plus backward of a batch, in megabytes beyond the inputs."""

    total: float
    beyond_outputs: float


def peak_memory(backend: str, *, vertices: int, size_px: int, batch: int, threads: int, device: str) -> Peak:
    """In a fresh process unless it is CUDA's memory.

    Raises: RuntimeError with the last line of the process's errors if it fails.
    """
    if torch.device(device).type == "cuda":
        return peak_cuda(backend, vertices=vertices, size_px=size_px, batch=batch, device=device)
    case = {"backend": backend, "vertices": vertices, "size_px": size_px, "batch": batch, "threads": threads}
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.rendering.memory", json.dumps(case)],
        env=os.environ | ALLOCATOR,
        cwd=Path(__file__).resolve().parents[2],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(f"memory of {case}: {done.stderr.strip().splitlines()[-1:]}")
    return Peak(**json.loads(done.stdout))


def peak_cuda(backend: str, *, vertices: int, size_px: int, batch: int, device: str) -> Peak:
    """The same by the counters of CUDA's allocator, in this process."""
    run = prepare_runs(build_scene(vertices, size_px, batch, device=device), backend).forward_backward
    run()
    torch.cuda.synchronize(device)
    before = torch.cuda.memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    returned = run()
    torch.cuda.synchronize(device)
    return _peak(torch.cuda.max_memory_allocated(device) - before, returned)


def peak_here(run: Run) -> Peak:
    """How far this process grows while `run` works; outputs are the tensors that it returns."""
    gc.collect()
    _return_free_memory()
    resettable = _reset_peak()
    before = _resident("VmRSS") if resettable else _lifetime_peak()
    returned = run()
    peak = _resident("VmHWM") if resettable else _lifetime_peak()
    return _peak(peak - before, returned)


def tensor_bytes(value: object) -> int:
    """Of a tensor or nested tuples of them."""
    if isinstance(value, Tensor):
        return value.untyped_storage().nbytes()
    return sum(tensor_bytes(item) for item in value) if isinstance(value, tuple) else 0


def _peak(extra: int, returned: object) -> Peak:
    beyond = max(0, extra - tensor_bytes(returned))
    return Peak(total=round(extra / MEGABYTE, 2), beyond_outputs=round(beyond / MEGABYTE, 2))


def _reset_peak() -> bool:
    try:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    except OSError:
        return False
    return True


def _resident(name: str) -> int:
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"/proc/self/status: no {name}, expected Linux")


def _lifetime_peak() -> int:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def _return_free_memory() -> None:
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
        if trim is not None:
            trim(0)


def main(case: str) -> None:
    """Print the peak of the case given as JSON."""
    sizes = json.loads(case)
    backend, threads = sizes.pop("backend"), sizes.pop("threads")
    torch.set_num_threads(threads)
    runs = prepare_runs(build_scene(**sizes), backend)
    warm_up = prepare_runs(build_scene(WARM_UP_VERTICES, WARM_UP_PX, min(4, sizes["batch"])), backend)
    for _ in range(2):
        warm_up.forward_backward()
    print(json.dumps(asdict(peak_here(runs.forward_backward))))


if __name__ == "__main__":
    main(sys.argv[1])
