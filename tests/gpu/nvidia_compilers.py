"""The compilers for NVIDIA's GPUs, where this machine has one; they need no GPU."""

from __future__ import annotations

import contextlib
import ctypes
import ctypes.util
import importlib.util
import json
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from host_device import cache_folder, digest

from dml_hpc.cuda import SOURCES, qualified

OPTIONS = ["-std=c++17", f"-I{SOURCES}", "-ftz=true"]  # the last one is of CuPy's choosing


class Built(NamedTuple):
    """What a compiler answered; ``spilled`` has the bytes of registers that each kernel stores to memory."""

    succeeded: bool
    log: str
    spilled: dict[str, int]


def compile_instances(file: str, instances: Sequence[str], architecture: int) -> Built:
    """Build instances of a kernel file, by NVRTC (which builds them where they run) or else by nvcc.

    What has been built before is not built again: the answer is kept beside the host's kernels.
    """
    texts = [path.read_text() for path in (*sorted(SOURCES.glob("*.cuh")), SOURCES / file, Path(__file__))]
    known = cache_folder() / f"{Path(file).stem}-{digest(_version(), *texts, *instances, str(architecture))}.json"
    with contextlib.suppress(FileNotFoundError):
        return Built(*json.loads(known.read_text()))
    library = nvrtc()
    built = (_by_nvcc(file, instances, architecture) if library is None else
             _by_nvrtc(library, file, instances, architecture))
    known.with_suffix(f".{os.getpid()}").write_text(json.dumps(built))
    known.with_suffix(f".{os.getpid()}").replace(known)
    return built


def _run(*command: str, given: str | None = None) -> subprocess.CompletedProcess[str]:
    """Run a compiler, in a copy of the environment: builds run in threads, while pytest changes its own for every test,
    and a process that starts from an environment being changed ends with "Bad address" now and then."""
    return subprocess.run(command, input=given, capture_output=True, text=True, env=dict(os.environ))


@cache
def _version() -> str:
    library = nvrtc()
    if library is None:
        return _run("nvcc", "--version").stdout
    major, minor = ctypes.c_int(), ctypes.c_int()
    library.nvrtcVersion(ctypes.byref(major), ctypes.byref(minor))
    return f"NVRTC {major.value}.{minor.value}"


def compiler() -> str | None:
    """Return which compiler there is."""
    return "NVRTC" if nvrtc() is not None else shutil.which("nvcc")


@cache
def nvrtc() -> Any:
    """Return NVRTC, from a wheel of NVIDIA's, beside nvcc, or wherever the system knows it; None if there is none."""
    spec = importlib.util.find_spec("nvidia")
    places = [Path(folder) for folder in (spec.submodule_search_locations or [])] if spec else []
    if nvcc := shutil.which("nvcc"):
        places.append(Path(nvcc).resolve().parents[1])
    found = [path for place in places for path in sorted(place.glob("**/libnvrtc.so*"))]
    for name in [*map(str, found), ctypes.util.find_library("nvrtc")]:
        try:
            return ctypes.CDLL(name) if name else None
        except OSError:
            continue
    return None


def _by_nvrtc(library: Any, file: str, instances: Sequence[str], architecture: int) -> Built:
    program = ctypes.c_void_p()
    source = (SOURCES / file).read_bytes()
    assert library.nvrtcCreateProgram(ctypes.byref(program), source, file.encode(), 0, None, None) == 0
    for instance in instances:
        assert library.nvrtcAddNameExpression(program, qualified(instance).encode()) == 0
    chosen = [*OPTIONS, f"-arch=sm_{architecture}", "-default-device", "--ptxas-options=-v"]
    options = [option.encode() for option in chosen]
    failed = library.nvrtcCompileProgram(program, len(options), (ctypes.c_char_p * len(options))(*options))
    size = ctypes.c_size_t()
    library.nvrtcGetProgramLogSize(program, ctypes.byref(size))
    log = ctypes.create_string_buffer(size.value)
    library.nvrtcGetProgramLog(program, log)
    mangled: dict[str, str] = {}
    for instance in [] if failed else instances:
        name = ctypes.c_char_p()
        assert library.nvrtcGetLoweredName(program, qualified(instance).encode(), ctypes.byref(name)) == 0
        mangled[(name.value or b"").decode()] = instance
    library.nvrtcDestroyProgram(ctypes.byref(program))
    text = log.value.decode()
    return Built(not failed, text, {mangled.get(name, name): count for name, count in _spilled(text).items()})


def _by_nvcc(file: str, instances: Sequence[str], architecture: int) -> Built:
    with tempfile.TemporaryDirectory() as folder:
        unit = Path(folder, "unit.cu")
        names = ", ".join(f"(void*)&{qualified(instance)}" for instance in instances)
        unit.write_text(f'#include "{file}"\nvoid* instances[] = {{{names}}};\n')
        done = _run("nvcc", *OPTIONS, f"-arch=sm_{architecture}", "-cubin", "-Xptxas", "-v", "-o",
                    f"{folder}/unit.cubin", str(unit))
        log = done.stdout + done.stderr
    spilled = _spilled(log)
    filt = shutil.which("cu++filt") or shutil.which("c++filt")
    if filt is None:
        return Built(done.returncode == 0, log, spilled)
    clear = _run(filt, given="\n".join(spilled)).stdout.splitlines()
    wanted = {_plain(instance): instance for instance in instances}
    found = (next((wanted[key] for key in wanted if f"{key}(" in _plain(name)), name) for name in clear)
    return Built(done.returncode == 0, log, dict(zip(found, spilled.values(), strict=True)))


def _plain(name: str) -> str:
    """Return a kernel's name as a demangler and a person write it alike."""
    return re.sub(r"\s|dml::|\(\w+\)(?=\d)", "", name.replace("(bool)1", "true").replace("(bool)0", "false"))


def _spilled(log: str) -> dict[str, int]:
    """Return how many bytes each kernel spills, from what ptxas says when it is asked to say more."""
    return {name: int(count) for name, count in
            re.findall(r"Function properties for (\w+)\s*\n.*?(\d+) bytes spill stores", log)}
