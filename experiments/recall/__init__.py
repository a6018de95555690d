"""Associative recall and the other synthetic tasks of arXiv 2302.10866, section 4.1."""
