"""The networks of the planted benchmark by name: from the package, or trained once and kept.

    model = planted_model("order")            # weights of the package
    model = planted_model("order", seed=1)    # trained the first time (a minute or two), kept for the next

`key` and `dir` are the bundled network. `honest` and `shortcut` look at the same clips. `labels` learned
random labels by heart.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from importlib.resources import as_file, files
from pathlib import Path

from tubelens.errors import CheckpointError, OptionError, nearest
from tubelens.evaluate.lessons import BUNDLED, RECIPES, Settings, names
from tubelens.evaluate.train import packing, train_planted, untrained
from tubelens.model import InputSpec, TorchModel
from tubelens.planted import TASKS, Task
from tubelens.planted.generator import KINDS
from tubelens.zoo.bundled import bundled
from tubelens.zoo.checkpoint import fit, read_checkpoint

TASK_OF: dict[str, Task] = {task: task for task in TASKS}
TASK_OF.update({name: recipe.task for name, recipe in RECIPES.items() if recipe.task is not None})
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
    task, known = task_of(name), BUNDLED if name in TASKS else name
    recipe = settings or RECIPES[known]
    if recipe.network != known:
        raise OptionError(f"these are settings for network {recipe.network!r}, not for {known!r}")
    if seed == 0 and not retrain and settings is None:
        if known == BUNDLED:
            return bundled()
        with as_file(files("tubelens.zoo").joinpath(f"planted_{name}.safetensors")) as shipped:
            return _read(shipped, name, task, recipe, "bundled")
    path = cached(name, cache, seed, recipe)
    if not retrain and path.is_file():
        try:
            return _read(path, name, task, recipe, str(path))
        except CheckpointError:
            pass  # cut short, or written by another version: the same training gives it again
    train_planted(path, seed, recipe, fresh, report)
    return _read(path, name, task, recipe, str(path))


def cached(
    name: str, cache: str | os.PathLike[str] | None = None, seed: int = 0, settings: Settings | None = None
) -> Path:
    """The file that a trained network is kept in, whether or not it is there; arguments as above."""
    network = BUNDLED if name in TASKS else name
    digest = hashlib.sha256(repr(settings or RECIPES[network]).encode()).hexdigest()[:8]
    base = os.environ.get("TUBELENS_CACHE") or Path.home() / ".cache" / "tubelens"
    return Path(cache or Path(base) / "planted") / f"{network}-{seed}-{digest}.safetensors"


def _read(path: Path, name: str, task: Task, settings: Settings, weights: str) -> TorchModel:
    """A trained network from its file.

    Raises:
        CheckpointError: a file that is missing, unreadable, or of another network.
    """
    if settings.network == BUNDLED:
        return bundled(path)
    net = untrained(settings, 0)
    fit(net, read_checkpoint(path), str(path), f"planted-{name}")
    kind = KINDS[task]
    return TorchModel(
        module=net.eval().requires_grad_(False),
        pack=packing(len(kind.bands)),
        spec=InputSpec(frames=16, size=(kind.size, kind.size), resize=kind.size, bands=kind.bands),
        labels=names(settings),
        layer="blocks",
        name=f"planted-{name}",
        weights=weights,
    )
