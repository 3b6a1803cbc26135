#!/usr/bin/env bash
# Builds Horovod into the environment of `scripts/test.sh --mpi mpich` and proves it on 2 ranks, under mpirun and under
# horovodrun. Apart from the other tests, which must not need it.
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/../scripts/environment.sh"
cd "$root"
make_environment "$root/.venv-test-mpich" mpich,test
DML_HPC_VENV=$root/.venv-test-mpich bash scripts/install_horovod.sh
prepare_mpi

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
awk 'BEGIN { print "a,b,late"; for (i = 0; i < 500; i++) print sin(i) "," cos(7 * i) "," (sin(i) + cos(7 * i) / 3 > 0) }' \
    >"$work/table.csv"
dml-hpc data import "$work/table.csv" -o "$work/data" --label late

set -x
timeout 120 mpirun -n 2 python -m pytest -q tests/mpi/test_horovod.py --with-mpi
timeout 120 mpirun -n 2 dml-hpc bench allreduce --reducers mpi,horovod --sizes 4,1048579
timeout 120 horovodrun -np 2 dml-hpc train "$work/data" -o "$work/model.h5" --allreduce horovod --batch-size 50
timeout 60 dml-hpc evaluate "$work/model.h5" "$work/data"
