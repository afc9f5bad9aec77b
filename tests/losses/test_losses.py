"""The losses: worked by hand on one small batch, against recorded steps, and what every one of them must bear."""

import copy
import math

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor

from rio.losses import KEYS, LOSSES, build_loss
from rio.losses.base import Loss
from rio.losses.counts import LossError

# K = 3 classes, of 1,000, 100 and 5 among 2,000 images; a row of each and one of background.
CLASSES = torch.tensor([0, 1, 2, 3])
LOGITS = torch.tensor([[2.0, 0.0, -1.0, 0.5], [0.5, 1.0, 0.0, -0.5], [1.0, -0.5, 0.5, 0.0], [-1.0, -2.0, -3.0, 2.0]])
NODE = {"IMAGE_COUNT": [1000, 100, 5], "INSTANCE_COUNT": [4000, 150, 6], "NUM_IMAGES": 2000, "FRACTAL_DIMENSION": []}


def make(name: str, number: int = 3, **changes: object) -> Loss:
    node = {key: default for key, (default, _) in KEYS.items()} | NODE | {"CLS_LOSS": name} | changes
    return build_loss(node, number)


def close(found: Tensor, *expected: float, tolerance: float = 2e-6) -> None:
    torch.testing.assert_close(found.double().flatten(), torch.tensor(expected).double(), rtol=0, atol=tolerance)


def logits_for(loss: Loss, rows: int = 4, scale: float = 1.0, seed: int = 0) -> Tensor:
    return torch.randn(rows, loss.columns, generator=torch.Generator().manual_seed(seed)) * scale


# Worked by hand ---------------------------------------------------------------------------------------------


def test_softmax():
    close(make("softmax")(LOGITS, CLASSES), 0.622300)
    close(make("softmax").scores(LOGITS)[0], 0.710100, 0.096102, 0.035354, 0.158445)


def test_sigmoid():
    loss = make("sigmoid")
    close(loss(LOGITS[:, :3], CLASSES), 1.466004)
    close(loss.scores(torch.tensor([[2.0, 0.0, -1.0]])), 0.880797, 0.5, 0.268941, 1 - 0.880797)


def test_eql_spares_rare_classes_what_other_objects_teach():
    loss, logits = make("eql", EQL_THRESHOLD=0.01), LOGITS[:, :3].clone().requires_grad_()
    found = loss(logits, CLASSES)
    close(found, 1.214402)
    found.backward()
    assert logits.grad[:2, 2].tolist() == [0, 0]
    close(logits.grad[3, 2], 0.011856)  # the background still does: sigmoid(-3) / 4


def test_droploss_spares_them_the_background_too_with_the_probability_of_objects_that_are_not_rare():
    loss, found = make("droploss", EQL_THRESHOLD=0.01), []
    for seed in range(300):
        torch.manual_seed(seed)
        found.append(round(loss(LOGITS[:, :3], CLASSES).item(), 4))
    assert set(found) == {1.2144, 1.2023}  # kept as in EQL; dropped
    assert abs(found.count(1.2144) / 300 - 1 / 3) < 0.08
    background = loss(LOGITS[3:, :3], CLASSES[3:])
    close(background, 0.313262 + 0.126928)  # no object at all: the rare class is dropped


def test_eqlv2_balances_the_gradients_of_all_steps_before():
    loss = make("eqlv2")
    close(loss(LOGITS, CLASSES), 2.033061)
    close(loss.gradients, 0.119203, 0.268941, 0.377541, 1.622459, 0.996744, 0.816367)
    close(loss(LOGITS, CLASSES), 1.706394)
    close(loss.gradients[0] / loss.gradients[1], 0.440703, 1.614280, 2.696958, tolerance=1e-5)
    close(make("eqlv2").scores(LOGITS[3:])[0, [0, 3]], 0.268941 * (1 - 0.880797), 0.880797)


OBJECTNESS = torch.tensor([[1.0, 0.0], [0.5, 0.0], [0.0, 0.2], [-1.0, 1.5]])


