"""The synthetic benchmark, the bundled network, and the claim that tubes find planted evidence."""

from __future__ import annotations

from collections import defaultdict
from functools import cache

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from tubelens.errors import CheckpointError, OptionError
from tubelens.evaluate.train import FIRST_SEED, Settings, top1, train_planted
from tubelens.methods.tubes import Tubes
from tubelens.metrics.localisation import (
    average_precision,
    centre_prior,
    distractor_mass,
    energy_in_tube,
    frame_difference,
    pointing,
    random_order,
)
from tubelens.model import TorchModel
from tubelens.planted import LABELS, PlantedClip, batch, generate
from tubelens.planted.shapes import OUTLINES, REACH, SHAPES
from tubelens.target import Logit
from tubelens.zoo.bundled import LABELS as NETWORK_LABELS
from tubelens.zoo.bundled import PlantedNet, bundled, identify, initialised

KEY, DIR = range(4), range(4, 8)


@cache
def network() -> TorchModel:
    return bundled()


# ── the generator ────────────────────────────────────────────────────────────────────────────────────────


def same(a: PlantedClip, b: PlantedClip) -> bool:
    tensors = [(a.pixels, b.pixels), (a.truth, b.truth), (a.distractor, b.distractor)]
    return all(torch.equal(x, y) for x, y in tensors) and (a.label, a.task) == (b.label, b.task)


def test_a_clip_is_determined_by_its_seed() -> None:
    torch.manual_seed(0)
    np.random.seed(0)  # noqa: NPY002  (global state that must not matter)
    one = generate(11)
    torch.manual_seed(5)
    np.random.seed(5)  # noqa: NPY002
    assert same(one, generate(11))
    assert not torch.equal(one.pixels, generate(12).pixels)
    # asking for what was drawn changes nothing
    assert same(one, generate(11, task=one.task, label=one.label))


def test_shapes_and_ranges() -> None:
    clip = generate(3, frames=10, size=48)
    assert clip.pixels.shape == (3, 10, 48, 48)
    assert clip.pixels.dtype == torch.float32
    assert 0 <= float(clip.pixels.min()) < float(clip.pixels.max()) <= 1
    assert clip.truth.shape == clip.distractor.shape == (10, 48, 48)
    assert clip.clip().size == (10, 48, 48)
    assert torch.equal(clip.clip().pixels, clip.pixels)
    assert clip.name == LABELS[clip.label]


