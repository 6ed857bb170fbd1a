"""From pairs of slides to a paired data set that can be trained on.

`manifest` reads which slides belong together; `splitting` says which patients are for training, validation and test;
`store` keeps what was cut of each slide, and `numbering` makes the data set of it; `checking` reads all of it again.
"""
