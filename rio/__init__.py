"""RIO on detectron2: image-level and object-level resampling for long-tailed detection."""

__version__ = "0.1.0"
