"""The bank against hand-worked cases and a slow oracle of deques; its state, its errors, its empty cases."""

import copy
import doctest
from collections import deque

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rio.engine import rows as helpers
from rio.memory_bank import MemoryBank
from tests.support.bank import K, Waits, make, rows

NO_CLASSES = torch.zeros(0, dtype=torch.int64)


def read(bank: MemoryBank, classes: list[int], *, whole: bool = True, **arguments) -> list[tuple[int, float]]:
    """[(class, value), ...] as replayed, after checking, if rows are whole, that boxes and features belong together."""
    replay = bank.sample(torch.tensor(classes, dtype=torch.int64), **arguments)
    values = replay.features[:, 0].float()
    assert torch.equal(replay.features.float(), values[:, None].expand(-1, bank.feature_dim))
    for boxes, more in ((replay.proposal_boxes, 0.25), (replay.gt_boxes, 0.5)):
        assert len(boxes) == len(replay.written_at) == len(replay)
        assert not whole or torch.equal(boxes, (values[:, None] + more).expand(-1, 4))
    return list(zip(replay.gt_classes.tolist(), values.tolist()))


def test_a_worked_example():
    assert doctest.testmod(helpers).failed == 0
    bank = make()
    assert read(bank, [1, 4, 6]) == []  # nothing stored yet
    bank.write(*rows([10, 11, 12, 13, 14], [1, 6, 4, 0, 1]))  # 11 is background, 13 no target
    assert read(bank, [0, 6]) == []  # no target class in the batch
    assert read(bank, [4]) == [(4, 12.0)]
    assert read(bank, [1, 1, 4]) == [(1, 14.0), (4, 12.0), (1, 10.0)]  # newest of each first
    features, *others = rows([20, 21], [1, 1])
    bank.write(features.requires_grad_() * 1, *others)  # class 1 now has 4 of 3: 10 leaves
    replay = bank.sample(torch.tensor([1]))
    assert read(bank, [1]) == [(1, 21.0), (1, 20.0)]
    assert sorted(bank.features[0, :, 0].tolist()) == [14.0, 20.0, 21.0] and not replay.features.requires_grad
    assert bank.num_written.tolist() == [4, 1] and sorted(bank.written_at[0].tolist()) == [0, 1, 1]
    bank.write(*rows([5, 5, 5], [1, 1, 1]))
    assert replay.features[0, 0] == 21  # a copy: a later write does not reach into a graph that holds it
    bank.write(*rows([], []))
    replay = bank.sample(NO_CLASSES)
    assert len(replay) == 0 and replay.features.shape == (0, 2) and replay.gt_boxes.shape == (0, 4)
    assert bank.iteration == 4  # steps without a row count as steps


class Oracle:
    """The method in Python lists: values by class."""

    def __init__(self, class_ids, slots, replayed, per_object):
        self.stored = {c: deque(maxlen=slots) for c in class_ids}
        self.replayed, self.per_object = replayed, per_object

    def sample(self, classes):
        table = {c: list(reversed(own))[: self.replayed] for c, own in self.stored.items() if c in classes}
        return [(c, table[c][rank]) for rank in range(self.replayed) for c in table if rank < len(table[c])]

    def write(self, table):  # (value, class, IoU, object)
        for place, (value, c, iou, identity) in enumerate(table):
            better = sum(o == identity and d == c and (-i, p) < (-iou, place) for p, (_, d, i, o) in enumerate(table))
            if c in self.stored and (not self.per_object or better < self.per_object):
                self.stored[c].append(value)


