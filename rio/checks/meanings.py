"""What each kind of fault means for training and for AP, and how to fix it where the rule's own words do not say."""

_REFUSED = "Training and evaluation stop; `?skip` after the name leaves such records out"
_OTHERS_REFUSE = "It is read as it is meant; other tools may refuse it"

MEANINGS: dict[str, tuple[str, str]] = {
    # Faults of `rio.data.load`'s rules.
    "json": ("Nothing of the file can be read.", ""),
    "nan": (
        "NaN and infinity are not JSON: strict readers, rio's too, refuse the whole file.",
        "`--write` writes null",
    ),
    "type": (f"{_REFUSED}.", ""),
    "missing_key": (f"{_REFUSED}.", ""),
    "no_category": ("There is no class to learn.", "list the classes under 'categories'"),
    "duplicate_category_id": ("It is not clear which class an object is of.", ""),
    "duplicate_category_name": (
        "One class is learned as two that exclude each other; AP counts each as a miss of the other.",
        "merge the two ids if they are one class, else rename one",
    ),
    "frequency": ("APr, APc and APf would be wrong.", ""),
    "normalised_boxes": ("All boxes would be a pixel wide: AP 0.", ""),
    "corner_boxes": ("Boxes would be too large and reach beyond their images: AP near 0.", ""),
    "duplicate_image_id": (f"{_REFUSED}: the second image goes.", ""),
    "duplicate_annotation_id": (
        "Training does not need the ids, but lvis and pycocotools lose objects that share one.",
        "`--write` gives new ids",
    ),
    "unknown_image": (f"{_REFUSED}. Often the images were filtered and the annotations were not.", ""),
    "unknown_category": (f"{_REFUSED}. Often ids are counted from 0 in one place and from 1 in the other.", ""),
    "missing_image": ("Training stops before it starts.", ""),
    "negative_box": (f"{_REFUSED}.", "give the left upper corner, and positive sizes"),
    "box_outside": (f"{_REFUSED}.", ""),
    "area": (f"{_REFUSED}.", "leave 'area' out: the box's is taken"),
    "polygon": (f"{_REFUSED}, with the whole object.", "draw it with three points or more"),
    "rle": (f"{_REFUSED}.", "encode the mask by pycocotools.mask.encode at its image's size"),
    "rle_size": (f"{_REFUSED}.", ""),
    "empty_box": ("Such objects are left out: they can neither be trained on nor found.", "remove or redraw them"),
    "image_skipped": ("The objects go with their image.", ""),
    "root_category": (
        "The exporter's name of the data set is no class; it is left out, other tools would train it.",
        "`--write` removes it",
    ),
    # Records taken for what they mean.
    "integral_float": (f"Whole numbers are written as 1.0, as data frames do. {_OTHERS_REFUSE}.", ""),
    "text_id": (
        f"Ids are text. They are numbered, and results use the original. {_OTHERS_REFUSE}.",
        "none is needed here; `--write` writes numbers, so that results of the new file have numbers too",
    ),
    "text_number": (f"A number is written as text. {_OTHERS_REFUSE}.", ""),
    "empty_value": (f'"" or [] stands for none. {_OTHERS_REFUSE}.', ""),
    "no_box": ("The box around the mask is taken.", ""),
    "no_segmentation": (
        "Objects without a mask among others with masks: mask training and mask AP get the box's rectangle.",
        "draw the masks, or train boxes only: MODEL.MASK_ON False",
    ),
    "polygon_form": (f"Polygons are flat lists or pairs in place of [[x, y, x, y, ...]]. {_OTHERS_REFUSE}.", ""),
    "polygon_part": ("One polygon of several is broken; the object stays with the others.", ""),
    "mask_transposed": ("A mask has its image's height and width swapped; its box says how to turn it.", ""),
    "box_clipped": (
        "The box reaches beyond its image. Training clips it; evaluation takes it as it is, as pycocotools does.",
        "clip it, or check that it belongs to this image",
    ),
}
"""By kind: what it means, and the fix; "" for the words of the rule."""
