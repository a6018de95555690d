"""Next nucleotides of a chromosome: what longer context is worth."""