def test_seesaw_punishes_rarer_classes_less_and_wrong_ones_more():
    loss, logits = make("seesaw"), torch.cat([LOGITS[:, :3], OBJECTNESS], 1)
    loss.seen.copy_(torch.tensor([4000, 150, 6]))
    close(loss(logits, CLASSES), 0.983585)
    assert loss.seen.tolist() == [4001, 151, 7]
    close(loss.scores(logits)[0], 0.616863, 0.083483, 0.030712, 0.268941)
    plain = make("seesaw", SEESAW_P=0.0, SEESAW_Q=0.0)
    close(plain(logits, CLASSES), (0.169846 + 0.680270 + 1.104131) / 4 + 0.416092)


def test_federated_trains_what_is_there_and_some_more():
    loss = make("federated")
    close(loss(LOGITS[:, :3], CLASSES), 1.466004)  # 50 classes of 3: all of them
    few = make("federated", FEDERATED_CLASSES=2)
    drawn = torch.zeros(3)
    for seed in range(600):  # background alone, which is one of the two
        torch.manual_seed(seed)
        logits = LOGITS[:, :3].clone().requires_grad_()
        few(logits, torch.full((4,), 3)).backward()
        drawn += (logits.grad != 0).any(0)
    assert drawn.sum() == 600
    assert (drawn / 600 - torch.tensor([0.721013, 0.228004, 0.050983])).abs().max() < 0.06
    logits = LOGITS[:, :3].clone().requires_grad_()
    few(logits, torch.tensor([0, 0, 2, 2])).backward()
    assert (logits.grad[:, 1] == 0).all() and (logits.grad[:, [0, 2]] != 0).all()
    close(few(LOGITS[:, :3], torch.tensor([0, 0, 2, 2])), (2.227529 + 4.529073) / 4)
    unseen = make("federated", IMAGE_COUNT=[10, 10, 0])
    assert unseen.weights(torch.zeros(4, 3), torch.full((4,), 3)).tolist() == [1, 1, 0]  # no image: never drawn


def test_balanced_softmax_gives_frequent_classes_their_lead():
    close(make("balanced_softmax")(LOGITS, CLASSES), (0.231383 + 2.256467 + 6.157286 + 0.045685) / 4)
    close(make("balanced_softmax", BALANCED_TAU=0.0)(LOGITS, CLASSES), 0.622300)
    close(make("balanced_softmax").scores(LOGITS)[0], 0.710100, 0.096102, 0.035354, 0.158445)


def test_bags_has_a_softmax_per_group_of_counts():
    loss = make("bags", INSTANCE_COUNT=[4000, 150, 6])  # groups 3, 2 (100 .. 999) and 0; group 1 has no class
    logits = torch.zeros(4, 3 + 4 + 2)
    other = torch.tensor([[1.0, 0.0]] * 3 + [[2.0, -1.0]])
    for row in range(4):
        for c, group in enumerate((3, 2, 0)):
            own, rest = (0.0, 1.0) if row == c else (other[row, 0], other[row, 1])
            logits[row, 3 + group], logits[row, c] = own, rest
    logits[:, -2:] = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.5, 0.0], [-1.0, 2.0]])
    close(loss(logits, CLASSES), 1.028576)
    scores = torch.zeros(1, 9)
    scores[0, [3 + 3, 3 + 2]] = 1.0  # "other" 1, the frequent and the common class 0
    scores[0, 2], scores[0, 7] = 1.0, 0.5
    close(loss.scores(scores), 0.167405, 0.167405, 0.455054, 0.377541)


def test_bags_draws_eight_others_a_row():
    loss = make("bags")
    logits, classes = torch.zeros(101, 9).requires_grad_(), torch.full((101,), 3)
    classes[0] = 2
    loss(logits, classes).backward()
    assert (logits.grad[:, 2] != 0).sum() == 9  # the rare class: its row, and 8 of the 100 others
    assert (logits.grad[:, [0, 1]] == 0).all()  # no row of their groups


def test_ecm_takes_its_margins_from_the_counts():
    loss = make("ecm")
    close(loss(LOGITS, CLASSES), 1.427146)
    margins = (0.477841 - 0.967903, 0.288451 - 1.383991, 0.146386 - 1.993810, 0.950211 - 0.488835)
    close(loss.margin, *margins)
    close(loss.weight, 0.935571, 0.993802, 0.999691, 0.314651)
    equal = make("ecm", IMAGE_COUNT=[7, 7, 7])
    assert equal.margin[:3].unique().numel() == 1


