"""What a study runs: the study file, and its arms and seeds checked before anything starts.

config: ../shapes/demo.yaml          # relative to the study file
arms:
  none: [MODEL.RIO.SAMPLER, none, MODEL.RIO.BANK_ENABLED, false]
  rio:  [MODEL.RIO.SAMPLER, rfs]
seeds: [0]                            # or {1: [], 2: [KEY, VALUE, ...]}: options of a seed, for example another split
processes: 2                          # trainings side by side
gpus: 1                               # that they are dealt over; several processes share one
comparisons: [[rio, none]]            # default: every arm against the first
features: ../../output/features       # trains classifiers on these frozen features (`python -m rio features`), or on
                                      # those of these weights, a .pth file; relative to the study file. A list: each
                                      # seed has its own, so that differences hold for several detectors
tune_on: shapes_demo_tune             # makes it a tuning study: evaluated there, never on DATASETS.TEST
protocols: [lvis, lvis_fixed]         # judged by AP-fixed (or coco) as well; LVIS's AP is always there
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from rio.data.files import dotted, write_atomically
from rio.results.protocols import PROTOCOLS
from rio.study.process import Training

KEYS = ("config", "arms", "seeds", "processes", "gpus", "comparisons", "features", "tune_on", "protocols")
FEATURES = "MODEL.RIO.FEATURES"


class StudyError(ValueError):
    """A study that cannot be run, or runs of it that failed; the message says what to change."""


def require(holds: Any, where: str, expected: str, found: Any) -> None:
    """Raise a StudyError unless `holds`."""
    if not holds:
        raise StudyError(f"{where}: expected {expected}, found {found!r}")


@dataclass(frozen=True)
class Study:
    """What to run."""

    name: str  # the file's stem
    config: str  # path of the base config
    arms: dict[str, list[str]]  # name -> [KEY, VALUE, ...] over the base config
    seeds: tuple[int, ...]  # one run per arm and seed
    seed_options: dict[int, list[str]]  # seed -> [KEY, VALUE, ...] over the arm's
    processes: int  # trainings side by side
    gpus: int  # that they are dealt over; on a machine without one the CPU is used
    comparisons: tuple[tuple[str, str], ...]  # (arm, baseline)
    features: tuple[str, ...]  # folder of features, or weights, of each seed; (): whole detectors are trained
    protocols: tuple[str, ...]  # of `rio.results.protocols`, that runs are judged by beside lvis
    tune_on: str | None  # data set that is evaluated on in place of DATASETS.TEST; None: this study reports
    file: str  # the study file, relative to the repository where it is in it

    @property
    def features_of(self) -> dict[int, str]:
        """Of each seed; empty where whole detectors are trained."""
        return dict(zip(self.seeds, self.features, strict=bool(self.features)))

    @property
    def tuning_options(self) -> list[str]:
        """KEY, VALUE that evaluate on `tune_on`; empty in a study that reports."""
        return [] if self.tune_on is None else ["DATASETS.TEST", repr((self.tune_on,))]


@dataclass
class Run:
    """One training of a study: its folder is OUTPUT/ARM-seedS, its options are over the study's config."""

    arm: str
    seed: int
    folder: Training
    options: list[str]
    max_iter: int
    protocols: tuple[str, ...] = ()  # beside lvis
    device: str | None = None  # CUDA_VISIBLE_DEVICES
    started: float = 0.0  # time.monotonic(), in this call

    @property
    def name(self) -> str:
        return f"{self.arm}-seed{self.seed}"

    @property
    def is_finished(self) -> bool:
        judged = all(self.evaluation_file(protocol).is_file() for protocol in self.protocols)
        return judged and (self.folder.path / "study_finished.json").exists() and self.folder.is_finished

    def evaluation_file(self, protocol: str) -> Path:
        """Where `rio train --protocol` writes."""
        return self.folder.path / protocol / "evaluation.json"


