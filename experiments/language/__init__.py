"""Language models of characters and of pieces of words: Hyena, H3, attention and hybrids at equal parameters."""
