"""GPUs and processors, memory, disk, and the operating system's limits."""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from .finding import Finding

GIB = 2**30
#: Loader workers hand batches over in shared memory.
LEAST_SHARED_MEMORY = 2 * GIB
LEAST_DISK = 20 * GIB
LEAST_OPEN_FILES = 4096
#: The first generation with bf16 in its matrix units (Ampere).
BF16_CAPABILITY = (8, 0)


def check_gpus() -> Iterator[Finding]:
    """The devices that torch sees, and those that it does not."""
    import torch

    if not torch.cuda.is_available():
        if torch.backends.mps.is_available():
            yield Finding("GPU", "ok", "Apple's GPU (mps): answers and generates; training runs on the CPU")
        elif Path("/proc/driver/nvidia/version").exists() or shutil.which("nvidia-smi"):
            built = f"torch {torch.__version__} (built for {torch.version.cuda or 'no CUDA'})"
            yield Finding(
                "GPU",
                "failure",
                f"an NVIDIA driver is installed, but {built} sees no GPU",
                "compare torch's CUDA version with the one nvidia-smi prints; look at CUDA_VISIBLE_DEVICES",
            )
        else:
            yield Finding("GPU", "note", "none; everything runs on the CPU")
        return
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        free, total = torch.cuda.mem_get_info(index)
        text = (
            f"{properties.name}, sm_{properties.major}{properties.minor}, "
            f"{free / GIB:.0f} of {total / GIB:.0f} GiB free"
        )
        old = (properties.major, properties.minor) < BF16_CAPABILITY
        busy = free < total * 0.9
        yield Finding(
            f"GPU {index}",
            "warning" if old or busy else "ok",
            text + (", no fast bf16" if old else ""),
            "run.precision: fp32" if old else "another process holds memory: see nvidia-smi" if busy else "",
        )


def check_processor() -> Iterator[Finding]:
    """Cores that this process may use, and torch's threads."""
    import torch

    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    cores = min(usable, _control_group_cores() or usable)
    threads = torch.get_num_threads()
    text = f"{cores} core{'s' if cores > 1 else ''}, {threads} thread{'s' if threads > 1 else ''} of torch"
    if threads > cores:
        yield Finding("processor", "warning", text, f"OMP_NUM_THREADS={cores}: more threads than cores wait")
    else:
        yield Finding("processor", "ok", text)


def _control_group_cores() -> int | None:
    """The cores that a container may use (version 2 of Linux' control groups)."""
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        return None if quota == "max" else max(1, int(quota) // int(period))
    except (OSError, ValueError):
        return None


def check_memory() -> Iterator[Finding]:
    """The machine's memory, and the container's limit."""
    if not hasattr(os, "sysconf") or "SC_PHYS_PAGES" not in os.sysconf_names:
        return
    total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    try:
        limit = int(Path("/sys/fs/cgroup/memory.max").read_text())
    except (OSError, ValueError):
        limit = total
    usable = min(total, limit)
    of = f" (limit of this container; the machine has {total / GIB:.0f})" if limit < total else ""
    yield Finding("memory", "ok", f"{usable / GIB:.0f} GiB{of}")


def check_shared_memory(folder: Path = Path("/dev/shm")) -> Iterator[Finding]:
    """Shared memory, through which loader workers and NCCL on one machine pass data."""
    if sys.platform != "linux":
        return
    free = shutil.disk_usage(folder).free
    text = f"{free / GIB:.1f} GiB free in {folder}"
    if free < LEAST_SHARED_MEMORY:
        remedy = "docker run --shm-size=8g (or --ipc=host); else data.num_workers: 0"
        yield Finding("shared memory", "warning", text, remedy)
    else:
        yield Finding("shared memory", "ok", text)


def check_disk() -> Iterator[Finding]:
    """Free space where runs, temporary files and downloaded weights go."""
    from huggingface_hub.constants import HF_HOME

    folders = {
        "this folder": Path.cwd(),
        "temporary files": Path(tempfile.gettempdir()),
        "downloads": Path(HF_HOME),
    }
    for name, folder in folders.items():
        present = next(one for one in (folder, *folder.parents) if one.exists())
        free = shutil.disk_usage(present).free
        text = f"{free / GIB:.0f} GiB free for {name} ({folder})"
        if not os.access(present, os.W_OK):
            yield Finding("disk", "warning", f"{name}: {folder} cannot be written", _remedy(name))
        elif free < LEAST_DISK:
            yield Finding("disk", "warning", text, f"a 0.5 B checkpoint takes 8 GB; {_remedy(name)}")
        else:
            yield Finding("disk", "ok", text)


def _remedy(name: str) -> str:
    variable = {"temporary files": "TMPDIR", "downloads": "HF_HOME"}.get(name)
    return f"set {variable} to a larger folder" if variable else "work in a larger folder"


def check_open_files() -> Iterator[Finding]:
    """How many files a process may have open; each shard that is read takes one."""
    try:
        import resource
    except ImportError:  # Windows
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if 0 <= soft < LEAST_OPEN_FILES:
        more = hard if hard >= 0 else LEAST_OPEN_FILES * 16
        remedy = f"ulimit -n {max(more, LEAST_OPEN_FILES)}"
        yield Finding("open files", "warning", f"at most {soft}", remedy)
    else:
        yield Finding("open files", "ok", "unlimited" if soft < 0 else f"at most {soft}")
