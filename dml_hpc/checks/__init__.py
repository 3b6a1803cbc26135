"""What `dml-hpc doctor` looks at."""
