"""Altered versions of a clip: batches do not matter, and queues keep their order."""

import pytest
import torch

from tubelens.clip import Clip
from tubelens.errors import OptionError
from tubelens.fill import Black, Mean
from tubelens.masks import Grids, Ranks, ranking
from tubelens.model import BlackBox
from tubelens.running import Run
from tubelens.scoring import score_masked, score_variants
from tubelens.target import Prob
from tubelens.variants import Chain, Made, Masked

SIZE = (4, 6, 6)


@pytest.fixture
def clip() -> Clip:
    frames = torch.rand(*SIZE, 3, generator=torch.Generator().manual_seed(0))
    return Clip.from_array(frames.numpy())


def family(clip: Clip) -> Chain:
    ranks = ranking(torch.rand(*SIZE, generator=torch.Generator().manual_seed(1)))
    return Chain(
        [
            Masked(Grids(5, SIZE, (2, 2, 2), 0.5, seed=3), Mean()),
            Made([lambda x: x.flip(1), lambda x: x[:, :1].expand_as(x)]),
            Masked(Ranks(ranks, (0, 7, 144)), Black()),
        ]
    )


def test_a_queue_is_its_families_one_after_the_other(clip: Clip):
    pixels, queue = clip.pixels, family(clip)
    parts = [part.over(pixels)(0, len(part))[0] for part in queue.families]
    assert len(queue) == 10
    assert torch.equal(queue.over(pixels)(0, 10)[0], torch.cat(parts))
    assert torch.equal(parts[1][0], pixels.flip(1))
    assert torch.equal(parts[1][1][:, 3], pixels[:, 0])
    assert torch.equal(parts[2][2], pixels)


@pytest.mark.parametrize("batch", [1, 3, 4, 10])
def test_batches_change_nothing(clip: Clip, batch: int):
    make = family(clip).over(clip.pixels)
    pieces = [make(i, min(i + batch, 10))[0] for i in range(0, 10, batch)]
    assert torch.equal(torch.cat(pieces), make(0, 10)[0])


def test_scored_as_one_queue(clip: Clip):
    seen: list[torch.Tensor] = []

    def score(clips: torch.Tensor) -> torch.Tensor:
        seen.append(clips)
        p = clips.mean(dim=(1, 2, 3, 4))
        return torch.stack([p, 1 - p], dim=1)

    queue = family(clip)
    scored = score_variants(BlackBox(score, output="probs"), clip, queue, [Prob(0)], Run(batch=4))
    values = torch.cat([part.values for part in scored], dim=1)[0]
    torch.testing.assert_close(values, queue.over(clip.pixels)(0, 10)[0].mean(dim=(1, 2, 3, 4)))
    assert torch.equal(seen[0][0], clip.pixels)
    assert scored.forwards == 11 == sum(map(len, seen))
    assert float(scored.intact) == pytest.approx(float(clip.pixels.mean()), rel=1e-6)


def test_masks_come_along_where_masks_made_the_versions(clip: Clip):
    masks = Grids(6, SIZE, (2, 2, 2), 0.5, seed=3)
    box = BlackBox(lambda clips: clips.mean(dim=(2, 3, 4)), output="probs")
    part = next(iter(score_masked(box, clip, masks, Mean(), [Prob(0)], Run(batch=6))))
    assert torch.equal(part.masks, masks.batch(0, 6))
    assert len(next(iter(score_variants(box, clip, family(clip), [Prob(0)]))).masks) == 0


def test_masks_of_another_size_are_refused(clip: Clip):
    masks = Grids(6, (4, 6, 7), (2, 2, 2), 0.5)
    with pytest.raises(OptionError, match="4x6x7 do not fit a clip of 4x6x6"):
        Masked(masks, Mean()).over(clip.pixels)


def test_steady_runs_take_batches_of_eight(clip: Clip):
    sizes: list[int] = []

    def score(clips: torch.Tensor) -> torch.Tensor:
        sizes.append(len(clips))
        return clips.mean(dim=(2, 3, 4))

    masks = Grids(20, SIZE, (2, 2, 2), 0.5)
    box = BlackBox(score, output="probs")
    list(score_masked(box, clip, masks, Mean(), [Prob(0)], Run(steady=True)))
    assert sizes == [1, 8, 8, 4]
