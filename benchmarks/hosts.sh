#!/usr/bin/env bash
# What more hosts bring where the wire is the limit: all-reduces on 2, 4, 8 and 16 emulated hosts of 50 Mbit/s, and training
# whose gradient of 1 MiB is all there is to do, on 1 to 16. The hosts share this machine's cores, so computing is kept
# small. Needs root.
#   benchmarks/hosts.sh RECORDS.jsonl      then: dml-hpc report RECORDS.jsonl -o report.html
set -euo pipefail
records=$(realpath -- "${1:?where do the records go? name a file}")
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
hosts=(--emulate-hosts --rate 50mbit --record "$records")
dml-hpc bench scaling --ranks 2,4,8,16 --repeats 3 "${hosts[@]}" -- \
    allreduce --sizes 512K,1M --repeats 3 --reducers mpi,ring,tree,hierarchical
dml-hpc data synth sparse-binary --rows 8192 --features 262144 --row-entries 32 -o wide --shards 16
for reducer in ring mpi; do
    dml-hpc bench scaling --ranks 1,2,4,8,16 --repeats 3 "${hosts[@]}" -- \
        train wide --algorithm sync --exchange dense --batch-size 1024 --epochs 1 --allreduce "$reducer"
done
