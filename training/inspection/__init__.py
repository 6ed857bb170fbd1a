"""What a paired data set is like, and what is wrong with it: looks per level, leaks between splits, misaligned pairs."""
