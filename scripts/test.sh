#!/usr/bin/env bash
# Every test, on nothing but Python: one process first, then under mpirun with 1, 2, 3 and 4 ranks.
#   scripts/test.sh [--mpi mpich|openmpi] [--only-mpi] [-- PYTEST ARGUMENTS]
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
while [ $# -gt 0 ]; do
    case $1 in
        --mpi) mpi=${2:-} && shift $(($# > 1)) ;;
        --only-mpi) only_mpi=yes ;;
        --) shift && break ;;
        -h | --help) usage 0 ;;
        *) usage 2 >&2 ;;
    esac
    shift
done
selected=$*
case $mpi in mpich | openmpi) ;; *) usage 2 >&2 ;; esac

# Each run gets this long. A hanging test is ended much sooner, with its stacks, by tests/conftest.py.
limit_s=${DML_HPC_TEST_LIMIT_S:-900}

# In the background and waited for, so that an interrupt reaches us at once and we can end the whole run.
child='' other='' other_line='' other_log=''
end_children() {
    local each
    for each in $child $other; do kill -TERM "$each" 2>/dev/null || true; done
    [ -z "$other_log" ] || rm -f "$other_log"
}
trap end_children EXIT
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
    judge "$status" "$@"
}

# beside COMMAND...: start a command whose turn comes while another runs; `together` waits for it, shows what it said
# and judges it as `bounded` does.
beside() {
    other_log=$(mktemp) other_line=$(printf '%q ' "$@")
    set -m
    timeout -k 10 "$limit_s" "$@" </dev/null >"$other_log" 2>&1 &
    other=$!
    set +m
}

together() {
    local status=0
    wait "$other" || status=$?
    other=
    printf '\n== meanwhile: %s\n' "$other_line"
    cat "$other_log"
    rm -f "$other_log"
    other_log=
    eval "judge $status $other_line"
}

# judge STATUS COMMAND...: end with the status a command has ended with, unless all is well.
judge() {
    local status=$1
    shift
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
# Open MPI gives ranks a terminal of their own, so pytest cannot tell where its output goes.
color=no
[ ! -t 1 ] || color=yes
pytest=(python -m pytest -q --color=$color)

# The tests marked `job` start ranks of their own, so what they show depends on the MPI library too.
# Some of the tests wait, for deadlines and for jobs: three keep two cores busy.
not_maths=(-m "not maths")
if [ -n "$only_mpi" ]; then
    bounded "${pytest[@]}" -n 3 tests/unit -m "job and not maths" "$@"
else
    bounded "${pytest[@]}" -n 3 tests/unit "$@"
    # One rank waits for nobody, and takes what the other tests leave of two cores.
    OMP_NUM_THREADS=1 beside mpirun -n 1 "${pytest[@]}" tests/mpi --with-mpi "$@"
    bounded tests/gpu/run.sh "${pytest[@]}" "$@"
    together
fi
# Arithmetic shows what it does on one rank and on three, of which one library is as good as another; and of another
# library than the first, what two ranks and three do is what four do.
for n in 2 3 ${only_mpi:-4}; do
    [ "$n" != yes ] || continue
    mine=("${not_maths[@]}")
    [ -n "$only_mpi" ] || [ "$n" != 3 ] || mine=()
    # A rank is a core, as it is under the command.
    OMP_NUM_THREADS=1 bounded mpirun -n "$n" "${pytest[@]}" tests/mpi --with-mpi "${mine[@]}" "$@"
done
# Batch scripts, where a Slurm of several nodes can be had on this machine.
if why=$(scripts/local_slurm.sh 1 -- true 2>&1); then
    bounded scripts/local_slurm.sh 6 --gpus 2 -- "${pytest[@]}" -n 3 tests/slurm ${only_mpi:+"${not_maths[@]}"} "$@"
else
    printf '\n== tests/slurm are skipped: %s\n' "${why##*$'\n'}"
fi
printf '\n== all passed with %s\n' "$mpi"
