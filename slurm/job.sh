#!/usr/bin/env bash
# What the batch scripts here share; nobody edits it: a site's settings are in site.sh, a job's in its own script.
#   salloc -N 2 -n 4 bash slurm/job.sh [-n RANKS] COMMAND...      starts COMMAND as ranks, as the batch scripts do
# Sourced, it reads site.sh, listens to signals and leaves `run_job`.
set -e

slurm=${DML_HPC_SLURM:-${SLURM_SUBMIT_DIR:-$PWD}/slurm}
name=${SLURM_JOB_NAME:-job}
name=${name//\//-}-${SLURM_JOB_ID:-0}
line=() child='' keeper='' listener='' reminder='' staging='' told='' signals=0
# Beside the ranks, on the same CPUs.
aside=(env -u SLURM_GPUS_PER_TASK -u SLURM_NTASKS_PER_NODE -u SLURM_CPUS_PER_TASK
    srun --overlap --mpi=none --cpu-bind=none --cpus-per-task=1)
trusted=yes # is the launcher's exit code

die() {
    printf '%s: %s\n' "${SLURM_JOB_NAME:-job.sh}" "$*" >&2
    exit 2
}

say() {
    printf 'job      %s\n' "$*"
}

# Slurm's warning (--signal=B:USR1@…), preemption (TERM) or a person asks the job to save and to end. srun and both
# mpiruns pass USR1 on to all ranks; of TERM they would make an end at once.
stop() {
    told=${told:-$1}
    signals=$((signals + 1))
    [ -z "$child" ] || tell_ranks
    [ -z "$staging" ] || kill -USR2 "$keeper" 2>/dev/null || true
}

# tell_ranks: pass USR1 on, until they have ended: srun drops a signal for tasks of whose start it has not heard yet, and
# a shell one that comes before it becomes the launcher. Ranks take the second for the first.
tell_ranks() {
    kill -USR1 "$child" 2>/dev/null || true
    [ -z "$reminder" ] || return 0
    while sleep 2 && kill -USR1 "$child" 2>/dev/null; do :; done &
    reminder=$!
}

# ---- How ranks are started

# how: print by what: a way of `srun --mpi`, or mpirun.
how() {
    local version wanted
    case ${DML_HPC_SLURM_MPI:-} in
        '' | srun) ;; # srun: not by mpirun, whatever way that is
        *) echo "$DML_HPC_SLURM_MPI" && return ;;
    esac
    version=$(mpirun --version 2>/dev/null | head -n 1) || true
    case $version in
        HYDRA*) wanted=pmi2 ;;
        *"Open MPI"*) wanted=pmix ;;
        ?*) echo mpirun && return ;;
        *) die "there is no mpirun on PATH: load the MPI module or activate the environment in $slurm/site.sh" ;;
    esac
    # Some versions answer on stderr.
    if srun --mpi=list 2>&1 | grep -qw "$wanted"; then
        echo "$wanted"
    else
        [ -z "${DML_HPC_SLURM_MPI:-}" ] || die "srun here does not know $wanted, which this MPI wants: use mpirun"
        echo mpirun
    fi
}

