#!/usr/bin/env bash
# Run a command with mpirun across N emulated hosts on this one machine, for jobs where the network matters.
#   scripts/emulated_cluster.sh N [--ranks-per-host R] [--rate 1gbit] [--delay 1ms] -- COMMAND [ARGS...]
# A host is a network namespace with a name and shared memory of its own. All hosts hang on one switch, each by a link
# that carries RATE (default 1gbit; 100mbit, 2500mbit, ...) each way; DELAY is added to every message between hosts.
# R ranks (default 1) run on each host. The mpirun is the first on PATH, MPICH's or Open MPI 5's; what it prints and
# its exit code are the script's, but 2 may also mean that the script cannot do what you ask.
# Needs Linux, root, iproute2 and util-linux. Nothing of this can be seen outside the run, and nothing outlasts it.
set -Eeuo pipefail

refuse() {
    printf 'emulated_cluster.sh: %s\n' "$*" >&2
    exit 2
}

# What to do.
hosts='' ranks=1 rate=1gbit delay='' separated=''
arguments=("$@")
while [ $# -gt 0 ]; do
    case $1 in
        -h | --help) sed -n '2,8s/^# \{0,1\}//p' "${BASH_SOURCE[0]}" && exit ;;
        --ranks-per-host | --rate | --delay) [ $# -gt 1 ] || refuse "$1 wants a value" ;;&
        --ranks-per-host) ranks=$2 && shift ;;
        --rate) rate=${2,,} && shift ;;
        --delay) delay=$2 && shift ;;
        --) separated=yes && shift && break ;;
        -*) refuse "there is no option $1; see --help" ;;
        *) [ -z "$hosts" ] || refuse "put -- before the command: $hosts -- $*"; hosts=$1 ;;
    esac
    shift
done
[[ $hosts =~ ^[1-9][0-9]{0,2}$ ]] || refuse "how many hosts? a number from 1 to 999 comes first, not '$hosts'"
[[ $ranks =~ ^[1-9][0-9]{0,2}$ ]] || refuse "--ranks-per-host is a number from 1 to 999, not '$ranks'"
[[ $rate =~ ^[1-9][0-9]{0,5}[kmg]?bit$ ]] || refuse "--rate is like 1gbit or 100mbit, not '$rate'"
[[ $delay =~ ^([0-9]+(\.[0-9]+)?(us|ms|s))?$ ]] || refuse "--delay is like 1ms or 50us, not '$delay'"
[[ $separated && $# -gt 0 ]] || refuse "what is to run? give the command after --"

# Outside: run this script again in namespaces of its own. They end with it, and with them all that it set up.
if [ $$ != 1 ] || [ -z "${EMULATED_CLUSTER:-}" ]; then
    [ "$(id -u)" = 0 ] || refuse "making hosts needs root"
    for tool in ip tc unshare setpriv mount; do
        command -v "$tool" >/dev/null || refuse "needs $tool (Debian, Ubuntu: apt install iproute2 util-linux)"
    done
    case $(mpirun --version 2>&1 || true) in
        *HYDRA*) mpi=mpich ;;
        *"(Open MPI) "[5-9]*) mpi=openmpi ;;
        *) refuse "the mpirun first on PATH must be MPICH's or Open MPI 5's (now: $(command -v mpirun || echo none))" ;;
    esac
    apart=(unshare --mount --net --uts --pid --fork --kill-child --mount-proc)
    "${apart[@]}" true 2>/dev/null || refuse "no namespaces can be made here (in a container: run it --privileged)"

    # stop SIGNAL STATUS: ask the job to end, make it end after ten seconds or the second time we are asked, and leave.
    # shellcheck disable=SC2317 # traps call it
    stop() {
        trap 'kill -KILL $! || true; exit "$2"' INT TERM HUP
        kill -"$1" -- -$! || exit "$2"
        for ((tenths = 0; tenths < 100; tenths++)); do
            kill -0 $! || exit "$2"
            sleep 0.1
        done 2>/dev/null
        kill -KILL $! || true
        exit "$2"
    }
    trap 'stop INT 130' INT
    trap 'stop TERM 143' TERM
    trap 'stop TERM 129' HUP
    # In a process group of its own, so that the job gets one signal, ours, and not a terminal's too.
    [ ! -t 0 ] || exec </dev/null
    set -m
    EMULATED_CLUSTER="$mpi $$" setpriv --pdeathsig KILL "${apart[@]}" bash "${BASH_SOURCE[0]}" "${arguments[@]}" <&0 &
    set +m
    status=0
    wait $! || status=$?
    exit "$status"
fi

# Inside. A file system in memory that only we see holds the names of our namespaces and the files we need.
read -r mpi run <<<"$EMULATED_CLUSTER"
unset EMULATED_CLUSTER
trap exit INT TERM
trap 'refuse "could not set up the hosts (line $LINENO)"' ERR
own=/run/netns
mkdir -p "$own"
mount -t tmpfs emulated-cluster "$own"
echo "head-$run" >/proc/sys/kernel/hostname

