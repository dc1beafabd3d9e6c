"""The networks of the planted benchmark by name: from the package, or trained once and kept.

    model = planted_model("order")            # weights of the package, as load_model("planted_order")
    model = planted_model("order", seed=1)    # trained the first time (a minute or two), kept for the next

`key` and `dir` are the bundled network. `honest` and `shortcut` look at the same clips. `labels` learned
random labels by heart.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from pathlib import Path

from tubelens import zoo
from tubelens.errors import CheckpointError, OptionError, nearest
from tubelens.evaluate.lessons import BUNDLED, RECIPES, Settings
from tubelens.evaluate.train import train_planted
from tubelens.model import TorchModel
from tubelens.planted import BENCHMARK, TASKS, Task
from tubelens.zoo.planted_names import PREFIX

TASK_OF: dict[str, Task] = {task: task for task in TASKS}
TASK_OF.update({name: recipe.task for name, recipe in RECIPES.items() if recipe.task is not None})
LABELS = "labels"
NAMES: tuple[str, ...] = tuple(TASK_OF)
"""What `planted_model` knows: a network a task, of which `shortcut` has two (`honest` and `shortcut`), and
`labels`."""


def task_of(name: str) -> Task:
    """The task whose clips a network takes.

    Raises:
        OptionError: no network of that name.
    """
    if name not in NAMES:
        raise OptionError(
            f"no planted network {name!r}: one of {', '.join(NAMES)}{nearest(str(name), NAMES)}"
        )
    return TASK_OF[name]


def planted_model(
    name: str,
    cache: str | os.PathLike[str] | None = None,
    seed: int = 0,
    retrain: bool = False,
    report: Callable[[int, float], None] | None = None,
    settings: Settings | None = None,
    fresh: int = 200,
) -> TorchModel:
    """A network of the planted benchmark; frozen, in inference mode.

    Those of seed 0 are in the package. All others are trained when they are first asked for, and kept in a
    folder, each in a file of its name, seed and settings; a file that cannot be read is trained again.

    Args:
        name: one of `NAMES`.
        cache: the folder; None: `planted` in `$TUBELENS_CACHE`, or in `~/.cache/tubelens`.
        seed: of weights and training clips.
        retrain: train even where the weights are there already.
        report: called with the step and its loss after each step of training, if there is any.
        settings: of the training, in place of those of `RECIPES`.
        fresh: clips that a trained network's accuracy is measured on, for its file.

    Raises:
        OptionError: no network of that name, or settings for another.
        OutputError: the trained weights could not be written.
    """
    task_of(name)
    known = BUNDLED if name in TASKS else name
    recipe = settings or RECIPES[known]
    if recipe.network != known:
        raise OptionError(f"these are settings for network {recipe.network!r}, not for {known!r}")
    zoo_name = BUNDLED if known == BUNDLED else PREFIX + name
    if seed == 0 and not retrain and settings is None:
        return _loaded(zoo_name)
    path = cached(name, cache, seed, recipe)
    if not retrain and path.is_file():
        try:
            return _loaded(zoo_name, path)
        except CheckpointError:
            pass  # cut short, or written by another version: the same training gives it again
    train_planted(path, seed, recipe, fresh, report)
    return _loaded(zoo_name, path)


def cached(
    name: str, cache: str | os.PathLike[str] | None = None, seed: int = 0, settings: Settings | None = None
) -> Path:
    """The file that a trained network is kept in, whether or not it is there; arguments as above."""
    network = BUNDLED if name in TASKS else name
    digest = hashlib.sha256(repr(settings or RECIPES[network]).encode()).hexdigest()[:8]
    base = os.environ.get("TUBELENS_CACHE") or Path.home() / ".cache" / "tubelens"
    return Path(cache or Path(base) / "planted") / f"{network}-{seed}-{digest}.safetensors"


def own_networks(manifest: object) -> tuple[str, ...]:
    """What `load_model` calls the networks that learned the clips of a data set: the bundled one, but for
    `planted:TASK` of another task.

    Raises:
        OptionError: no network in the package learned that task.
    """
    written = str(manifest) if isinstance(manifest, str) else ""
    task = written.removeprefix("planted:").partition("?")[0]
    if not written.startswith("planted:") or task in TASKS or task not in BENCHMARK:
        return (BUNDLED,)
    found = tuple(PREFIX + name for name in NAMES if TASK_OF[name] == task and name != LABELS)
    if not found:
        raise OptionError(f"planted:{task}: no network in the package learned it: name one (model)")
    return found


def _loaded(name: str, path: Path | None = None) -> TorchModel:
    """The network of that name, from a file or from the package.

    Raises:
        CheckpointError: a file that is missing, unreadable, or of another network.
    """
    model = zoo.load(name, path)
    model.module.requires_grad_(False)
    return model
