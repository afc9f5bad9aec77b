"""The data doctor: everything that is wrong with an annotation file, what it means for training and AP, and the fix."""
