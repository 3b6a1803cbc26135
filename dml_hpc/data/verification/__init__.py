"""What is wrong with a data set, with every fault's place."""
