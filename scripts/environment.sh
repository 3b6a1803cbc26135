# Sourced by quickstart.sh and test.sh: a virtual environment with the project in it, and how to run MPI here.
# Needs a Python >= 3.10 with venv, bash and coreutils; MPI itself comes as a wheel, through an extra.

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)

# Another installation's packages must not mix in.
unset PYTHONPATH PYTHONHOME
export PIP_DISABLE_PIP_VERSION_CHECK=1

die() {
    printf '%s: %s\n' "$(basename "$0")" "$*" >&2
    exit 1
}

# find_python: print the interpreter to build on, $PYTHON when it is set.
find_python() {
    local candidate
    for candidate in ${PYTHON:+"$PYTHON"} python3 python3.13 python3.12 python3.11 python3.10; do
        if "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null; then
            "$candidate" -c 'import ensurepip, venv' 2>/dev/null ||
                die "$candidate cannot make virtual environments; install its venv package" \
                    "(Debian, Ubuntu: apt install python3-venv), or name another Python: PYTHON=/path/to/python3 $0"
            command -v "$candidate"
            return
        fi
        [ "$candidate" != "${PYTHON:-}" ] || die "PYTHON=$PYTHON is no Python 3.10 or newer"
    done
    die "no Python 3.10 or newer found (python3: $(python3 --version 2>/dev/null || echo none));" \
        "install one, load a module, or name one: PYTHON=/path/to/python3 $0"
}

# quietly LOG COMMAND...: run a command with its output in LOG, shown only when it fails.
quietly() {
    local log=$1
    shift
    "$@" >"$log" 2>&1 </dev/null || {
        tail -n 40 "$log" >&2
        return 1
    }
}

# make_environment FOLDER EXTRAS: leave FOLDER holding the project, editable, with EXTRAS, and its programs first
# on PATH. A folder that is up to date is kept; any other is made anew, so that nothing stale stays behind.
make_environment() {
    local folder=$1 extras=$2 python wanted
    python=$(find_python)
    # The path counts too: programs in an environment name their interpreter by its full path.
    wanted="$root $extras $("$python" --version) $(cksum <"$root/pyproject.toml")"
    if [ "$(cat "$folder/stamp" 2>/dev/null)" != "$wanted" ]; then
        "$python" -m venv --clear "$folder" || die "cannot make a virtual environment in $folder"
        quietly "$folder/install.log" "$folder/bin/python" -m pip install --no-input -e "$root[$extras]" ||
            die "pip could not install the project (the whole of it: $folder/install.log)"
        printf '%s\n' "$wanted" >"$folder/stamp"
    fi
    PATH=$folder/bin:$PATH
}

# prepare_mpi: what ranks on one machine want, whichever MPI; a setting you made yourself stays.
prepare_mpi() {
    # One thread a rank: ranks times threads on few cores crawl.
    export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1} OPENBLAS_NUM_THREADS=${OPENBLAS_NUM_THREADS:-1}
    # MPICH: a waiting rank is to sleep now and then. It calls sched_yield, after which Linux may well choose it again:
    # with more ranks than cores, small sums took 10 to 30 times as long.
    export MPIR_CVAR_ENABLE_HEAVY_YIELD=${MPIR_CVAR_ENABLE_HEAVY_YIELD:-1}
    # Open MPI: allow more ranks than cores, and let a waiting rank give its core away.
    export PRTE_MCA_rmaps_default_mapping_policy=${PRTE_MCA_rmaps_default_mapping_policy:-:oversubscribe}
    export OMPI_MCA_mpi_yield_when_idle=${OMPI_MCA_mpi_yield_when_idle:-1}
    # In a container everyone is root, and Open MPI wants that said twice.
    if [ "$(id -u)" = 0 ]; then
        export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1
    fi
}
