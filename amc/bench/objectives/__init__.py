"""Are the labels worth learning? Cheap labels of policies against long fine-tunes of the same ones."""