def test_gumbel_and_gol():
    loss = make("gumbel")
    close(loss(LOGITS[:, :3], CLASSES), 1.086024)
    close(loss.scores(torch.tensor([[2.0, 0.0, -1.0]])), 0.873423, 0.367879, 0.065988, 1 - 0.873423)
    logits = torch.tensor([[-2.0, -5.0, 0.0]], requires_grad=True)
    loss(logits, torch.tensor([0])).backward()
    close(logits.grad[0, :2], -7.389056, 0.0, tolerance=1e-5)  # -exp(2), the sigmoid's would be -0.88; none below -4
    gol, logits = make("gumbel", GUMBEL_DROPLOSS=True, EQL_THRESHOLD=0.01), LOGITS[:, :3].clone().requires_grad_()
    gol(logits, CLASSES).backward()
    assert logits.grad[:2, 2].tolist() == [0, 0]


# Recorded steps ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["eqlv2", "seesaw", "ecm", "gumbel", "sigmoid", "balanced_softmax"])
def test_recorded_steps(name, shared_dir):
    """Loss and gradient over six steps that share a state; the third has background alone."""
    data = np.load(shared_dir / "golden" / "methods.npz")
    counts = data["image_count"].tolist()
    key = {"sigmoid": "bce"}.get(name, name)
    loss = make(name, len(counts), IMAGE_COUNT=counts, INSTANCE_COUNT=counts, NUM_IMAGES=int(data["num_images"]))
    for step, classes in enumerate(torch.from_numpy(data["labels"])):
        logits = torch.from_numpy(data[f"{key}_logits"][step]).requires_grad_()
        found = loss(logits, classes)
        found.backward()
        assert found.item() == pytest.approx(data[f"{key}_loss"][step], rel=1e-5)
        expected = data[f"{key}_grad"][step]
        np.testing.assert_allclose(logits.grad, expected, rtol=1e-5, atol=1e-5 * np.abs(expected).max())


# Every loss -------------------------------------------------------------------------------------------------

ALL = pytest.mark.parametrize("name", [*LOSSES, "gol"])


def make_any(name: str, **changes: object) -> Loss:
    return make("gumbel", GUMBEL_DROPLOSS=True, **changes) if name == "gol" else make(name, **changes)


@ALL
def test_empty_and_background_only_steps(name):
    loss = make_any(name)
    for classes in ([], [3, 3], [], [0]):
        logits = logits_for(loss, len(classes)).requires_grad_()
        found = loss(logits, torch.tensor(classes, dtype=torch.int64))
        found.backward()
        assert found.isfinite() and found.item() >= 0 and logits.grad.isfinite().all()
        assert classes or found.item() == 0


@ALL
@pytest.mark.parametrize("scale", [1.0, 60.0])
def test_half_precision_computes_in_float32(name, scale):
    loss, half = make_any(name), make_any(name)
    logits = logits_for(loss, scale=scale).half()
    for seed in range(3):  # with the state of the steps before
        torch.manual_seed(seed)
        expected = loss(logits.float(), CLASSES)
        torch.manual_seed(seed)
        with torch.autocast("cpu", torch.bfloat16):
            found = half(logits, CLASSES)
        assert found.dtype == torch.float32 and found.isfinite() and torch.equal(found, expected)


@ALL
def test_gradients(name):
    loss = make_any(name, INSTANCE_COUNT=[40, 150, 6]).double()
    loss(logits_for(loss, seed=1).double().requires_grad_(), CLASSES)  # so that there is a state
    loss.eval()  # which then stays

    def once(logits: Tensor) -> Tensor:
        torch.manual_seed(0)
        return loss(logits, CLASSES)

    logits = logits_for(loss).double().requires_grad_()
    if name == "seesaw":  # its factors are constants to the gradient, but not to finite differences
        loss.q = 0.0
    assert torch.autograd.gradcheck(once, logits)