# launcher [RANKS]: leave in `line` what starts so many ranks, node after node; without a number, all of the job.
launcher() {
    local by bind=cores ranks=${1:-} per_node=${SLURM_NTASKS_PER_NODE:-} threads=${SLURM_CPUS_PER_TASK:-1}
    [ -z "$ranks" ] || [ -n "$per_node" ] || die "a part of the job's ranks needs --ntasks-per-node"
    # More than a node's ranks fill whole nodes.
    [ -z "$ranks" ] || [ "$ranks" -gt "$per_node" ] || per_node=$ranks
    [ "${BIND:-yes}" != no ] || bind=none
    by=$(how)
    if [ "$by" != mpirun ]; then
        # Ranks see all GPUs of their node and take one each: they read each other's memory there.
        line=(srun "--mpi=$by" --kill-on-bad-exit=1 "--cpu-bind=$bind" "--cpus-per-task=$threads")
        [ -z "${SLURM_JOB_GPUS:-}${SLURM_GPUS_PER_TASK:-}" ] || line+=(--gpu-bind=none)
        [ -z "$ranks" ] ||
            line+=("--ntasks=$ranks" "--nodes=$(((ranks + per_node - 1) / per_node))" "--ntasks-per-node=$per_node")
        return
    fi
    # mpirun has srun start a daemon a node, which wants all that the job has there.
    line=(env -u SRUN_CPUS_PER_TASK -u SLURM_CPUS_PER_TASK -u SLURM_GPUS_PER_TASK SLURM_CPU_BIND=none SLURM_GPU_BIND=none)
    case $(mpirun --version 2>/dev/null | head -n 1) in
        *"Open MPI"*)
            # It may end with 0 when it has lost a node. A daemon that `scancel --signal=USR1` meets would die of it.
            trusted=no
            line+=("PRTE_MCA_prte_launch_agent=env --ignore-signal=USR1 prted" mpirun)
            if [ "$bind" = none ]; then line+=(--bind-to none) threads=
            else line+=(--bind-to core:overload-allowed) threads=:PE=$threads; fi
            if [ -n "$ranks" ]; then line+=(-n "$ranks" --map-by "ppr:$per_node:node$threads")
            else line+=(--map-by "slot$threads"); fi ;;
        *)
            line+=(mpirun)
            [ "$bind" = none ] || line+=(-bind-to "core:$threads")
            [ -z "$ranks" ] || line+=(-n "$ranks" -ppn "$per_node") ;;
    esac
}

# ---- Shards on the nodes' own scratch

# keep_staged SCRATCH SOURCE...: on one node, hold copies of the folders until told to end (USR2), or ended with the job.
keep_staged() {
    local scratch=$1 need room number=0 source
    shift
    trap '' USR1 # meant for the ranks
    trap 'exit 0' USR2 TERM INT HUP
    # A start of this job that lost its node could not tidy up.
    [ "${SLURM_RESTART_COUNT:-0}" = 0 ] || rm -rf -- "$scratch"
    trap 'echo ended' EXIT # which ends the others
    mkdir -m 700 -- "$scratch" ||
        die "staging: $(uname -n) cannot make $scratch; scratch is to be a folder of each node's own (SLURM_TMPDIR)"
    trap 'echo ended; kill $(jobs -p) 2>/dev/null || true; rm -rf -- "$scratch" || rm -rf -- "$scratch"' EXIT
    need=$(du -scL --apparent-size --block-size=1 -- "$@" | tail -n 1 | cut -f 1)
    room=$(df --block-size=1 --output=avail -- "$scratch" | tail -n 1)
    [ "$need" -lt "$room" ] ||
        die "staging: $((need >> 20)) MiB do not fit into $((room >> 20)) MiB of $(dirname "$scratch") on $(uname -n)"
    for source; do
        number=$((number + 1))
        mkdir -- "$scratch/$number"
        cp -RL -- "$source" "$scratch/$number/" & # so that signals are heard meanwhile
        wait $! || die "staging: $source cannot be copied to $scratch on $(uname -n)"
    done
    echo staged
    exec >/dev/null
    sleep infinity &
    wait $!
}

