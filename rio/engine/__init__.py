"""What detectron2 needs around the method: records, loader, checkpoints, inference."""
