"""Class feature pyramids on networks with branches, groups, shortcuts, hidden layers and attention."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models import get_model

from tests.conftest import order_one
from tests.test_pyramid import Plain, clip, wrap
from tubelens.methods.pyramid import Pyramid
from tubelens.methods.pyramid_graph import Dependency
from tubelens.target import Contrast, Logit


class Branched(nn.Module):
    """Depthwise and grouped kernels, a concatenation, a shortcut: weights set by hand."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv3d(3, 4, 1)
        self.depth = nn.Conv3d(4, 4, 1, groups=4)
        self.pair = nn.Conv3d(4, 2, 1, groups=2)
        self.other = nn.Conv3d(4, 2, 1)
        self.fc = nn.Linear(4, 2)
        with torch.no_grad():
            for p in self.parameters():
                p.fill_(1.0 if p.ndim > 1 else 0.0)
            self.pair.weight[:, :, 0, 0, 0] = torch.tensor([[1.0, 0.0], [0.0, 1.0]])  # 0 reads 0; 1 reads 3
            self.other.weight[:, :, 0, 0, 0] = torch.tensor([[0.0, 1, 0, 0], [0, 0, 1, 0]])
            self.fc.weight[0] = torch.tensor([1.0, 0, 0, 0])
            self.fc.weight[1] = torch.tensor([0.0, 0, 0, 1])

    def forward(self, x: Tensor) -> Tensor:
        y = self.depth(self.stem(x))
        z = torch.cat([self.pair(y), self.other(y)], 1)
        return self.fc((z + self.stem(x)).mean(dim=(2, 3, 4)))


def sets(found: Dependency) -> dict[str, list[int]]:
    return {step.layer: step.kernels.tolist() for step in found.steps}


def test_groups_depthwise_branches_and_shortcuts():
    model = wrap(Branched())
    first = sets(Pyramid(theta=0.65).graph(model, clip(), Logit(0)))
    assert first == {"fc": [0], "pair": [0], "depth": [0], "stem": [0], "stem (call 2)": [0]}
    second = sets(Pyramid(theta=0.65).graph(model, clip(), Logit(1)))
    assert second == {"fc": [1], "other": [1], "depth": [2], "stem": [2], "stem (call 2)": [3]}
    contrast = sets(Pyramid(theta=0.65).graph(model, clip(), Contrast(0, 1)))
    assert contrast["pair"] == [0]
    assert "other" not in contrast
    assert contrast["fc"] == [0, 1]
    group = Branched()
    with torch.no_grad():
        group.fc.weight[0] = torch.tensor([0.0, 1, 0, 0])
    assert sets(Pyramid(theta=0.65).graph(wrap(group), clip(), Logit(0)))["depth"] == [3]


def test_kernels_with_several_readers_have_the_best_chain():
    net = Branched()
    with torch.no_grad():
        net.fc.weight[0] = torch.tensor([1.0, 0, 0.9, 0])
        net.other.weight[0, :2, 0, 0, 0] = torch.tensor([0.35, 0.5])
    found = Pyramid(theta=0.65).graph(wrap(net), clip(), Logit(0))
    assert sets(found) == {
        **{"fc": [0], "pair": [0], "other": [0], "depth": [0, 1]},
        **{"stem": [0, 1], "stem (call 2)": [0, 2]},
    }
    # depth 0: from pair 0 (1 x 1), and from other 0 (less than 1 x 0.7)
    assert found.step("depth").strengths[0] == 1
    assert 0.65 < found.step("depth").strengths[1] == found.step("other").strengths[0] < 1


def test_scores_that_are_turned_round():
    class Turned(Branched):
        def forward(self, x: Tensor) -> Tensor:
            return -super().forward(x)

    plain, turned = Branched(), Turned()
    with torch.no_grad():
        turned.fc.weight.neg_()
    for target in (Logit(0), Logit(1), Contrast(1, 0)):
        one, two = (Pyramid().graph(wrap(net), clip(), target) for net in (plain, turned))
        assert sets(one) == sets(two)


def test_depth_counts_the_shortest_way():
    net = get_model("r3d_18", weights=None, num_classes=5)
    video = clip(4, 32)
    model = wrap(order_one(net, video.pixels[None]))
    found = Pyramid(depth=1).graph(model, video, Logit(2))
    last = {"layer4.1.conv2.0", "layer4.0.conv2.0", "layer4.0.downsample.0"}
    assert {step.layer for step in found.steps} == {"fc", *last}
    deeper = Pyramid(depth=2).graph(model, video, Logit(2))
    backs = {step.layer: step.back for step in deeper.steps}
    assert backs["layer4.1.conv1.0"] == backs["layer4.0.conv1.0"] == backs["layer3.1.conv2.0"] == 2
    assert max(backs.values()) == 2
    whole = Pyramid().graph(model, video, Logit(2))
    assert len(whole.steps) == 21
    for step in found.steps[1:]:
        more = whole.step(step.layer).kernels.tolist()  # by longer ways, too
        assert set(step.kernels.tolist()) <= set(more)
    # where branches join, both sides have the set, and the tube is what the next layer reads
    a, b = whole.step("layer2.0.conv2.0"), whole.step("layer2.0.downsample.0")
    assert a.kernels.tolist() == b.kernels.tolist()
    assert a.explanation is not None
    assert b.explanation is not None
    torch.testing.assert_close(a.explanation.grid, b.explanation.grid)
    kept: list[Tensor] = []
    net.layer2[1].register_forward_pre_hook(lambda m, i: kept.append(i[0][0].clone()))
    model(video.pixels[None])
    expected = torch.einsum("k,kthw->thw", a.strengths, kept[0][a.kernels])
    torch.testing.assert_close(a.explanation.grid, expected)
    assert a.explanation.parts[0].y == tuple(range(0, 32, 4))


def test_hidden_linear_layers_have_no_tube():
    class Deep(Plain):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 4))  # type: ignore[assignment]

    torch.manual_seed(0)
    found = Pyramid().graph(wrap(order_one(Deep(), clip().pixels[None])), clip(), Logit(0))
    assert [(step.layer, step.explanation is None) for step in found.steps] == [
        ("fc.2", True),
        ("fc.0", True),
        ("convs.2", False),
        ("convs.1", False),
        ("convs.0", False),
    ]


def test_notes_where_channels_cannot_be_told_apart():
    class Attending(Plain):
        def forward(self, x: Tensor) -> Tensor:
            x = F.relu(self.convs[1](F.relu(self.convs[0](x))))
            rows = x.flatten(2)
            mixed = (rows @ rows.transpose(1, 2)).softmax(-1) @ rows
            x = F.relu(self.convs[2](mixed.view_as(x)))
            return self.fc(x.mean(dim=(2, 3, 4)))

    torch.manual_seed(0)
    found = Pyramid().graph(wrap(order_one(Attending(), clip().pixels[None])), clip(), Logit(0))
    assert len(found.notes) == 1
    assert "convs.1 cannot be told apart" in found.notes[0]
    assert found.step("convs.1").kernels.tolist() == list(range(7))
    assert found.explanation.provenance.notes == found.notes
