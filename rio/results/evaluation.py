"""Results -> AP table, by category and by frequency group, equal to the protocols' official packages to the bit.

`rio.results.protocols` is the table of protocols. For LVIS, hotcoco is the engine for boxes. It differs from the
official package in what it accepts silently and in the order of its steps, so `rio.results.federated` prepares both
sides and hands over plain arrays. Masks are compared while their file is read (`rio.results.matching`). COCO's protocol
and `backend="lvis"` run whole packages on records (`rio.results.official`).
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import hotcoco
import msgspec
import numpy as np
import pandas as pd

from rio.data.annotations import GROUP_NAMES, Annotations
from rio.data.files import write_atomically
from rio.data.load import load_annotations
from rio.data.reading import without_collection
from rio.results import matching
from rio.results.diagnosis import diagnose
from rio.results.federated import JudgedPairs, Prepared, best_of_categories, prepare, records
from rio.results.official import coco_precision, lvis_precision
from rio.results.protocols import PROTOCOLS
from rio.results.reading import Results, load_results, results_error
from rio.results.records import carries_masks

IOU_TYPES = ("bbox", "segm", "boundary")
METRICS = ("AP", "AP50", "AP75", "APs", "APm", "APl", "APr", "APc", "APf")
GROUP_METRICS = ("AP", *(f"AP{group}" for group in GROUP_NAMES))
_OF_MASKS = {"segm", "boundary"}
_ROWS_CHUNK = 1 << 14


@without_collection()
def evaluate(
    annotations: Annotations | str | os.PathLike[str],
    results: Sequence[dict[str, Any]] | str | os.PathLike[str] | Results,
    *,
    iou_types: Sequence[str] | None = ("bbox", "segm"),
    max_dets: int | None = None,
    backend: str = "hotcoco",
    protocol: str = "lvis",
    allow_empty: bool = False,
) -> Evaluation:
    """AP of results, equal to the protocol's official package (`lvis`, `pycocotools`) to the last bit.

    Args:
        annotations: the ground truth, or the path of its JSON.
        results: path of a results JSON, list of records, or loaded `Results`.
        iou_types: of "bbox", "segm" and "boundary" (boundary AP, `rio.results.boundary`; not with backend "lvis");
            None: of boxes and masks, whatever the results carry.
        max_dets: highest-scoring predictions kept per image, all categories together (COCO: per image and category);
            -1 keeps all; None takes the protocol's own: lvis 300, lvis_fixed -1, coco 100.
        backend: "hotcoco", or the official package: "lvis" (slow, memory-hungry; `pip install lvis`), for coco
            "pycocotools".
        protocol: "lvis"; "lvis_fixed" (Dave et al., arXiv 2102.01066): the 10,000 best predictions of each category,
            no cap per image; "coco": every category verified in every image, crowd regions by COCO's rule. The groups
            of APr, APc and APf are those of `annotations.frequency`, see `Annotations.with_frequency_of`.
        allow_empty: accept results without a single prediction (an AP of 0) instead of raising.

    Returns:
        Evaluation, in percent; NaN where there is no ground truth to judge by.

    Raises:
        ResultsError: results that cannot be evaluated (see `load_results`); empty ones; "segm" asked for but no masks
            in them (pass `iou_types=("bbox",)`).
        ValueError: an unknown IoU type, protocol or backend.
    """
    if not isinstance(annotations, Annotations):
        masks = carries_masks(results) if iou_types is None else bool(_OF_MASKS & {*iou_types})
        annotations = load_annotations(annotations, segmentations=masks)
    if protocol not in PROTOCOLS:
        raise ValueError(f"protocol: expected one of {', '.join(PROTOCOLS)}, found {protocol!r}.")
    rules = PROTOCOLS[protocol]
    if backend not in rules.backends:
        expected = " or ".join(map(repr, rules.backends))
        raise ValueError(f"backend: expected {expected} for the protocol {protocol}, found {backend!r}.")
    max_dets = rules.max_dets if max_dets is None else max_dets
    if isinstance(max_dets, bool) or not isinstance(max_dets, int) or (max_dets < 1 and max_dets != -1):
        raise ValueError(f"max_dets: expected a positive integer or -1 (all), found {max_dets!r}.")
    if rules.per_category != -1 and max_dets != -1:
        raise ValueError(f"max_dets: expected -1 for {protocol}, which has no cap per image, found {max_dets}.")
    for iou_type in iou_types or ():
        if iou_type not in IOU_TYPES:
            raise ValueError(f"iou_types: expected a selection of {IOU_TYPES}, found {iou_type!r}.")
        if iou_type == "boundary" and backend == "lvis":
            raise ValueError("iou_types: expected 'bbox' or 'segm' with backend 'lvis', found 'boundary'. Fix: hotcoco")
    unknown_groups = set(np.unique(annotations.frequency).tolist()) - GROUP_NAMES.keys()
    if unknown_groups:
        raise ValueError(
            f"{annotations.path}: categories, key 'frequency': expected 'r', 'c' or 'f', found "
            f"{sorted(unknown_groups)}. Fix: correct the file, or leave the key out to have groups derived."
        )
    if annotations.federated and protocol != "coco" and annotations.ignored.any():
        # As the official package does: an object with "ignore" counts in no area range, so its area lies above all.
        beyond = 2 * matching.AREA_RANGES[0][1]
        areas = np.where(annotations.ignored & (annotations.areas > 0), beyond, annotations.areas)
        annotations = replace(annotations, areas=areas)
    judged = JudgedPairs.of(annotations)
    by_packages = protocol == "coco" or backend == "lvis"  # they compare the masks by themselves
    without = np.flatnonzero(judged.ground_truth & (annotations.mask_length == 0))
    if len(without) and iou_types is not None and _OF_MASKS & {*iou_types}:
        matching.segmentation_of(annotations, int(without[0]))  # raises
    wanted = iou_types or (("bbox",) if len(without) else ("bbox", "segm"))
    overlaps = None if by_packages else matching.MaskOverlaps(annotations, judged, wanted)
    loaded = load_results(results, annotations, taker=overlaps)
    has_masks = loaded.mask_areas is not None
    if not len(loaded) and not allow_empty:
        fix = "check that the model is trained and MODEL.ROI_HEADS.SCORE_THRESH_TEST low enough; allow_empty=True "
        fix += "evaluates it as 0"
        found = f"{loaded.left_out} of other categories or images" if loaded.left_out else "an empty list"
        raise results_error(loaded.source, "top level", "at least one prediction", found, fix)
    notes = _notes(annotations, judged, protocol, loaded)
    if iou_types is None:
        iou_types = [t for t, there in (("bbox", True), ("segm", has_masks and not len(without))) if there]
        if has_masks and len(without):
            notes.append("the ground truth has boxes only, so the masks of the results were not judged")
    if _OF_MASKS & {*iou_types} and len(loaded) and not has_masks:
        fix = "evaluate boxes only with iou_types=('bbox',), or write masks"
        raise results_error(loaded.source, "record 0, key 'segmentation'", "an RLE mask", "nothing", fix)
    if overlaps is not None and loaded.rles is not None:  # they were loaded before
        everything = np.arange(len(loaded))
        overlaps.add(everything, loaded.image_index, loaded.class_id, loaded.rles, loaded.mask_areas)
    precision, counts = {}, {}
    best = best_of_categories(loaded, rules.per_category)
    rows = best if max_dets == -1 else loaded.capped(max_dets)
    columns = overlaps.columns() if overlaps is not None else ()
    for iou_type in iou_types:
        if protocol == "coco":
            precision[iou_type] = coco_precision(annotations, loaded, iou_type, max_dets, backend)
            counts[f"predictions_{iou_type}"] = _coco_counts(loaded, max_dets)
            continue
        prepared = prepare(annotations, judged, loaded, rows, iou_type)
        if not len(prepared.rows) or not judged.ground_truth.any():
            precision[iou_type] = matching.precision_without_predictions(annotations, judged.ground_truth)
        elif backend == "lvis":
            precision[iou_type] = lvis_precision(annotations, judged, loaded, best, iou_type, max_dets)
        elif iou_type == "bbox":
            evaluator = box_evaluator(annotations, judged, loaded, prepared)
            precision[iou_type] = evaluator.eval["precision"][..., 0]
        else:
            precision[iou_type] = matching.mask_precision(annotations, judged, loaded, prepared, columns, iou_type)
        counts[f"predictions_{iou_type}"] = prepared.counts
        del prepared
    title = rules.title
    if annotations.federated == (protocol == "coco"):
        title += f", every category verified ({'LVIS' if annotations.federated else 'COCO'}-format ground truth)"
    info = {
        "annotations": str(annotations.path),
        "results": loaded.source,
        "images": len(annotations.image_ids),
        "predictions": len(loaded),
        "max_dets": max_dets,
        "backend": backend,
        "protocol": title,
        **counts,
    }
    some = range(0, len(loaded) if has_masks else 0, max(len(loaded) // 64, 1))
    masks = [(i, loaded.rles[i]) for i in some] if overlaps is None else overlaps.some
    ap50 = min((_mean(array[[0], :, :, 0]) for array in precision.values()), default=math.nan)
    cap = max_dets if protocol != "coco" else -1
    findings = diagnose(annotations, loaded, judged.ground_truth, ap50=ap50, max_dets=cap, masks=masks)
    info |= {"diagnosis": [finding.text for finding in findings], "notes": notes}
    del loaded, overlaps, results  # room for the summary
    return _summary(annotations, precision, info)


def _notes(annotations: Annotations, judged: JudgedPairs, protocol: str, results: Results) -> list[str]:
    """What AP leaves unsaid: where its groups come from, and what has no part in it."""
    notes, declared = [], annotations.declared_frequency
    objects = int((~annotations.iscrowd).sum())
    empty = int(((annotations.areas <= 0) & ~annotations.iscrowd).sum()) if protocol != "coco" else 0
    if not judged.ground_truth.any():
        notes.append(f"{annotations.path} has no object to judge by{f' (all {empty} have area 0)' if empty else ''}")
    elif empty:
        notes.append(
            f"{empty} of {objects} objects have an area of 0 and are left out, by LVIS's rule. Fix: write their area, "
            "or leave the key out"
        )
    if declared is None or (declared == "").any():
        notes.append(
            f"the groups of APr, APc and APf are by the image counts of {annotations.path} itself. Fix: give the "
            "training set (--train-json, or Annotations.with_frequency_of)"
        )
    if results.left_out:
        notes.append(
            f"{results.left_out} predictions of categories or images that the ground truth lacks were left out"
        )
    return notes


def box_evaluator(
    annotations: Annotations, judged: JudgedPairs, results: Results, prepared: Prepared
) -> hotcoco.LVISeval:
    """hotcoco after overlapping, matching and accumulating. Ids: image_index + 1, class_id + 1."""
    objects = np.flatnonzero(judged.ground_truth)
    ground_truth = hotcoco.COCO.from_arrays(
        *records(annotations, prepared.negative, prepared.not_exhaustive),
        annotations.annotation_image[objects].astype(np.int64) + 1,
        annotations.annotation_class[objects].astype(np.int64) + 1,
        np.ascontiguousarray(annotations.boxes[objects]),
        ids=np.arange(1, len(objects) + 1),
        area=annotations.areas[objects],
    )
    rows = prepared.rows
    table = np.empty((len(rows), 7))  # image, x, y, width, height, score, class; 1-based
    for start in range(0, len(rows), _ROWS_CHUNK):  # so that nothing of the table's size is made beside it
        some, part = rows[start : start + _ROWS_CHUNK], table[start : start + _ROWS_CHUNK]
        part[:, 0] = results.image_index[some] + 1
        part[:, 1:5] = results.boxes[some]
        part[:, 5] = results.scores[some]
        part[:, 6] = results.class_id[some] + 1
    predictions = ground_truth.load_res(table)
    del table
    if not results.has_boxes:
        predictions.update_anns(ids=np.arange(1, len(rows) + 1), area=prepared.areas)
    # The cap is applied already: the engine is not to apply its own, of an image, and of an image and category.
    evaluator = hotcoco.LVISeval(ground_truth, predictions.cap_detections_per_image(None), "bbox")
    evaluator.params.maxDets = [len(rows)]
    evaluator.evaluate()
    evaluator.accumulate()
    return evaluator


def _coco_counts(results: Results, max_dets: int) -> dict[str, int]:
    """As those of `Prepared`: COCO caps each image and category by itself, and judges whatever is left."""
    keys = results.class_id.astype(np.int64) * results.num_images + results.image_index
    found = np.unique(keys, return_counts=True)[1]
    over = 0 if max_dets == -1 else int(np.maximum(found - max_dets, 0).sum())
    return {"judged": len(results) - over, "over_max_dets": over}


@dataclass(eq=False)
class Evaluation:
    """AP of one set of results.

    Attributes:
        metrics: IoU type -> `METRICS`; percent, NaN where no ground truth is there to judge by.
        per_category: one row per category: category_id, name, frequency, image_count, instance_count (counts of the
            ground truth evaluated on), AP_bbox, AP_segm (percent, NaN if absent or not evaluated), and AP_boundary if
            evaluated.
        info: annotations, results (paths), images, predictions, max_dets, backend, protocol, per IoU type how many
            predictions were judged and why the others were not; as sentences the diagnosis (`rio.results.diagnosis`)
            and notes of what AP leaves unsaid.
        precision: IoU type -> (10, 101, K, 4) float64 in 0..1, -1 absent; axes in IOU_THRESHOLDS, RECALL_THRESHOLDS,
            class_id, AREA_LABELS. Empty after `from_json`: it is not stored.
    """

    metrics: dict[str, dict[str, float]]
    per_category: pd.DataFrame
    info: dict[str, Any] = field(default_factory=dict)
    precision: dict[str, np.ndarray] = field(default_factory=dict)

    def table(self) -> str:
        """The nine metrics of each IoU type as text, "-" where there is nothing to judge by; the diagnosis; notes."""
        rows = [["", *METRICS]]
        for iou_type, values in self.metrics.items():
            rows.append([iou_type, *("-" if math.isnan(values[m]) else f"{values[m]:.2f}" for m in METRICS)])
        width = max(6, *(len(row[0]) + 1 for row in rows))
        lines = [row[0].ljust(width) + "".join(cell.rjust(7) for cell in row[1:]) for row in rows]
        notes = [f"Diagnosis (nothing was changed): {text}." for text in self.info.get("diagnosis", ())]
        notes += [f"Note: {text}." for text in self.info.get("notes", ())]
        return "\n".join([lines[0], "-" * len(lines[0]), *lines[1:], *notes])

    def precision_recall(self, category_id: int, *, iou_type: str = "bbox", iou_threshold: float = 0.5) -> pd.DataFrame:
        """Interpolated precision at the 101 recalls of one category: columns recall, precision (both 0..1). A
        ValueError for an unknown category id or threshold, and after `from_json`, which has no precision array.
        """
        if iou_type not in self.precision:
            raise ValueError(
                f"precision of {iou_type!r}: expected one of {sorted(self.precision)}. Fix: evaluate again; "
                "evaluation.json does not hold it."
            )
        row = np.flatnonzero(self.per_category["category_id"].to_numpy() == category_id)
        threshold = np.flatnonzero(np.isclose(matching.IOU_THRESHOLDS, iou_threshold))
        if not len(row) or not len(threshold):
            raise ValueError(
                f"category_id {category_id}, iou_threshold {iou_threshold}: expected a category of the ground truth "
                f"and one of {matching.IOU_THRESHOLDS.round(2).tolist()}."
            )
        values = self.precision[iou_type][threshold[0], :, row[0], 0]
        return pd.DataFrame({"recall": matching.RECALL_THRESHOLDS, "precision": np.where(values < 0, np.nan, values)})

    def to_json(self, path: str | os.PathLike[str]) -> None:
        """Writes all but the precision array, atomically; NaN becomes null."""
        content = {
            "metrics": self.metrics,
            "info": self.info,
            "per_category": {name: self.per_category[name].tolist() for name in self.per_category},
        }
        write_atomically(Path(path), msgspec.json.format(msgspec.json.encode(content), indent=1))

    @classmethod
    def from_json(cls, path: str | os.PathLike[str]) -> Evaluation:
        """What `to_json` wrote; a FileNotFoundError or a ResultsError where it is not there or no evaluation."""
        path = Path(path)
        if not path.is_file():
            raise FileNotFoundError(f"{path}: no such evaluation. `python -m rio eval` writes it.")
        try:
            content = msgspec.json.decode(path.read_bytes(), type=_EvaluationContent)
            lengths = {len(content.per_category[name]) for name in {*_PER_CATEGORY, *content.per_category}}
            if len(lengths) != 1:
                raise ValueError(f"columns of different lengths in per_category: {sorted(lengths)}")
            if any(set(values) != set(METRICS) for values in content.metrics.values()):
                raise ValueError(f"metrics other than {METRICS}")
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError, KeyError, ValueError) as error:
            found, fix = f"{type(error).__name__}: {error}", "evaluate the results again"
            raise results_error(str(path), "top level", "what Evaluation.to_json writes", found, fix) from None
        metrics = {
            iou_type: {m: float("nan") if values[m] is None else values[m] for m in METRICS}
            for iou_type, values in content.metrics.items()
        }
        frame = pd.DataFrame(content.per_category)
        frame = frame.astype({name: np.float64 for name in frame if name.startswith("AP_")})
        return cls(metrics, frame, content.info)


_PER_CATEGORY = ("category_id", "name", "frequency", "image_count", "instance_count", "AP_bbox", "AP_segm")


class _EvaluationContent(msgspec.Struct):
    metrics: dict[str, dict[str, float | None]]
    info: dict[str, Any]
    per_category: dict[str, list[Any]]


def _summary(annotations: Annotations, precision: dict[str, np.ndarray], info: dict[str, Any]) -> Evaluation:
    a = annotations
    columns = (a.category_ids, a.category_names, a.frequency.tolist(), a.image_count, a.instance_count, np.nan, np.nan)
    frame = pd.DataFrame(dict(zip(_PER_CATEGORY, columns, strict=True)))
    metrics = {}
    for iou_type, array in precision.items():
        metrics[iou_type] = {
            "AP": _mean(array[:, :, :, 0]),
            "AP50": _mean(array[[0], :, :, 0]),
            "AP75": _mean(array[[5], :, :, 0]),
            **{f"AP{label[0]}": _mean(array[:, :, :, i]) for i, label in enumerate(matching.AREA_LABELS) if i},
            **{f"AP{g}": _mean(array[:, :, np.flatnonzero(annotations.frequency == g), 0]) for g in GROUP_NAMES},
        }
        by_class = array[:, :, :, 0].reshape(-1, array.shape[2]).T
        there = np.flatnonzero(by_class[:, 0] > -1)  # -1 is all of a class or nothing of it
        frame.loc[there, f"AP_{iou_type}"] = np.ascontiguousarray(by_class[there]).mean(1) * 100
    return Evaluation(metrics, frame, info, precision)


def _mean(precision: np.ndarray) -> float:
    """Mean of what is there, in percent; summed in the official package's order, for the last bit."""
    there = precision[precision > -1]
    return float(np.mean(there)) * 100 if len(there) else float("nan")
