"""What a paired data set is like, and what is wrong with it: looks by level, leaks between splits, misaligned pairs."""
