"""Published numbers of Mask R-CNN with R-50-FPN on LVIS, as their papers give them; none is of this code."""

# percent: data set, kind, method, AP, APr, APc, APf
REPORTED = [
    ("lvis_v0.5_val", "segm", "Mask R-CNN R50 1x", 21.2, 3.2, 21.1, 28.7),
    ("lvis_v0.5_val", "segm", "RFS R50 1x", 24.4, 16.0, 24.0, 28.3),
    ("lvis_v0.5_val", "segm", "EQL R50", 24.0, 9.4, 25.2, 28.4),
    ("lvis_v0.5_val", "segm", "EQL + RFS R50", 26.1, 17.2, 27.3, 28.2),
    ("lvis_v0.5_val", "segm", "Forest R-CNN R50", 25.6, 18.3, 26.4, 27.6),
    ("lvis_v0.5_val", "segm", "RIO R50", 26.0, 18.9, 26.2, 28.5),
    ("lvis_v0.5_val", "bbox", "RFS R50 1x", 23.6, None, None, None),
    ("lvis_v0.5_val", "bbox", "Forest R-CNN R50", 25.9, 16.9, 26.1, 29.2),
    ("lvis_v0.5_val", "bbox", "RIO R50", 25.7, 17.2, 25.1, 29.8),
    ("lvis_v1_val", "segm", "Mask R-CNN R50 1x", 16.1, 0.0, 12.0, 27.4),
    ("lvis_v1_val", "segm", "RFS R50 1x", 22.2, 11.5, 21.2, 28.0),
    ("lvis_v1_val", "segm", "EQLv2 R50 1x", 23.7, 14.9, 22.8, 28.6),
    ("lvis_v1_val", "segm", "Seesaw + RFS R50 2x", 26.4, None, None, None),
    ("lvis_v1_val", "segm", "GOL R50", 27.7, 21.4, 27.7, 30.4),
    ("lvis_v1_val", "segm", "FRACAL R50", 28.5, 23.0, 28.1, 31.5),
]