def test_tasks_and_labels_are_drawn_evenly_and_obeyed() -> None:
    labels = [generate(seed, frames=2, size=16).label for seed in range(400)]
    counts = np.bincount(labels, minlength=8)
    assert counts.min() > 25  # 50 expected, deviation 6.6
    assert {generate(s, task="key", frames=2, size=16).label for s in range(40)} == set(KEY)
    assert {generate(s, task="dir", frames=2, size=16).label for s in range(40)} == set(DIR)
    assert [generate(7, label=k).task for k in range(8)] == ["key"] * 4 + ["dir"] * 4


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"label": 8}, "label 8 is out of range"),
        ({"label": 1, "task": "dir"}, r"label 1 \(cross\) is of task 'key'"),
        ({"size": 8}, "size >= 16"),
        ({"frames": 1}, "frames >= 2"),
    ],
)
def test_options_that_mean_nothing(options: dict[str, object], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        generate(0, **options)


def test_masks_are_where_painting_changes_pixels() -> None:
    for label in range(8):
        for seed in range(2):
            clip = generate(seed, label=label)
            changed = (clip.pixels - clip.without_truth().pixels).abs().amax(dim=0) > 1e-6
            # painted inside its outline, or within two pixels of it (antialiased tips)
            near = torch.nn.functional.max_pool2d(clip.truth.float(), 5, stride=1, padding=2) > 0
            assert not (changed & ~near).any()
            # a ring leaves a quarter of its outline open, bars a third; everything else fills it
            filled = float((changed & clip.truth).sum() / clip.truth.sum())
            expected = {"ring": 0.75, "bars": 0.67}.get(clip.name, 1.0)
            assert filled == pytest.approx(expected, abs=0.15 if expected < 1 else 0.03)
            changed = (clip.pixels - clip.without_distractors().pixels).abs().amax(dim=0) > 1e-6
            assert (changed & clip.distractor).sum() >= 0.97 * clip.distractor.sum()
            assert not (clip.truth & clip.distractor).any()
            # the masks stay those of the complete scene
            assert torch.equal(clip.without_truth().without_distractors().truth, clip.truth)


def test_removing_both_leaves_the_ground_in_either_order() -> None:
    clip = generate(4)
    ground = clip.without_truth().without_distractors()
    assert torch.equal(ground.pixels, clip.without_distractors().without_truth().pixels)
    assert not torch.equal(ground.pixels, clip.without_truth().pixels)


@pytest.mark.parametrize("labels", [KEY, DIR])
def test_one_seed_with_other_labels_differs_in_the_deciding_object_alone(labels: range) -> None:
    clips = [generate(8, label=k) for k in labels]
    for other in clips[1:]:
        assert torch.equal(other.without_truth().pixels, clips[0].without_truth().pixels)
        assert not torch.equal(other.truth, clips[0].truth)


def test_the_truth_takes_two_to_five_percent_whatever_the_class() -> None:
    share = {k: np.mean([generate(s, label=k).truth.float().mean() for s in range(25)]) for k in range(8)}
    assert 0.02 < min(share.values()) < max(share.values()) < 0.05
    assert max(share.values()) < 1.15 * min(share.values())


def test_outlines_have_the_area_of_the_unit_disc_and_stay_within_reach() -> None:
    axis = np.linspace(-2, 2, 801)
    u, v = np.meshgrid(axis, axis)
    for name, outline in OUTLINES.items():
        inside = outline(u, v) < 0
        assert inside.sum() * (axis[1] - axis[0]) ** 2 == pytest.approx(np.pi, rel=0.01), name
        assert np.hypot(u, v)[inside].max() < REACH, name
        # nothing is painted outside, and what is left open is the ring's hole and the bars' gap
        painted = SHAPES[name](u, v) < 0
        assert not (painted & ~inside).any(), name
        share = {"ring": 3 / 4, "bars": 2 / 3}.get(name, 1.0)
        assert painted.sum() / inside.sum() == pytest.approx(share, abs=0.01), name


def centre_path(mask: torch.Tensor) -> np.ndarray:
    """Mean (y, x) of a mask on the frames where it lies wholly inside."""
    inner = mask.clone()
    inner[:, 1:-1, 1:-1] = False
    frames = [t for t in range(len(mask)) if mask[t].any() and not inner[t].any()]
    return np.array([mask[t].nonzero().double().mean(dim=0).numpy() for t in frames])


def test_direction_labels_say_where_the_red_object_goes() -> None:
    towards = {4: (0, -1), 5: (0, 1), 6: (-1, 0), 7: (1, 0)}
    for label, way in towards.items():
        for seed in range(6):
            clip = generate(seed, label=label)
            path = centre_path(clip.truth)
            if len(path) < 3:
                continue
            step = (path[-1] - path[0]) / np.linalg.norm(path[-1] - path[0])
            assert step @ np.array(way) > np.cos(0.4)
            red, green, blue = clip.pixels[:, clip.truth].mean(dim=1).tolist()
            assert red > max(green, blue) + 0.2


def test_places_do_not_tell_the_class() -> None:
    where = {k: torch.zeros(2) for k in DIR}
    n = 150
    for seed in range(n):
        clips = [generate(seed, label=k, size=32) for k in DIR]
        for k, clip in zip(DIR, clips, strict=True):
            where[k] += clip.truth.nonzero().float().mean(dim=0)[1:] / n
    # a uniform middle has deviation 32 * .9 / sqrt(12) / sqrt(n) = .7
    for place in where.values():
        torch.testing.assert_close(place, torch.full((2,), 15.5), atol=2.5, rtol=0)


def test_distractors_are_at_least_as_fast_as_the_evidence() -> None:
    """Frame difference must not win: on distractors there is at least as much of it, voxel for voxel."""
    on_truth, on_distractor = [], []
    for seed in range(60):
        clip = generate(seed)
        change = frame_difference(clip.pixels, sigma=0.0)
        on_truth.append(float(change[clip.truth].mean()))
        on_distractor.append(float(change[clip.distractor].mean()))
    assert np.mean(on_distractor) > np.mean(on_truth)


# ── the network ──────────────────────────────────────────────────────────────────────────────────────────


def test_the_network_knows_the_labels_and_fits_in_the_package() -> None:
    assert tuple(NETWORK_LABELS) == tuple(LABELS)
    model = network()
    assert model.labels == LABELS
    assert (model.name, model.weights, model.spec.frames, model.spec.size) == (
        "bundled",
        "bundled",
        16,
        (64, 64),
    )
    assert not model.module.training
    assert sum(v.numel() * v.element_size() for v in model.module.state_dict().values()) < 2e6


def test_the_network_is_right_on_fresh_clips_of_both_tasks() -> None:
    right: dict[str, list[bool]] = defaultdict(list)
    for start in range(0, 400, 50):
        seeds = range(700_000 + start, 700_050 + start)
        assert seeds[-1] < FIRST_SEED
        pixels, labels = batch(seeds)
        for label, guess in zip(labels.tolist(), network()(pixels).argmax(dim=1).tolist(), strict=True):
            right["key" if label in KEY else "dir"].append(label == guess)
    assert np.mean(right["key"] + right["dir"]) >= 0.98
    assert min(np.mean(right["key"]), np.mean(right["dir"])) >= 0.97


def test_random_weights_are_seeded_and_spare_the_global_generator() -> None:
    torch.manual_seed(1)
    before = torch.get_rng_state()
    a, b, c = (bundled("random", seed=s) for s in (0, 0, 1))
    assert torch.equal(torch.get_rng_state(), before)
    pixels, _ = batch([1, 2])
    assert torch.equal(a(pixels), b(pixels))
    assert not torch.allclose(a(pixels), c(pixels))
    assert not torch.allclose(a(pixels), network()(pixels))


def test_weights_that_cannot_be_used(tmp_path) -> None:
    with pytest.raises(CheckpointError, match="no such weights file"):
        bundled(str(tmp_path / "none.safetensors"))
    (tmp_path / "broken.safetensors").write_bytes(b"not weights")
    with pytest.raises(CheckpointError, match=r"broken\.safetensors"):
        bundled(str(tmp_path / "broken.safetensors"))
    save_file(PlantedNet(classes=5).state_dict(), tmp_path / "other.safetensors")
    with pytest.raises(CheckpointError, match=r"other\.safetensors"):
        bundled(str(tmp_path / "other.safetensors"))
    assert identify(str(tmp_path / "other.safetensors")) is None


def test_training_writes_what_it_measured_and_repeats_itself(tmp_path) -> None:
    few = Settings(steps=4, short=0.5, brief=(8, 2), whole=(4, 16))
    runs = [train_planted(tmp_path / f"{i}.safetensors", 3, few, fresh=20) for i in range(2)]
    pixels, labels = batch(range(20))
    for run in runs:
        model = bundled(str(run.path))
        assert run.accuracy == float((model(pixels).argmax(dim=1) == labels).double().mean())
        assert identify(str(run.path)) == LABELS
    one, two = (bundled(str(run.path))(pixels) for run in runs)
    torch.testing.assert_close(one, two)
    assert not torch.allclose(one, bundled("random", seed=3)(pixels))  # something was learned
    assert top1(initialised(0), range(20)) <= 0.5


# ── planted evidence ─────────────────────────────────────────────────────────────────────────────────────

N = 206


@cache
def localisation() -> dict[str, dict[str, np.ndarray]]:
    """Task -> map -> (clips, scores): AP, energy, pointing, distractor mass on fresh clips it gets right."""
    rows: dict[str, dict[str, list[tuple[float, ...]]]] = {t: defaultdict(list) for t in ("key", "dir")}
    for seed in range(900_000, 900_000 + N):
        planted = generate(seed)
        clip = planted.clip()
        (why,) = Tubes()(network(), clip, [Logit(planted.label)])
        if why.provenance.predicted[0][0] != planted.name:
            continue
        maps = {
            "tubes": why.upsample(),
            "endpoints": why.upsample(align="endpoints"),
            "random": random_order(clip.size, seed),
            "centre": centre_prior(clip.size),
            "difference": frame_difference(clip.pixels),
        }
        for name, saliency in maps.items():
            rows[planted.task][name].append(
                (
                    average_precision(saliency, planted.truth),
                    energy_in_tube(saliency, planted.truth),
                    pointing(saliency, planted.truth),
                    distractor_mass(saliency, planted.distractor),
                )
            )
    return {task: {name: np.array(values) for name, values in maps.items()} for task, maps in rows.items()}


@pytest.mark.parametrize("task", ["key", "dir"])
def test_tubes_find_the_planted_evidence_and_trivial_maps_do_not(task: str) -> None:
    scores = {name: values.mean(axis=0) for name, values in localisation()[task].items()}
    assert sum(len(maps["tubes"]) for maps in localisation().values()) >= 200
    ap, energy, point, distractor = scores["tubes"]
    assert ap >= 0.5
    assert point >= 0.8
    for trivial in ("random", "centre", "difference"):
        assert ap > 2 * scores[trivial][0]
        assert energy > scores[trivial][1]
        assert point > scores[trivial][2]
    assert distractor < energy
    assert scores["random"][0] == pytest.approx(0.03, abs=0.015)
    assert scores["centre"][0] < 0.1


def test_cells_drawn_where_they_look_beat_the_endpoint_zoom() -> None:
    """By little, because at stride 4 the zoom is at most 1.5 pixels off: so paired, and over both tasks."""
    gains = {task: maps["tubes"][:, 0] - maps["endpoints"][:, 0] for task, maps in localisation().items()}
    assert min(gain.mean() for gain in gains.values()) > 0
    both = np.concatenate(list(gains.values()))
    assert both.mean() > 3 * both.std() / np.sqrt(len(both))


def test_tubes_of_random_weights_find_nothing() -> None:
    """The score is the training's doing, not the architecture's."""
    model, found, trained = bundled("random"), [], []
    for seed in range(900_000, 900_030):
        planted = generate(seed)
        for net, scores in ((model, found), (network(), trained)):
            (why,) = Tubes()(net, planted.clip(), [Logit(planted.label)])
            scores.append(average_precision(why.upsample(), planted.truth))
    assert np.mean(found) < 0.5 * np.mean(trained)


@pytest.mark.parametrize("task", ["key", "dir"])
def test_the_planted_evidence_decides(task) -> None:
    """Removing the truth costs half of the probability or more; removing the distractors next to nothing.

    On most clips: where it does not, the network was not sure of the whole clip to begin with.
    """
    scenes = [generate(seed, task) for seed in range(950_000, 950_080)]
    p = []
    for variant in (lambda c: c, PlantedClip.without_truth, PlantedClip.without_distractors):
        scores = network()(torch.stack([variant(c).pixels for c in scenes])).softmax(dim=1)
        p.append(scores[range(len(scenes)), [c.label for c in scenes]].numpy())
    assert np.mean(p[0] - p[1] >= 0.5) >= 0.8
    assert np.median(p[0] - p[1]) >= 0.75
    assert np.mean(np.abs(p[0] - p[2]) <= 0.05) >= 0.7
    assert abs(np.median(p[0] - p[2])) <= 0.03
