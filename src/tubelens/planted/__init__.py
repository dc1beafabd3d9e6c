"""The synthetic benchmark: short actions whose evidence is known voxel by voxel.

    clip = generate(seed=7)                      # pixels, truth, distractor, label
    clip.without_truth().pixels                  # the same clip, the deciding object never drawn
    generate(7, "order").known()                 # the truth as the localisation metrics take it

Eight tasks (`BENCHMARK`). What decides is: `key`, the shape of one object; `dir`, the direction of the one
red object; `order`, which of two events comes first; `transient`, the colour of what is there in two frames;
`infrared`, a direction that only the fourth band shows; `xor`, whether a visible cue and an infrared one
agree; `shortcut`, a direction for one network and the colour of a mark for the other; `spectra`, a direction
that visible light shows as well as infrared. In all of them other objects move at least as fast and decide
nothing.
"""

from tubelens.planted.actions import LABELS
from tubelens.planted.generator import BENCHMARK, TASKS, PlantedClip, Task, batch, generate, labels

__all__ = ["BENCHMARK", "LABELS", "TASKS", "PlantedClip", "Task", "batch", "generate", "labels"]