# The burst, what a link that was idle may take at once, is 1 ms of the rate; two packets fit in.
declare -A scale=([bit]=1 [kbit]=1000 [mbit]=1000000 [gbit]=1000000000)
burst=$((${rate%%[a-z]*} * scale[${rate##*[0-9]}] / 8000))
burst=$((burst < 4096 ? 4096 : burst))
packet=$((burst < 131072 ? burst / 2 : 65536))
shape=(root handle 1: tbf rate "$rate" burst "$burst" latency 50ms)
if [ -n "$delay" ]; then
    tc qdisc add dev lo root netem delay "$delay" 2>/dev/null ||
        refuse "--delay needs netem, which this kernel lacks (CONFIG_NET_SCH_NETEM, module sch_netem)"
    tc qdisc delete dev lo root
fi

# The switch, at which mpirun sits too. Each link is shaped where a host sends, and where the switch sends to it.
ip link set lo up
ip link add switch type bridge
ip address add 10.0.255.254/16 dev switch
ip link set switch up
printf '127.0.0.1 localhost\n10.0.255.254 head-%s\n' "$run" >"$own/hosts"
list=
for ((i = 0; i < hosts; i++)); do
    host=host$i-$run
    address=10.0.$((i / 250)).$((i % 250 + 1))
    printf '%s %s\n' "$address" "$host" >>"$own/hosts"
    list+=${list:+,}$host:$ranks
    ip netns add "$host"
    ip link add "port$i" type veth peer name eth0 netns "$host"
    ip link set "port$i" master switch up
    tc qdisc add dev "port$i" "${shape[@]}"
    ip -n "$host" -batch - <<END
link set lo up
link set eth0 up gso_max_size $packet
address add $address/16 dev eth0
END
    tc -n "$host" qdisc add dev eth0 "${shape[@]}"
    [ -z "$delay" ] || tc -n "$host" qdisc add dev eth0 parent 1:1 netem delay "$delay" limit 1000000
done
mount --bind "$own/hosts" /etc/hosts

# What mpirun runs in place of ssh: agent [-x] HOST COMMAND...
cat >"$own/agent" <<'END'
#!/usr/bin/env bash
[ "$1" != -x ] || shift
unset PMIX_OUTPUT_STDERR_FD
setup="echo $1 >/proc/sys/kernel/hostname && mount -t tmpfs shm /dev/shm"
exec ip netns exec "$1" unshare --uts --ipc bash -c "$setup && ${*:2}"
END
chmod +x "$own/agent"

# Between hosts TCP, within a host shared memory; ranks on no fixed core, as there may be fewer cores than ranks.
# What you set yourself stays.
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1} OPENBLAS_NUM_THREADS=${OPENBLAS_NUM_THREADS:-1}
export FI_PROVIDER=${FI_PROVIDER-tcp} UCX_TLS=${UCX_TLS-tcp,self} UCX_NET_DEVICES=${UCX_NET_DEVICES-eth0}
launch=(mpirun -n $((hosts * ranks)) --bind-to none)
if [ "$mpi" = mpich ]; then
    export MPIR_CVAR_CH4_NETMOD=${MPIR_CVAR_CH4_NETMOD-ofi}
    launch+=(-launcher ssh -launcher-exec "$own/agent" -localhost "head-$run" -hosts "$list")
else
    export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1
    export OMPI_MCA_pml=${OMPI_MCA_pml-ob1} OMPI_MCA_btl=${OMPI_MCA_btl-self,sm,tcp}
    export OMPI_MCA_btl_tcp_if_include=${OMPI_MCA_btl_tcp_if_include-eth0}
    export OMPI_MCA_mpi_yield_when_idle=${OMPI_MCA_mpi_yield_when_idle-1}
    launch+=(--host "$list" --map-by slot --prtemca plm_ssh_agent "$own/agent" --prtemca plm_ssh_no_tree_spawn 1)
    # Started by a thread, a process that ends at once may be waited for for ever (openpmix/prrte pull request 2713).
    launch+=(--prtemca prte_tmpdir_base "$own" --prtemca odls_base_max_threads 0)
    # The launcher's own messages, without the warning it gives when an agent starts faster than it expects.
    exec 9> >(exec sed -u '/plm:ssh: Warning: setpgid/d' >&2)
    messages=$!
    export PMIX_OUTPUT_STDERR_FD=9
fi
trap - ERR
set -m
"${launch[@]}" "$@" <&0 &
job=$!
trap 'kill -INT "$job"' INT
trap 'kill -TERM "$job"' TERM
status=0
while kill -0 "$job" 2>/dev/null; do
    wait "$job" || status=$?
done
exec 9>&-
wait ${messages:+"$messages"}
exit "$status"
