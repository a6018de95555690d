"""The other synthetic tasks: majority, counting, addition, linear functions, induction heads, multi-query recall."""
