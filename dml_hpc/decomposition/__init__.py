"""Where a matrix block meets a communicator: factorisations of a data set's rows held by many ranks."""
