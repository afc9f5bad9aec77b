"""The embedded data set: synthetic pictures of coloured toys with LVIS's long tail, drawn on your machine.

Nothing here is a photograph and nothing is downloaded. Results on it compare methods on it; they say nothing of LVIS.
Start at `spec` (what is drawn) and `dataset` (`generate`); `outlines`, `surfaces` and `scene` are the pictures.
"""
