"""Are trials worth learning? Their objective values against long fine-tunes of the same policies."""
