"""A filter applied to a sequence: at once, or as the input arrives."""
