#!/usr/bin/env bash
# All tests of the device's code: those that compile kernels for GPUs and hunt for races beside those that run them, as
# each keeps one core busy.
#   tests/gpu/run.sh PYTEST WORDS…
set -u
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
slow=(tests/gpu/test_races.py tests/gpu/test_compile.py)
# A test there waits for what others before it have started.
DML_HPC_TEST_DEADLINE_S=600 "$@" "${slow[@]}" >"${TMPDIR:-/tmp}/gpu-slow-$$.log" 2>&1 &
other=$!
trap 'kill "$other" 2>/dev/null; rm -f "${TMPDIR:-/tmp}/gpu-slow-$$.log"' EXIT
"$@" tests/gpu "${slow[@]/#/--ignore=}"
first=$?
wait "$other"
second=$?
cat "${TMPDIR:-/tmp}/gpu-slow-$$.log"
# 5: pytest's arguments select nothing there.
[ "$first" = 5 ] && exit "$second"
[ "$second" = 5 ] && exit "$first"
exit $((first > second ? first : second))