# Class, height of the proposal, place of the object, image.
roi = st.tuples(st.integers(-1, K), st.integers(1, 9), st.integers(0, 2), st.integers(0, 1))


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    steps=st.lists(st.lists(roi, max_size=14), min_size=1, max_size=6),
    class_ids=st.lists(st.integers(0, K - 1), min_size=1, max_size=K, unique=True),
    slots=st.integers(1, 7),
    replayed=st.integers(1, 7),
    per_object=st.integers(0, 3),
)
def test_equal_to_the_oracle_whatever_comes(steps, class_ids, slots, replayed, per_object):
    replayed = min(replayed, slots)
    kinds = dict(class_ids=class_ids, slots_per_class=slots, replay_per_class=replayed, write_max_per_object=per_object)
    bank, oracle, first = make(**kinds), Oracle(class_ids, slots, replayed, per_object), 0
    for step in steps:
        step.sort(key=lambda roi: roi[3])  # image by image; an object is (image, place)
        classes = [c for c, *_ in step]
        assert read(bank, classes, whole=False) == oracle.sample(classes)

        values, first = list(range(first, first + len(step))), first + len(step)
        # Place p's box is 10 wide at 20 p, a proposal covers h tenths of it. The same boxes in both images.
        gt = torch.tensor([[20.0 * p, 0, 20 * p + 10, 10] for _, _, p, _ in step]).reshape(-1, 4)
        proposals = torch.tensor([[20.0 * p, 0, 20 * p + 10, h] for _, h, p, _ in step]).reshape(-1, 4)
        columns = rows(values, classes)[0], proposals, gt, torch.tensor(classes, dtype=torch.int64)
        counts = [sum(roi[3] == image for roi in step) for image in (0, 1)]
        bank.write(*columns, rois_per_image=counts)
        oracle.write([(v, c, h, o) for v, (c, h, *o) in zip(values, step)])
    for c, written, stored in zip(class_ids, bank.num_written.tolist(), bank.features[..., 0].tolist()):
        assert sorted(stored[: min(written, slots)]) == sorted(oracle.stored[c])


def test_the_draw_of_absent_classes_is_uniform_and_depends_on_seed_and_step_only():
    banks = [make(class_ids=[0, 1, 2], replay_absent_classes=1, seed=s) for s in (7, 7, 8)]
    drawn = []
    for step in range(300):
        for bank in banks:
            bank.write(*(rows([0, 1, 2], [0, 1, 2]) if step == 0 else rows([], [])))
        torch.manual_seed(step)  # the global generator is not looked at, and not moved
        state = torch.get_rng_state()
        drawn.append([read(bank, [])[0][0] for bank in banks])
        assert torch.equal(torch.get_rng_state(), state)
    own, twin, other = torch.tensor(drawn).T
    assert own.bincount().min() > 70  # 100 expected each, standard deviation 8
    assert torch.equal(own, twin) and 60 < (own == other).sum() < 140


def test_boxes_of_no_area_are_an_object_as_any_other():
    few = make(write_max_per_object=1)  # IoU 0 / 0
    few.write(torch.ones(2, 2), torch.zeros(2, 4), torch.zeros(2, 4), torch.tensor([4, 4]))
    assert few.num_written.tolist() == [0, 1]


def test_absent_classes_are_replayed_as_well():
    bank = make(num_classes=9, class_ids=[1, 2, 3, 4, 5, 7], replay_absent_classes=2)
    assert read(bank, [1]) == []  # nothing stored
    bank.write(*rows([10, 11, 12, 20, 30, 40], [1, 1, 1, 2, 3, 4]))  # 5 and 7 have nothing
    seen = set()
    for _ in range(60):
        first = read(bank, [1, 9, 0])
        assert first == read(bank, [1, 9, 0])  # the same as long as nothing is written
        assert first[0] == (1, 12.0) and (1, 11.0) in first and len(first) == 4
        seen.add(frozenset(c for c, _ in first) - {1})
        assert len({c for c, _ in read(bank, [])}) == 2  # also for a step without an RoI
        bank.write(*rows([], []))
    assert seen == {frozenset(two) for two in ((2, 3), (2, 4), (3, 4))}  # drawn anew
    bank.replay_absent_classes = 50  # more than there are
    everything = {(1, 12.0), (1, 11.0), (2, 20.0), (3, 30.0), (4, 40.0)}
    assert set(read(bank, [2])) == everything and set(read(bank, [1, 2, 3, 4])) == everything


