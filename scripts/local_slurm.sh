#!/usr/bin/env bash
# Run a command beside a real Slurm of N nodes on this one machine, to try batch scripts before they cost node hours.
#   scripts/local_slurm.sh N [--cpus C] [--gpus G] -- COMMAND [ARGS...]
# COMMAND finds sbatch, srun and the rest working: nodes n1 … nN of C CPUs each (default 2), whether the machine has
# as many or not, and of G GPUs that are but a number (default 0); partitions `main` (the default) and `short` (at most
# two minutes). Its exit code is the script's, but 2 may also mean that the script cannot do what you ask. When COMMAND
# ends, so do all jobs, the daemons, and all that was set up; nothing of this machine's own Slurm is touched.
# A node has a name, an address, shared memory and a scratch folder of its own (scratch/ beside the file $SLURM_CONF, seen
# from outside as n1-tmp …); they share the machine's other files, and see no other network.
# Needs Linux, root, iproute2, util-linux, and Slurm with munge (Debian, Ubuntu: apt install slurm-wlm munge, and
# libpmix-dev for srun --mpi=pmix).
set -Eeuo pipefail

refuse() {
    printf 'local_slurm.sh: %s\n' "$*" >&2
    exit 2
}

nodes='' cpus=2 gpus=0 separated=''
arguments=("$@")
while [ $# -gt 0 ]; do
    case $1 in
        -h | --help) sed -n '2,11s/^# \{0,1\}//p' "${BASH_SOURCE[0]}" && exit ;;
        --cpus | --gpus) [ $# -gt 1 ] || refuse "$1 wants a value" ;;&
        --cpus) cpus=$2 && shift ;;
        --gpus) gpus=$2 && shift ;;
        --) separated=yes && shift && break ;;
        -*) refuse "there is no option $1; see --help" ;;
        *) [ -z "$nodes" ] || refuse "put -- before the command: $nodes -- $*"; nodes=$1 ;;
    esac
    shift