def load_study(path: str | os.PathLike[str]) -> Study:
    """Read and check a study file: a StudyError names the key, what was expected and found; a FileNotFoundError where
    the file or its base config is missing.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such study file. Fix: choose one of configs/studies/, or write one")
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise StudyError(f"{path}: expected YAML, found: {' '.join(str(error).split())}") from error

    def need(holds: Any, key: str, expected: str, found: Any) -> None:
        require(holds, f"{path}: key '{key}'", expected, found)

    need(isinstance(content, dict), "", f"keys {', '.join(KEYS)}", content)
    for key in content:
        need(key in KEYS, str(key), f"one of {', '.join(KEYS)}", key)
    config, arms, seeds = content.get("config"), content.get("arms"), content.get("seeds", [0])
    need(config and isinstance(config, str), "config", "the path of the base config", config)
    need(arms and isinstance(arms, dict), "arms", "names with lists [KEY, VALUE, ...]", arms)
    for name in arms:
        plain = isinstance(name, str) and name and Path(name).name == name and not name.startswith(".")
        need(plain, f"arms.{name}", "a name that can be a folder's", name)
    good = seeds and isinstance(seeds, list | dict) and all(type(s) is int and s >= 0 for s in seeds)
    expected = "a list of different integers >= 0, or a mapping of them to [KEY, VALUE, ...]"
    need(good and len(set(seeds)) == len(seeds), "seeds", expected, seeds)
    seeds = seeds if isinstance(seeds, dict) else dict.fromkeys(seeds)
    for key, named in (("arms", arms), ("seeds", seeds)):
        for name, options in named.items():
            pairs = options is None or (isinstance(options, list) and len(options) % 2 == 0)
            need(pairs, f"{key}.{name}", "[KEY, VALUE, ...]", options)
    counts = {key: content.get(key, 1) for key in ("processes", "gpus")}
    for key, value in counts.items():
        need(type(value) is int and value >= 1, key, "an integer >= 1", value)
    first, *others = arms
    comparisons = content.get("comparisons", [[arm, first] for arm in others])
    need(isinstance(comparisons, list), "comparisons", "a list of [ARM, BASELINE]", comparisons)
    for number, pair in enumerate(comparisons):
        good = isinstance(pair, list) and len(pair) == 2 and all(isinstance(arm, str) and arm in arms for arm in pair)
        expected = f"[ARM, BASELINE], two different of {', '.join(arms)}"
        need(good and pair[0] != pair[1], f"comparisons[{number}]", expected, pair)
    features, tune_on = content.get("features"), content.get("tune_on")
    kept = [features] * len(seeds) if isinstance(features, str) else features or []
    good = isinstance(kept, list) and len(kept) in (0, len(seeds)) and all(isinstance(one, str) for one in kept)
    need(good, "features", f"a folder of features or weights, or a list of {len(seeds)}, one per seed", features)
    need(tune_on is None or isinstance(tune_on, str), "tune_on", "the name of a data set", tune_on)
    protocols = content.get("protocols", ["lvis"])
    good = isinstance(protocols, list) and all(isinstance(p, str) and p in PROTOCOLS for p in protocols)
    need(good and "lvis" in protocols, "protocols", f"lvis and others of {', '.join(PROTOCOLS)}", protocols)
    base = path.parent / os.path.expanduser(config)
    if not base.is_file():
        raise FileNotFoundError(f"{base}: no such config, named by 'config' in {path} (relative to that file)")
    repository, file = Path(__file__).resolve().parents[2], path.resolve()
    return Study(
        name=path.stem,
        config=str(base),
        arms=_as_words(arms),
        seeds=tuple(seeds),
        seed_options=_as_words(seeds),
        features=tuple(str(path.parent / os.path.expanduser(one)) for one in kept),
        comparisons=tuple((arm, baseline) for arm, baseline in comparisons),
        protocols=tuple(p for p in dict.fromkeys(protocols) if p != "lvis"),
        tune_on=tune_on,
        file=file.relative_to(repository).as_posix() if file.is_relative_to(repository) else file.name,
        **counts,
    )


def _as_words(named: dict[Any, list[Any] | None]) -> dict[Any, list[str]]:
    return {name: [str(word) for word in options or []] for name, options in named.items()}


def features_folders(study: Study, root: Path) -> dict[str, Path]:
    """Where the study's features lie, or will: folders as they are, weights' features in `root`."""
    weights = [one for one in dict.fromkeys(study.features) if one.endswith((".pth", ".pkl"))]
    names = {one: f"features{number}" if number else "features" for number, one in enumerate(weights)}
    return {one: root / names[one] if one in names else Path(one) for one in study.features}


def prepare(study: Study, root: Path, options: Sequence[str]) -> list[Run]:
    """The study's runs, seed by seed, with every arm's config and data sets checked.

    Seed by seed: an interrupted study has all arms to compare, with fewer seeds. `root` gets a folder per run, with the
    settings that the run begins with; `options` (KEY, VALUE, ...) are for every arm. A StudyError names the arm and the
    key, or the run whose settings changed since it began.
    """
    from rio.config import load_config  # detectron2 takes seconds to import: not for `load_study`
    from rio.data import names as datasets

    folders = features_folders(study, root)
    on_features = [arm for arm, own in study.arms.items() if FEATURES in (*own[::2], *options[::2])]
    if on_features and (folders or len(on_features) < len(study.arms)):
        raise StudyError(
            f"study {study.name}, arm {on_features[0]!r}: {FEATURES}: expected all arms on the same features or none, "
            "found some. Fix: remove it, and name the features by the key 'features' of the study file"
        )
    runs = []
    for seed, (arm, own) in ((seed, item) for seed in study.seeds for item in study.arms.items()):
        where = f"study {study.name}, arm {arm!r}"
        own = [*own, *study.seed_options[seed]]
        features = [FEATURES, str(folders[study.features_of[seed]].absolute())] if folders else []
        run_options = [*own, *options, *study.tuning_options, *features, "SEED", str(seed)]
        try:
            cfg = load_config(study.config, run_options)
        except ValueError as error:
            raise StudyError(f"{where}: {error}") from error
        for split in ("TRAIN", "TEST"):
            expected = "a data set (a study needs one to train on and one to compare the arms on)"
            require(cfg.DATASETS[split], f"{where}: DATASETS.{split}", expected, cfg.DATASETS[split])
        for name in (*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST):
            datasets.annotations_of(name)
        if study.tune_on is not None:
            if "DATASETS.TEST" in own[::2]:
                raise StudyError(
                    f"{where}: DATASETS.TEST: expected no such key in a tuning study, which is evaluated only on "
                    f"tune_on ({study.tune_on}). Fix: remove it"
                )
            reported = load_config(study.config, list(options)).DATASETS
            others = (*reported.TEST, *reported.TRAIN, *cfg.DATASETS.TRAIN)
            check_disjoint(f"study {study.name}: tune_on {study.tune_on}", study.tune_on, others)
        folder = Training(root / f"{arm}-seed{seed}")
        run = Run(arm, seed, folder, run_options, cfg.SOLVER.MAX_ITER, study.protocols)
        cfg.OUTPUT_DIR = ""
        keep_settings(run.folder.path, cfg.dump())
        runs.append(run)
    return runs


def check_disjoint(where: str, tune_on: str, others: Sequence[str]) -> None:
    """Tuning must see neither the split that is reported nor what is trained on: a StudyError where the data set
    `tune_on` has an image in common with one of `others`.
    """
    from rio.data import names as datasets

    def files(name: str) -> set[str]:
        found = datasets.annotations_of(name)
        folder = os.path.realpath(found.image_root or "")
        return {os.path.normpath(os.path.join(folder, file)) for file in found.file_names}

    tuning = files(tune_on)
    for name in dict.fromkeys(others):
        if shared := tuning & files(name):
            raise StudyError(
                f"{where}: expected other images than those of {name}, found {len(shared)} in both, for example "
                f"{min(shared)}. What is chosen on images that are trained on or reported looks better than it is. "
                "Fix: tune on a set of its own"
            )


def keep_settings(folder: Path, settings: str) -> None:
    """Write a run's settings (YAML) into its folder, or check that they are those it began with.

    A key that is only in the new settings was added to rio since, one that is only in the old removed; the run is the
    same as long as it has its default.
    """
    file = folder / "study_settings.yaml"
    if not file.exists():
        write_atomically(file, settings.encode())
        return
    from rio.config import REMOVED, get_rio_cfg

    texts = get_rio_cfg().dump(), file.read_text(encoding="utf-8"), settings
    defaults, began, now = (dotted(yaml.safe_load(text)) for text in texts)
    now = REMOVED | now
    before = {key: value for key, value in (REMOVED | defaults).items() if key in now} | began
    keys = sorted(key for key in before.keys() | now.keys() if before.get(key) != now.get(key))
    if keys:
        changed = "; ".join(f"{key}: {before.get(key)!r} -> {now.get(key)!r}" for key in keys[:5])
        more = f" and {len(keys) - 5} more" if len(keys) > 5 else ""
        raise StudyError(
            f"{folder}: was begun with other settings ({changed}{more}). Fix: choose another --output-dir, or delete "
            "that folder to train it anew"
        )
