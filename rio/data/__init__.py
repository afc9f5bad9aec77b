"""Annotation files in LVIS or COCO format as columns. Light: no torch, no detectron2."""
