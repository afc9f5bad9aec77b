"""Ground truth and results to read and evaluate, written record by record."""

from pycocotools import mask as coco_mask

from tests.support.annotation_files import write

WIDTH, HEIGHT = 120, 90


def image(number, negative=(), not_exhaustive=(), height=HEIGHT, width=WIDTH):
    return {
        "id": number, "width": width, "height": height, "coco_url": f"http://x/val2017/{number:012d}.jpg",
        "neg_category_ids": list(negative), "not_exhaustive_category_ids": list(not_exhaustive),
    }  # fmt: skip


def category(number, frequency="f"):
    return {"id": number, "name": f"class {number}", "frequency": frequency, "image_count": 1, "instance_count": 1}


def thing(number, image_id, category_id, box, **more):
    x, y, w, h = box
    outline = [x, y, x + w, y, x + w, y + h, x, y + h]
    ids = {"id": number, "image_id": image_id, "category_id": category_id}
    return {**ids, "bbox": list(box), "area": w * h, "segmentation": [outline], **more}


def prediction(image_id, category_id, score, box, **more):
    return {"image_id": image_id, "category_id": category_id, "score": score, "bbox": list(box), **more}


def rle(box, width=WIDTH, height=HEIGHT):
    x, y, w, h = box
    out = coco_mask.frPyObjects([[x, y, x + w, y, x + w, y + h, x, y + h]], height, width)[0]
    return {"size": [height, width], "counts": out["counts"].decode()}


def lvis_file(folder, images, categories, annotations, name="gt.json"):
    return write(folder / name, {"images": images, "categories": categories, "annotations": annotations})


def coco_file(folder, annotations, categories=(1, 2), images=(1, 2), size=(WIDTH, HEIGHT)):
    width, height = size
    content = {"images": [{"id": i, "width": width, "height": height, "file_name": f"{i}.jpg"} for i in images]}
    content["categories"] = [{"id": c, "name": str(c)} for c in categories]
    return write(folder / "coco.json", content | {"annotations": annotations})


GOOD = prediction(5, 8, 0.5, [1, 2, 3, 4])
MASK = {"image_id": 5, "category_id": 8, "score": 0.5, "segmentation": rle([1, 2, 30, 40])}