done
[[ $nodes =~ ^[1-9][0-9]?$ ]] || refuse "how many nodes? a number from 1 to 99 comes first, not '$nodes'"
[[ $cpus =~ ^[1-9][0-9]{0,2}$ ]] || refuse "--cpus is a number from 1 to 999, not '$cpus'"
[[ $gpus =~ ^[0-9]$ ]] || refuse "--gpus is a number from 0 to 9, not '$gpus'"
[[ $separated && $# -gt 0 ]] || refuse "what is to run? give the command after --"

# Outside: run this script again in namespaces of its own. They end with it, and with them all that it started.
if [ $$ != 1 ] || [ -z "${LOCAL_SLURM:-}" ]; then
    [ "$(id -u)" = 0 ] || refuse "Slurm's daemons need root"
    PATH=$PATH:/usr/sbin:/sbin
    for tool in ip nsenter unshare setpriv mount slurmctld slurmd munged; do
        command -v "$tool" >/dev/null ||
            refuse "needs $tool (Debian, Ubuntu: apt install slurm-wlm munge iproute2 util-linux)"
    done
    apart=(unshare --mount --net --uts --pid --fork --kill-child --mount-proc)
    "${apart[@]}" true 2>/dev/null || refuse "no namespaces can be made here (in a container: run it --privileged)"
    LOCAL_SLURM=$(mktemp -d "${TMPDIR:-/tmp}/local-slurm.XXXXXX")
    export LOCAL_SLURM
    trap 'rm -rf "$LOCAL_SLURM"' EXIT
    child=
    trap 'kill -TERM "$child" 2>/dev/null || exit 130' INT
    trap 'kill -TERM "$child" 2>/dev/null || exit 143' TERM HUP
    setpriv --pdeathsig KILL "${apart[@]}" bash "${BASH_SOURCE[0]}" "${arguments[@]}" <&0 &
    child=$!
    status=0
    while kill -0 "$child" 2>/dev/null; do
        wait "$child" || status=$?
    done
    exit "$status"
fi

# Inside.
own=$LOCAL_SLURM
unset LOCAL_SLURM
# What Slurm told this shell of another job must not reach these.
for name in ${!SLURM_*} ${!SBATCH_*} ${!SRUN_*}; do unset "$name"; done
mkdir "$own/state" "$own/scratch"
chmod 755 "$own"
# The switch, at which the controller and COMMAND sit, and a link of each node.
mkdir -p /run/netns
mount -t tmpfs local-slurm /run/netns
echo head >/proc/sys/kernel/hostname
ip link set lo up
ip link add switch type bridge
ip address add 10.1.0.254/24 dev switch
ip link set switch up
printf '127.0.0.1 localhost\n10.1.0.254 head\n' >"$own/hosts"
names=()
for ((i = 1; i <= nodes; i++)); do
    names+=("n$i")
    mkdir -m 1777 "$own/n$i-tmp"
    printf '10.1.0.%d n%d\n' "$i" "$i" >>"$own/hosts"
    ip netns add "n$i"
    ip link add "port$i" type veth peer name eth0 netns "n$i"
    ip link set "port$i" master switch up
    ip -n "n$i" link set lo up
    ip -n "n$i" link set eth0 up
    ip -n "n$i" address add "10.1.0.$i/24" dev eth0
done
mount --bind "$own/hosts" /etc/hosts

memory=$(awk '/MemTotal/ {print int($2 / 1024)}' /proc/meminfo)
gres=
[ "$gpus" = 0 ] || gres=" Gres=gpu:$gpus"
cat >"$own/slurm.conf" <<END
ClusterName=local
SlurmctldHost=head
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket=$own/munge.socket
CredType=cred/munge
StateSaveLocation=$own/state
SlurmdSpoolDir=$own/%n
SlurmctldPidFile=$own/slurmctld.pid
SlurmdPidFile=$own/%n.pid
SlurmctldLogFile=$own/slurmctld.log
SlurmdLogFile=$own/%n.log
SlurmdParameters=config_overrides
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
SwitchType=switch/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
AccountingStorageType=accounting_storage/none
JobAcctGatherType=jobacct_gather/none
MailProg=/bin/true
ReturnToService=2
SchedulerParameters=batch_sched_delay=0,sched_min_interval=0,sched_interval=1,bf_interval=1
JobRequeue=1
KillWait=5
GresTypes=gpu
TmpFS=$own/scratch
END
# Slurm wants a device file of each GPU.
for ((i = 0; i < gpus; i++)); do
    : >"$own/gpu$i"
    printf 'Name=gpu File=%s\n' "$own/gpu$i" >>"$own/gres.conf"
done
cat >>"$own/slurm.conf" <<END
NodeName=n[1-$nodes] CPUs=$cpus RealMemory=$memory$gres State=UNKNOWN
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP
PartitionName=short Nodes=ALL MaxTime=2 State=UP
END
export SLURM_CONF=$own/slurm.conf
head -c 1024 /dev/urandom >"$own/munge.key"
chmod 400 "$own/munge.key"

# said COMMAND…: what a daemon prints is shown only when it does not start.
said() {
    "$@" >"$own/said" 2>&1 || { cat "$own/said" "$own"/*.log >&2; refuse "$1 does not start"; }
}
said munged --force --socket "$own/munge.socket" --key-file "$own/munge.key" --pid-file "$own/munged.pid" \
    --log-file "$own/munged.log" --seed-file "$own/munged.seed" --num-threads 2
said slurmctld -c
for name in "${names[@]}"; do
    said nsenter "--net=/run/netns/$name" unshare --mount --uts --ipc bash -c \
        "echo $name >/proc/sys/kernel/hostname && mount -t tmpfs shm /dev/shm &&
            mount --bind $own/$name-tmp $own/scratch && exec slurmd -N $name"
done
wanted=$nodes
for ((tenths = 0; tenths < 300; tenths++)); do
    [ "$(sinfo -h -N -p main -t idle -o %N 2>/dev/null | wc -l)" != "$wanted" ] || break
    sleep 0.1
done
if [ "$tenths" = 300 ]; then
    tail -n 20 "$own"/*.log >&2
    refuse "the nodes did not come up in 30 s"
fi
set -m
"$@" <&0 &
job=$!
trap 'kill -TERM -- "-$job"' INT TERM
status=0
while kill -0 "$job" 2>/dev/null; do
    wait "$job" || status=$?
done
exit "$status"