@pytest.mark.parametrize("version", [1, 2])
def test_a_bank_of_an_earlier_format_loads_and_continues_exactly(version):
    old, bank = make(), make()
    for step in (([1, 2], [1, 4]), ([3, 4, 5], [1, 1, 4])):
        old.write(*rows(*step))
    bank.write(*rows([9, 8], [1, 1]))
    state = old.state_dict()
    state["_extra_state"] = torch.tensor([version, 2])
    if version == 2:  # it knew the image and the object of each row
        state["object_ids"] = torch.arange(12).reshape(2, 3, 2)
    bank.load_state_dict(state)
    for _ in range(4):
        assert read(bank, [1, 4]) == read(old, [1, 4])
        for each in (old, bank):
            each.write(*rows([6, 7], [1, 4]))
    assert bank.iteration == 6 and all(torch.equal(v, old.state_dict()[k]) for k, v in bank.state_dict().items())
    with pytest.raises(ValueError, match="format 1 or 2, found 9"):
        bank.set_extra_state(torch.tensor([9, 0]))


VARIANTS = {"replay_absent_classes": 1, "write_max_per_object": 2}


@pytest.mark.parametrize("how", [{}, VARIANTS])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_state_dict_continues_exactly(how, dtype, tmp_path):
    def step(bank, n, seed):
        generator = torch.Generator().manual_seed(seed)
        classes = torch.randint(-1, K + 1, (n,), generator=generator)
        before = copy.deepcopy(bank.state_dict())
        replay = bank.sample(classes)
        assert all(torch.equal(value, before[name]) for name, value in bank.state_dict().items())  # it only reads
        boxes = torch.rand(2, n, 4, generator=generator)
        bank.write(torch.randn(n, 2, generator=generator), *boxes, classes)
        return replay

    bank, resumed = (make(**how, storage_dtype=dtype, seed=3) for _ in range(2))
    for seed, n in enumerate((5, 9, 0, 7)):
        step(bank, n, seed)
    torch.save(bank.state_dict(), tmp_path / "bank.pth")
    assert all(isinstance(value, torch.Tensor) for value in bank.state_dict().values())  # as fvcore demands
    resumed.load_state_dict(torch.load(tmp_path / "bank.pth", weights_only=True))
    assert resumed.iteration == bank.iteration == 4
    for seed, n in enumerate((8, 3, 12), 9):
        a, b = (vars(step(each, n, seed)) for each in (bank, resumed))
        assert all(torch.equal(a[name], b[name]) for name in a)
    assert all(torch.equal(v, resumed.state_dict()[k]) for k, v in bank.state_dict().items())


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"slots_per_class": 4}, r"features: expected \(2, 3, 2\), found \(2, 4, 2\)"),
        ({"feature_dim": 3}, r"features: expected \(2, 3, 2\), found \(2, 3, 3\)"),
        ({"class_ids": [1, 2, 4]}, r"num_written: expected \(2,\), found \(3,\)"),
        ({"class_ids": [1, 5]}, "other ones"),
        # Checkpointers drop tensors of another shape before they load; what is left must not be taken for a bank.
        ("features", "features.*absent"),
    ],
)
def test_a_bank_of_another_run_is_refused_whole(changes, says):
    other = make(**changes) if isinstance(changes, dict) else make()
    other.write(*rows([1], [1], width=other.feature_dim))
    state, bank = {k: v for k, v in other.state_dict().items() if k != changes}, make()
    with pytest.raises(RuntimeError, match=says):
        bank.load_state_dict(state, strict=False)
    assert bank.num_written.sum() == 0


