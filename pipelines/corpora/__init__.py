"""Published corpora as their authors hand them out: a module for each, or for a family.

`formats` is the table of them. Each has a pure function from a folder (`tree`) to rows of a table
of clips and notes on what is wrong (`reading`).
"""