# stage: copy the data sets among `arguments` to every node, and name the copies instead.
stage() {
    local scratch place number=0 before='' option value words count=0 sources=()
    scratch=${SLURM_TMPDIR:-${TMPDIR:-/tmp}}/dml-hpc-$SLURM_JOB_ID
    for place in "${!arguments[@]}"; do
        value=${arguments[place]} option=
        case $value in --validation=* | --test=*) option=${value%%=*}= value=${value#*=} ;; esac
        case $before in
            # What is written, and what a folder of checkpoints is, are no data.
            -o | --output | --left | --checkpoint | --record | --trace | --tuning | --plot | --config) ;;
            *)
                if [ -d "$value" ] && compgen -G "$value/*.h5" >/dev/null; then
                    number=$((number + 1))
                    sources+=("$(realpath -- "$value")")
                    arguments[place]=$option$scratch/$number/$(basename -- "$(realpath -- "$value")")
                fi ;;
        esac
        before=${arguments[place]}
    done
    [ "$number" -gt 0 ] || die "STAGE=yes, but no argument is a folder with HDF5 shards"
    # One process a node stays for as long as the job, and tidies up even when all else has been killed.
    exec {words}< <(exec "${aside[@]}" --nodes="$SLURM_JOB_NUM_NODES" --ntasks="$SLURM_JOB_NUM_NODES" \
        --ntasks-per-node=1 bash "$slurm/job.sh" --keep-staged "$scratch" "${sources[@]}")
    keeper=$! staging=yes
    [ -z "$told" ] || kill -USR2 "$keeper" 2>/dev/null || true # it came while that was started
    while [ "$count" -lt "$SLURM_JOB_NUM_NODES" ] && read -r value <&"$words" && [ "$value" != ended ]; do
        [ "$value" != staged ] || count=$((count + 1))
    done
    staging=
    if [ "$count" = "$SLURM_JOB_NUM_NODES" ]; then
        say "staged   $number data set(s) in $scratch on $count node(s), ${SECONDS} s after the start"
    else
        [ -n "$told" ] || die "the data were not staged: see above"
    fi
}

# listen: `scancel --signal=USR1 JOB` meets steps only, and on one node Open MPI's mpirun makes none.
listen() {
    local ears
    [ "$trusted" = no ] && [ "$SLURM_JOB_NUM_NODES" = 1 ] || return 0
    exec {ears}< <(exec "${aside[@]}" --nodes=1 --ntasks=1 bash -c '
        trap "echo told" USR1
        trap "kill \$!; exit 0" USR2 TERM
        while :; do sleep infinity & wait $!; done')
    listener=$!
    while read -r _ <&"$ears"; do kill -USR1 $$; done &
}

# end_aside: end what was started beside the ranks, and wait until it has tidied up.
end_aside() {
    local step
    for step in $keeper $listener; do
        kill -USR2 "$step" 2>/dev/null || true
        wait "$step" 2>/dev/null || true
    done
    keeper='' listener=''
}

# ---- One log a rank

show_logs() {
    local log shown=0
    find "$logs" -type f -empty -delete
    for log in "$logs"/*; do
        [ -e "$log" ] || continue
        shown=$((shown + 1))
        [ "$shown" -le 20 ] || continue
        printf '%s\n' "-------- ${log##*/}"
        tail -n 40 -- "$log"
    done
    if [ "$shown" -gt 0 ]; then say "logs     of $shown rank(s), whole: $logs"; else drop_logs; fi
}

drop_logs() {
    rm -rf -- "$logs"
    rmdir -- "$(dirname -- "$logs")" 2>/dev/null || true # the last job's
}

# ---- The job

# drop_folder: remove the folder of checkpoints that this job has chosen itself.
drop_folder() {
    rm -rf -- "$folder"
    rmdir checkpoints 2>/dev/null || true # the last job's
}

# checkpoint_folder: print where the arguments, else the environment, want checkpoints.
checkpoint_folder() {
    local place value=${DML_HPC_CHECKPOINT:-}
    for place in "${!arguments[@]}"; do
        case ${arguments[place]} in
            --checkpoint) value=${arguments[place + 1]:-} ;;
            --checkpoint=*) value=${arguments[place]#*=} ;;
        esac
    done
    printf '%s\n' "$value"
}

# progress: print the step that the run in the folder has come to, -1: none is known.
progress() {
    local step=-1
    [ ! -r "$folder/progress" ] || read -r step <"$folder/progress" || true
    echo "${step:--1}"
}

# of_job KEY: print what Slurm says of this job.
of_job() {
    scontrol show job --oneliner "$SLURM_JOB_ID" 2>/dev/null | grep -o " $1=[^ ]*" | cut -d = -f 2 || true
}

