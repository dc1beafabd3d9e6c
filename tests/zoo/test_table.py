"""Every known network: parameters and names as counted by others on the authors' own code."""

from __future__ import annotations

import importlib.util

import pytest
import torch

from tubelens import zoo

K400, K700 = 400, 700
# name -> classes, parameters, entries of the state dict; one row for each number of classes
TABLE: list[tuple[str, int, int, int]] = [
    ("r3d_18", K400, 33_371_472, 122),
    ("mc3_18", K400, 11_695_440, 122),
    ("r2plus1d_18", K400, 31_505_325, 224),
    ("s3d", K400, 8_320_048, 464),
    ("mvit_v1_b", K400, 36_610_672, 313),
    ("mvit_v2_s", K400, 34_537_744, 397),
    ("swin3d_t", K400, 28_158_070, 185),
    ("swin3d_s", K400, 49_816_678, 353),
    ("swin3d_b", K400, 88_048_984, 353),
    ("mfnet3d", 400, 7_996_368, 421),
    ("mfnet3d", 101, 7_766_437, 421),
    ("mfnet3d", 51, 7_727_987, 421),
    ("hara2018_resnet18", K400, 33_235_280, 104),
    ("hara2018_resnet34", K400, 63_544_912, 200),
    ("hara2018_resnet50", K400, 47_018_576, 320),
    ("hara2018_resnet101", K400, 86_064_720, 626),
    ("hara2018_resnet152", K400, 118_223_440, 932),
    ("hara2020_resnet18", K700, 33_563_004, 122),
    ("hara2020_resnet34", K700, 63_872_636, 218),
    ("hara2020_resnet50", K700, 47_633_276, 320),
    ("hara2020_resnet101", K700, 86_679_420, 626),
    ("hara2020_resnet152", K700, 118_838_140, 932),
    ("hara2018_densenet121", K400, 11_696_528, 727),
    ("hara2020_densenet121", K700, 12_004_028, 727),
    ("i3d_rgb", 400, 12_697_264, 344),
    ("i3d_flow", 400, 12_675_312, 344),
    ("i3d_rgb", 157, 12_448_189, 344),
    ("c3d", 487, 79_991_015, 22),
    ("c3d", 101, 78_409_573, 22),
    ("tsm_r50", 400, 24_327_632, 320),
    ("pan_lite_r50", 174, 23_875_542, 324),
    ("pan_rgb_r50", 174, 23_864_950, 322),
    ("pan_pa_r50", 174, 23_866_134, 324),
    ("pan_lite_r101", 174, 42_867_670, 630),
    ("pan_rgb_r101", 174, 42_857_078, 628),
    ("pan_pa_r101", 174, 42_858_262, 630),
]
EXTRA: list[tuple[str, int, int]] = [  # of libraries
    ("slow_r50", 400, 32_454_096),
    ("c2d_r50", 400, 24_327_632),
    ("i3d_r50", 400, 28_043_472),
    ("slowfast_r50", 400, 34_566_488),
    ("slowfast_r101", 400, 62_826_968),
    ("x3d_xs", 400, 3_794_274),
    ("x3d_s", 400, 3_794_274),
    ("x3d_m", 400, 3_794_274),
    ("x3d_l", 400, 6_153_384),
    ("csn_r101", 400, 22_213_776),
    ("r2plus1d_r50", 400, 28_107_600),
    ("mvit_base_16x4", 400, 36_610_672),
    ("mvit_base_32x3", 400, 36_611_440),
    ("videomae", 400, 86_534_800),
    ("timesformer", 400, 121_566_352),
    ("vivit", 400, 88_954_000),
]


@pytest.mark.parametrize(("name", "classes", "parameters", "entries"), TABLE)
def test_parameters_and_names_are_as_many_as_published(
    name: str, classes: int, parameters: int, entries: int
):
    recipe = zoo.MODELS[name]
    with torch.device("meta"):
        net = recipe.build(classes)
    assert sum(p.numel() for p in net.parameters()) == parameters
    state = net.state_dict()
    assert len(state) == entries
    assert state[recipe.head].shape[0] == classes
    if classes == recipe.classes:
        assert recipe.parameters == parameters


@pytest.mark.parametrize(("name", "classes", "parameters"), EXTRA)
def test_networks_of_libraries_have_the_published_number_of_parameters(
    name: str, classes: int, parameters: int
):
    recipe = zoo.MODELS[name]
    package = {"pytorchvideo": "pytorchvideo", "hf": "transformers"}[recipe.extra or ""]
    if importlib.util.find_spec(package) is None:
        pytest.skip(f"{package} is not installed")
    with torch.device("cpu" if name.startswith("mvit") else "meta"):  # whose building computes numbers
        net = recipe.build(classes)
    assert sum(p.numel() for p in net.parameters()) == parameters
    assert net.state_dict()[recipe.head].shape[0] == classes
    assert recipe.parameters == parameters


def test_every_recipe_says_what_it_is():
    for name, recipe in zoo.MODELS.items():
        assert recipe.name == name
        assert recipe.source, name
        assert recipe.tubes, name
        assert recipe.licence or recipe.extra or name == "bundled", name
