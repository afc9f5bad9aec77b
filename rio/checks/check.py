"""`rio.check`: read an annotation file past its first fault, and report all of them."""

import os
import re

from rio.checks.documents import what_it_is
from rio.checks.kinds import KINDS, Context, findings
from rio.checks.pictures import PICTURES
from rio.checks.report import Report
from rio.checks.write import write as repaired_copy
from rio.data.annotations import Annotations
from rio.data.errors import AnnotationError, Finding, Problems
from rio.data.load import columns_of
from rio.data.names import split_options

_OF_BOXES = {"corner_boxes", "normalised_boxes"}
_FOLLOW = {"box_clipped", "box_unlike_mask", "box_outside", "empty_box", "area_too_large", "size_swapped"}
"""What follows from boxes in another form, and is no fault of its own."""

PathLike = str | os.PathLike[str]


def check(
    annotations: PathLike | Annotations,
    *,
    images: PathLike | None = None,
    train: PathLike | None = None,
    train_images: PathLike | None = None,
    results: PathLike | None = None,
    write: PathLike | None = None,
) -> Report:
    """Everything that is wrong with an annotation file, what it means for training and AP, and the fix.

    Args:
        annotations: An LVIS- or COCO-format JSON; or "file.json@images"; or columns, whose file is read again.
        images: Its image folder; pictures are looked for, and their headers read.
        train: The training set's file, if this one is to evaluate on: categories and pictures are compared.
        train_images: The training set's image folder.
        results: A results file (detections) of this file's images: read, and evaluated for its diagnosis.
        write: Where to write a repaired copy: what has one right answer, all else as it is. Its changes are listed.

    Returns:
        A report: print it, or look at its `table`. A file that cannot be read has one finding.

    Raises:
        AnnotationFileNotFoundError: There is no such file.
        AnnotationError: `write` names the file itself.
    """
    path, root = _split(annotations, images)
    problems, data = _read(path, root)
    found = [*problems.findings.values(), *problems.repaired.values()]
    if root is not None and not os.path.isdir(root):
        folder = Finding("image_folder", "error", fix="give the folder that the file names are relative to")
        folder.means = "No picture can be found."
        folder.add("image folder", "-", f"{root} is no folder")
        found.append(folder)
    if data is None:
        return Report(path, "cannot be read", found)
    reference = None
    if train is not None:
        train_problems, reference = _read(*_split(train, train_images))
        if reference is None or train_problems.findings:
            first = next(iter(train_problems.findings.values()))
            finding = Finding("train", "warning", "", "check the training set by itself first")
            finding.add(first.examples[0][0], first.examples[0][1], f"{first.kind}: {first.examples[0][2]}")
            found.append(finding)
    found += findings(Context(data, reference), (*KINDS, *PICTURES))
    if _OF_BOXES & {finding.kind for finding in found}:
        found = [finding for finding in found if finding.kind not in _FOLLOW]
    if results is not None:
        found += _results(os.fspath(results), data)
    summary = f"{data.num_images:,} images, {data.num_annotations:,} annotations, {data.num_classes:,} categories"
    report = Report(path, summary + (", LVIS format" if data.federated else ", COCO format"), found)
    if write is not None:
        report.written = os.fspath(write)
        report.changes = repaired_copy(path, report.written, root)
        report.left = check(write, images=root, train=train, train_images=train_images).findings
    return report


def _results(path: str, data: Annotations) -> list[Finding]:
    """What is wrong with results: the first fault that stops their reading, else what their diagnosis says."""
    from rio.results.evaluation import evaluate  # brings the engine in
    from rio.results.reading import ResultsError

    try:
        said = evaluate(data, path, iou_types=None, allow_empty=True).info
    except (ResultsError, FileNotFoundError) as error:
        finding = Finding("results", "error", means="These results cannot be evaluated.")
        finding.add("results", "-", str(error))
        return [finding]
    diagnosis = Finding("results_diagnosis", "warning", means="AP is probably lower than the detector deserves.")
    notes = Finding("results_notes", "note", means="What AP leaves unsaid.")
    for finding, key in ((diagnosis, "diagnosis"), (notes, "notes")):
        for text in said.get(key, ()):
            finding.add("results", "-", text)
    return [finding for finding in (diagnosis, notes) if finding.count]


def _split(name: PathLike | Annotations, images: PathLike | None) -> tuple[str, str | None]:
    """File and image folder, from "file.json@images" and from columns too."""
    if isinstance(name, Annotations):
        return name.path, name.image_root if images is None else os.path.expanduser(os.fspath(images))
    path = split_options(os.path.expanduser(os.fspath(name)))[0]
    file, suffix, folder = [*re.split(r"(\.json)@", path, maxsplit=1, flags=re.I), "", ""][:3]
    if folder and images is None and not os.path.exists(path):
        path, images = file + suffix, folder
    return path, None if images is None else os.path.expanduser(os.fspath(images))


def _read(path: str, root: str | None) -> tuple[Problems, Annotations | None]:
    """All that the rules find, and the columns of what keeps to them; None where the file cannot be read."""
    problems = Problems(path, "list")
    try:
        return problems, columns_of(problems, root, root is not None, True)
    except AnnotationError as error:
        finding = Finding(error.kind, "error", error.expected, error.fix)
        finding.add(error.record, error.key, error.found)
        if found := what_it_is(path):
            finding.kind, finding.fix = "not_annotations", found[1]
            finding.means = f"This is {found[0]}, not an LVIS- or COCO-format file."
        problems.findings[error.kind] = finding
        return problems, None
