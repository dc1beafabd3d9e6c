"""The synthetic benchmark: short actions whose evidence is known voxel by voxel.

    clip = generate(seed=7)              # pixels, truth, distractor, label
    clip.without_truth().pixels          # the same clip, the deciding object never drawn

Eight classes in two tasks. `key`: the shape of one object decides. `dir`: the direction of the one red object
decides. In both, other objects move at least as fast and decide nothing.
"""

from tubelens.planted.generator import LABELS, TASKS, PlantedClip, Task, batch, generate

__all__ = ["LABELS", "TASKS", "PlantedClip", "Task", "batch", "generate"]