# again CODE BEFORE: the job was told to stop, and its ranks have saved; have it started again, where Slurm is to.
again() {
    local state start_s end_s now_s step
    step=$(progress)
    state=$(of_job JobState)
    if [ "$step" -ge 0 ]; then
        say "stopped  after step $step; checkpoints are in $folder"
    else
        say "stopped  before its first step"
    fi
    if [ "$state" != RUNNING ]; then
        say "ended    by Slurm (${state:-unknown}); where it is not started again: $(by_hand)"
    elif [ "$(of_job Requeue)" != 1 ]; then
        say "ended    as --no-requeue was given; to go on: $(by_hand)"
    else
        now_s=$(date +%s)
        start_s=$(date +%s -d "$(of_job StartTime)") end_s=$(date +%s -d "$(of_job EndTime)" 2>/dev/null) || end_s=
        if [ "${SLURM_RESTART_COUNT:-0}" -gt 0 ] && [ "$step" -le "$2" ] && [ -n "$end_s" ] &&
            [ $((2 * (now_s - start_s))) -ge $((end_s - start_s)) ]; then
            say "ended    it comes no further in the time it has: give it more (--time); to go on: $(by_hand)"
        elif scontrol requeue "$SLURM_JOB_ID"; then
            say "requeued it goes on from there when its turn comes"
        else
            say "ended    Slurm does not take it back; to go on: $(by_hand)"
        fi
    fi
    exit "$1"
}

by_hand() {
    printf 'sbatch the same with --checkpoint %s --resume' "$folder"
}

