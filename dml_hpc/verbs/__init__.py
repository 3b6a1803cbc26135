"""What each verb accepts: options to arguments of its command's ``run``, nothing else."""