def test_storage_of_another_precision_rounds_the_features_only():
    half, full = make(storage_dtype=torch.float16), make()
    features, proposal_boxes, gt_boxes, classes = rows([1.0, 1.0], [1, 4])
    features = torch.stack([features[0] + 1 / 3, features[1] * 1e6])
    half.write(features, proposal_boxes + 1 / 3, gt_boxes, classes)
    replay = half.sample(classes, dtype=torch.float32)
    assert replay.features.dtype == torch.float32 and half.sample(classes).features.dtype == torch.float16
    assert torch.equal(replay.features[0], features[0].half().float())
    assert replay.features[1].tolist() == [65504.0, 65504.0]  # float16 saturates
    assert torch.equal(replay.proposal_boxes, proposal_boxes + 1 / 3)
    full.write(features.bfloat16(), proposal_boxes, gt_boxes, classes)
    assert torch.equal(full.sample(classes).features, features.bfloat16().float())


def test_the_number_of_rows_is_sent_without_waiting(monkeypatch):
    """torch.tensor([n], device="cuda") would wait for the device; torch.full does not."""
    bank, made, tensor = make(sync=True), [], torch.tensor
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 2)
    monkeypatch.setattr(torch.distributed, "all_gather", lambda out, own: [part.copy_(own) for part in out])
    step = rows([1, 2], [1, 4])
    monkeypatch.setattr(torch, "tensor", lambda *a, **k: made.append(k) or tensor(*a, **k))
    bank.write(*step)
    assert not [how for how in made if "device" in how]
    assert bank.num_written.tolist() == [2, 2]  # both ranks' rows


@pytest.mark.parametrize("variant", [{}, VARIANTS])
def test_one_synchronisation_a_call(variant):
    bank, step = make(**variant), rows([1, 2, 3], [1, 6, 4])
    bank.write(*step)
    for call, arguments, options in ((bank.sample, step[3:], {}), (bank.write, step, {"rois_per_image": [2, 1]})):
        with Waits() as waits:
            call(*arguments, **options)
        assert waits.seen == ["nonzero"]


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"class_ids": []}, "class_ids: .*BANK_MAX_IMAGE_COUNT"),
        ({"class_ids": [1, 1]}, r"each once, found \[1\]"),
        ({"class_ids": [1, 6]}, r"below num_classes \(6\), each once, found \[6\]"),
        ({"class_ids": [-1]}, "below num_classes"),
        ({"num_classes": 0}, "NUM_CLASSES: expected 1..inf, found 0"),
        ({"feature_dim": 0}, "FC_DIM"),
        *(({key: 0}, key.upper()) for key in ("slots_per_class", "replay_per_class")),
        *(({key: -1}, key.upper()) for key in ("replay_absent_classes", "write_max_per_object")),
        ({"replay_per_class": 4}, "REPLAY_PER_CLASS: expected 1..3, found 4"),
        ({"storage_dtype": torch.int8}, "floating.*BANK_DTYPE"),
    ],
)
def test_bad_arguments(changes, says):
    with pytest.raises(ValueError, match=says) as caught:
        make(**changes)
    assert "Fix: " in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"features": torch.zeros(2, 1)}, r"features: expected shape \(2, 2\), found \(2, 1\).*FC_DIM"),
        ({"features": torch.zeros(1, 2)}, r"features: expected shape \(2, 2\), found \(1, 2\)"),
        ({"proposal_boxes": torch.zeros(2, 3)}, "proposal_boxes"),
        ({"gt_boxes": torch.zeros(2, 5)}, "gt_boxes: .*rotated"),
        ({"gt_classes": torch.zeros(2)}, "gt_classes"),
        ({"gt_classes": torch.zeros(2, dtype=torch.int64, device="meta")}, "device"),
        ({"rois_per_image": [1, 2]}, r"sum to the 2 rows, found \[1, 2\]"),
    ],
)
def test_bad_rows(changes, says):
    names, bank = ("features", "proposal_boxes", "gt_boxes", "gt_classes"), make()
    with pytest.raises(ValueError, match=says):
        bank.write(**(dict(zip(names, rows([1, 2], [1, 4]))) | changes))
    assert bank.iteration == 0 and bank.num_written.sum() == 0
