#!/usr/bin/env bash
# The all-reduces on this machine and on emulated hosts, into records and figures under benchmarks/results/.
#   benchmarks/allreduce.sh NAME [node] [hosts]
# NAME says which MPI the mpirun on PATH is (mpich, openmpi). `node`: two ranks that share memory, with every peer that
# is installed. `hosts`: emulated hosts at 1 Gbit/s (needs root, see scripts/emulated_cluster.sh).
# Nothing else may run meanwhile: ranks on a shared core measure each other.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
name=$1 && shift
results=benchmarks/results
export OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1

# record RESULT COMMAND...: run it and write its record, and its figure, under that name.
record() {
    local result=$results/$1
    shift
    echo "$result" >&2
    rm -f "$result.jsonl"
    "$@" --record "$result.jsonl" --plot "$result.svg" --overwrite --no-progress
}

for part in "${@:-node}"; do
    case $part in
        node)
            record "allreduce-node-$name" mpirun -n 2 dml-hpc bench allreduce --peers --repeats 31 \
                --sizes 1K,4K,16K,64K,256K,1M,4M,16M,64M --reducers hierarchical,ring,tree,mpi
            # Apart, as what follows a peer in its turn finds the cache and the core as that left them.
            record "allreduce-auto-$name" mpirun -n 2 dml-hpc bench allreduce --repeats 31 \
                --sizes 4,16,64,256,1K,4K,16K,64K,256K,1M,4M,16M,64M,256M --reducers auto,hierarchical,ring,tree,mpi
            (cd benchmarks && mpirun -n 2 python fused_update.py "$name")
            ;;
        hosts)
            for hosts in 8 16; do
                record "allreduce-$hosts-hosts-$name" scripts/emulated_cluster.sh "$hosts" -- \
                    dml-hpc bench allreduce --sizes 1K,4K,64K,1M,16M --reducers ring,tree,mpi --repeats 9
            done
            record "allreduce-4x2-hosts-$name" scripts/emulated_cluster.sh 4 --ranks-per-host 2 -- \
                dml-hpc bench allreduce --sizes 1K,4K,64K,1M,16M --reducers hierarchical,ring,tree,mpi --repeats 9
            for hosts in 4 8; do
                record "allreduce-compressed-$hosts-hosts-$name" scripts/emulated_cluster.sh "$hosts" -- \
                    dml-hpc bench allreduce --sizes 256K,1M,4M,16M --reducers ring --repeats 9 \
                    --compressions none,bfloat16,float16,topk,powersgd
            done
            ;;
        *) echo "there is no part $part; there are node and hosts" >&2 && exit 2 ;;
    esac
done