@ALL
def test_scores_are_shares_and_the_right_class_wins(name):
    loss = make_any(name)
    scores = loss.scores(logits_for(loss, 50, scale=3.0))
    assert scores.shape == (50, 4) and scores.min() >= 0 and scores.max() <= 1
    assert loss.scores(logits_for(loss, 0)).shape == (0, 4)
    logits = torch.zeros(40, loss.columns)
    logits.requires_grad_()
    optimizer, classes = torch.optim.SGD([logits], lr=20.0), torch.arange(40) % 4
    for step in range(60):
        torch.manual_seed(step)
        optimizer.zero_grad()
        loss(logits, classes).backward()
        optimizer.step()
    assert (loss.scores(logits).argmax(1) == classes).float().mean() > 0.9


@ALL
def test_the_state_continues_to_the_bit_and_only_training_changes_it(name):
    loss = make_any(name)
    loss(logits_for(loss), CLASSES)
    before = copy.deepcopy(loss.state_dict())
    assert set(before) <= {"gradients", "seen"}
    with torch.no_grad():
        loss(logits_for(loss), CLASSES)
    loss.eval()(logits_for(loss), CLASSES)
    assert all(torch.equal(loss.state_dict()[key], value) for key, value in before.items())
    resumed = make_any(name)
    resumed.load_state_dict(before)
    for step in range(3):
        found = []
        for one in (loss.train(), resumed):
            torch.manual_seed(step)
            found.append(one(logits_for(one, seed=step), CLASSES))
        assert torch.equal(*found)


def test_counts_that_are_missing_name_the_key():
    for name in ("federated", "eql", "droploss", "balanced_softmax", "ecm"):
        with pytest.raises(
            LossError, match=r"MODEL.RIO.IMAGE_COUNT: expected 3 numbers.*found 0. Fix: let the trainer"
        ):
            make(name, IMAGE_COUNT=[])
    with pytest.raises(LossError, match="INSTANCE_COUNT"):
        make("bags", INSTANCE_COUNT=[])
    for name in ("softmax", "sigmoid", "eqlv2", "seesaw"):
        make(name, IMAGE_COUNT=[], INSTANCE_COUNT=[], NUM_IMAGES=0)


def test_classes_without_images():
    for name in LOSSES:
        loss = make(name, IMAGE_COUNT=[0, 100, 0], INSTANCE_COUNT=[0, 150, 0])
        logits = logits_for(loss).requires_grad_()
        found = loss(logits, CLASSES)
        found.backward()
        assert found.isfinite() and logits.grad.isfinite().all() and math.isfinite(loss.initial_bias)


# Several processes ------------------------------------------------------------------------------------------


def _step(loss: Loss, step: int, rank: int, world: int) -> float:
    """A step on this rank's rows; step 1 has none on the last rank, step 2 background alone."""
    classes = torch.randint(0, 4, (24,), generator=torch.Generator().manual_seed(step))
    classes = torch.full_like(classes, 3) if step == 2 else classes
    return float(loss(logits_for(loss, 24, seed=step)[rank::world], classes[rank::world])) / world


def _drive(rank: int, world: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=world)
    found = {}
    for name in ("eqlv2", "seesaw"):
        loss = make(name)
        shares = torch.tensor([_step(loss, step, rank, world) for step in range(4)])
        dist.all_reduce(shares)
        found[name] = (shares, loss.state_dict())
    torch.save(found, f"{folder}/rank{rank}.pth")
    dist.destroy_process_group()


@pytest.mark.parametrize("world", [2, 4])
def test_processes_share_one_state(world, tmp_path):
    mp.start_processes(_drive, args=(world, str(tmp_path)), nprocs=world, start_method="fork")
    for name in ("eqlv2", "seesaw"):
        alone = make(name)
        losses = torch.tensor([_step(alone, step, 0, 1) for step in range(4)])
        for rank in range(world):
            shares, state = torch.load(tmp_path / f"rank{rank}.pth", weights_only=True)[name]
            torch.testing.assert_close(shares, losses, rtol=1e-5, atol=0)
            for key, value in alone.state_dict().items():
                torch.testing.assert_close(state[key], value, rtol=1e-7, atol=0)
