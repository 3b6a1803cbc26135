#!/usr/bin/env bash
# What one GPU shows, in under 10 minutes: the tests of the device's code on it, and what it does beside its memory.
#   scripts/gpu_check.sh [--tests-only]
# Builds an environment in .venv-gpu (with CuPy for the driver's CUDA), or takes the Python that $GPU_PYTHON names,
# with the project and CuPy in it. Writes benchmarks/results/gpu.json.
set -Eeuo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
cd "$root"

case ${1:-} in
    '' | --tests-only) ;;
    -h | --help) sed -n '2,5s/^# \{0,1\}//p' "$0" && exit 0 ;;
    *) sed -n '2,5s/^# \{0,1\}//p' "$0" >&2 && exit 2 ;;
esac

command -v nvidia-smi >/dev/null || die "there is no nvidia-smi, so no NVIDIA driver here; run this on a node with a GPU"
nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv,noheader

if [ -n "${GPU_PYTHON:-}" ]; then
    python=$GPU_PYTHON
else
    cuda=$(nvidia-smi | sed -n 's/.*CUDA Version: \([0-9]*\).*/\1/p' | head -1)
    [ "${cuda:-0}" -ge 12 ] || die "the driver's CUDA is ${cuda:-unknown}; CuPy needs 12 or newer"
    make_environment "$root/.venv-gpu" "mpich,test,bench,cuda$((cuda >= 13 ? 13 : 12))"
    prepare_mpi
    python=python
fi
export OMP_NUM_THREADS=1

printf '\n== doctor\n'
"$python" -m dml_hpc doctor || true
printf '\n== tests on the GPU\n'
DML_HPC_TEST_DEVICE=cuda timeout 240 "$python" -m pytest -q tests/gpu --ignore=tests/gpu/test_compile.py -x
if command -v mpirun >/dev/null; then
    for n in 1 2; do
        DML_HPC_TEST_DEVICE=cuda timeout 120 mpirun -n "$n" "$python" -m pytest -q --with-mpi tests/mpi/test_device_reducers.py \
            tests/mpi/test_train_device.py tests/mpi/test_mf_device.py -x
    done
fi
[ "${1:-}" = --tests-only ] || timeout 400 "$python" benchmarks/gpu.py