# run_job VERB ARGUMENTS...: `dml-hpc VERB ARGUMENTS...` on all ranks, from its newest checkpoint in a job that starts
# again; ends this script with the exit code of the ranks.
run_job() {
    local verb=$1 own_folder='' before code=0 seen
    shift
    [ $# -gt 0 ] || die "name a data set and -o after the script, as for dml-hpc $verb"
    arguments=("$@")
    folder=$(checkpoint_folder)
    if [ -z "$folder" ]; then
        own_folder=yes folder=checkpoints/$name
        mkdir -p checkpoints
        export DML_HPC_CHECKPOINT=$folder
    fi
    if [ "${SLURM_RESTART_COUNT:-0}" -gt 0 ]; then
        # What is at the output is this job's own.
        export DML_HPC_RESUME=1 DML_HPC_OVERWRITE=1
    fi
    export DML_HPC_RECORD=${DML_HPC_RECORD:-runs-${SLURM_JOB_NAME//\//-}.jsonl}
    logs=$PWD/logs/$name
    rm -rf -- "$logs"
    mkdir -p -- "$logs"
    launcher
    say "$SLURM_JOB_ID on $SLURM_JOB_NODELIST: ${SLURM_NTASKS:-?} ranks by" \
        "$(printf '%s\n' "${line[@]}" | grep -m 1 -A 1 -E '^(srun|mpirun)$' | grep -E '^(srun|mpirun|--mpi)' | xargs)," \
        "$OMP_NUM_THREADS thread(s) each, start $((${SLURM_RESTART_COUNT:-0} + 1))"
    trap end_aside EXIT
    case ${STAGE:-${DML_HPC_STAGE:-no}} in yes | 1 | true) stage ;; esac
    before=$(progress)
    if [ -n "$told" ]; then
        end_aside
        again 75 "$before"
    fi
    listen
    "${line[@]}" bash -c "$as_rank" "$logs" "$trusted" dml-hpc "$verb" --no-progress "${arguments[@]}" &
    child=$!
    [ -z "$told" ] || tell_ranks # it came while they were started
    while :; do
        seen=$signals code=0
        wait "$child" || code=$?
        [ "$seen" != "$signals" ] || break # else it was the signal that ended the waiting
    done
    child=
    [ -z "$reminder" ] || kill "$reminder" 2>/dev/null || true
    end_aside
    if [ "$code" = 0 ] && [ "$trusted" = no ] && [ ! -e "$logs/finished" ]; then
        say "failed   the launcher has lost ranks, and says nothing of it"
        code=1
    fi
    rm -f -- "$logs/finished"
    if [ "$code" = 0 ]; then
        drop_logs
        [ -z "$own_folder" ] || drop_folder
        say "finished after $SECONDS s"
        exit 0
    fi
    # Before ranks listen USR1 ends them: 138.
    if [ "$code" = 75 ] || [ "$code" = 138 ] || { [ -n "$told" ] && [ "$code" != 2 ]; }; then
        drop_logs
        again 75 "$before"
    fi
    show_logs
    if [ -n "$own_folder" ] && ! compgen -G "$folder/checkpoint-*" >/dev/null; then drop_folder; fi
    say "failed   with exit code $code$(! compgen -G "$folder/checkpoint-*" >/dev/null || echo "; to go on: $(by_hand)")"
    exit "$code"
}

# run_scaling VERB ARGUMENTS...: `dml-hpc VERB ARGUMENTS...` on 1, 2, 4 … all nodes, REPEATS times in turn; the report.
run_scaling() {
    local records=$name.jsonl
    [ $# -gt 0 ] || die "name a command after the script: train data/train --epochs 20 ..."
    [ -n "${SLURM_NTASKS_PER_NODE:-}" ] || die "give --ntasks-per-node"
    trap - USR1 TERM
    rm -f -- "$records" # of a start that was interrupted
    say "$SLURM_JOB_ID on $SLURM_JOB_NODELIST: $SLURM_NTASKS_PER_NODE rank(s) a node"
    # What is at an output is this job's own.
    DML_HPC_SLURM=$slurm DML_HPC_OVERWRITE=1 dml-hpc bench scaling --no-progress --repeats "${REPEATS:-3}" \
        --record "$records" -- "$@"
    dml-hpc report "$records" -o "$name.html" --overwrite
    say "finished after $SECONDS s: $name.html, of $records"
}

# What a rank is: its words go to a log of its own, those of rank 0 to the job's. Where the launcher's exit code is not
# to be trusted, rank 0 leaves a mark when it is done; the signals that this shell then waits through go to its group.
# shellcheck disable=SC2016
as_rank='
rank=${PMIX_RANK:-${PMI_RANK:-${SLURM_PROCID:-0}}}
logs=$0 trusted=$1
shift
if [ "$rank" != 0 ]; then exec "$@" >"$logs/rank-$rank.$(uname -n)" 2>&1; fi
[ "$trusted" = no ] || exec "$@"
trap : USR1 TERM INT HUP USR2
"$@"
code=$?
[ "$code" != 0 ] || : >"$logs/finished"
exit "$code"'

if [ "${1:-}" = --keep-staged ] && [ "${BASH_SOURCE[0]}" = "$0" ]; then
    shift
    keep_staged "$@"
    exit
fi

trap 'stop USR1' USR1
trap 'stop TERM' TERM
[ -e "$slurm/site.sh" ] ||
    die "there is no $slurm/site.sh: submit from the project's folder, or export DML_HPC_SLURM=FOLDER"
# shellcheck source=slurm/site.sh
. "$slurm/site.sh"
set -uo pipefail
command -v dml-hpc >/dev/null || die "dml-hpc is not on PATH: say in $slurm/site.sh where it is installed"

# As many threads a rank as cores were asked for it; no colours in a file.
export OMP_NUM_THREADS=${SLURM_CPUS_PER_TASK:-1} NO_COLOR=1 TERM=dumb
export OPENBLAS_NUM_THREADS=$OMP_NUM_THREADS MKL_NUM_THREADS=$OMP_NUM_THREADS NUMBA_NUM_THREADS=$OMP_NUM_THREADS

if [ "${BASH_SOURCE[0]}" = "$0" ]; then
    ranks=
    if [ "${1:-}" = -n ]; then ranks=${2:?} && shift 2; fi
    [ $# -gt 0 ] || die "what is to run? bash $0 [-n RANKS] COMMAND..."
    launcher "$ranks"
    trap - USR1 TERM
    exec "${line[@]}" "$@"
fi
