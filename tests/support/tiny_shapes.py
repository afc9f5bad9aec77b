"""A drawn data set and a detector so small that training takes a second; shared by the tests of training."""

from pathlib import Path

from rio.shapes import dataset
from rio.shapes.spec import ShapesSpec

DEMO_CONFIG = Path(__file__).resolve().parents[2] / "configs" / "shapes" / "demo.yaml"
SPEC = ShapesSpec(
    "tiny", image_size=48, train_images=102, val_images=6, num_classes=6, num_rare=2, num_common=3, seed=3,
    max_image_frequency=1.0, supersampling=1,
)  # fmt: skip


def draw(root: Path) -> Path:
    """The folder of the tiny set below root."""
    return dataset.generate(root, SPEC, workers=1, progress=False)


def data_flags(folder: Path) -> list[str]:
    """Command line flags that name the set, as a user names her own."""
    flags = []
    for flag in ("train", "val"):
        flags += [f"--{flag}-json", str(folder / f"{flag}.json"), f"--{flag}-images", str(folder / flag)]
    return flags


def train_words(folder: Path, output: Path, *options: object, max_iter: int = 3) -> list[str]:
    """The command that trains the small model on it."""
    flags = ["--config-file", DEMO_CONFIG, *data_flags(folder), "--output-dir", output]
    return list(map(str, ["train", *flags, *model_options(max_iter), *options]))


def data_options(folder: Path) -> list[str]:
    """The same as config keys."""
    return [
        "DATASETS.TRAIN", repr((f"{folder}/train.json@{folder}/train",)),
        "DATASETS.TEST", repr((f"{folder}/val.json@{folder}/val",)),
    ]  # fmt: skip


def model_options(max_iter: int = 6) -> list[str]:
    """A small model on small images, from scratch, two images a step."""
    return [
        "MODEL.WEIGHTS", "", "MODEL.ROI_BOX_HEAD.FC_DIM", "24", "MODEL.FPN.OUT_CHANNELS", "16",
        "MODEL.ROI_MASK_HEAD.CONV_DIM", "8", "MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE", "16",
        "INPUT.MIN_SIZE_TRAIN", "(48, 56)", "INPUT.MAX_SIZE_TRAIN", "64",
        "INPUT.MIN_SIZE_TEST", "48", "INPUT.MAX_SIZE_TEST", "64", "TEST.DETECTIONS_PER_IMAGE", "10",
        "SOLVER.IMS_PER_BATCH", "2", "SOLVER.WARMUP_ITERS", "1", "SOLVER.MAX_ITER", str(max_iter),
    ]  # fmt: skip
