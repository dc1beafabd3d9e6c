"""`tubelens explain --bands`: what each band of the clip brought to the score, beside the maps."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tubelens.accounts import Ledger
from tubelens.api import Many
from tubelens.cli.options import numbered
from tubelens.cli.results import Shown
from tubelens.cli.show import note, print_table, progress
from tubelens.clip import Clip
from tubelens.errors import OptionError
from tubelens.explanation import Explanation
from tubelens.ledger import Terms, ledgers
from tubelens.model import Model
from tubelens.running import Precision, Run
from tubelens.video import source_name


@dataclass
class Weighing:
    """The ledgers of a run: one for every network, video and target, with the tubes of all methods.

    Attributes:
        terms: how they are made; None: nobody asked, and nothing is done.
        of: the ledger that an explanation's tubes are in.
        written: files of each ledger that was written, with the video and the network it is of.
    """

    terms: Terms | None
    of: dict[Explanation, Ledger] = field(default_factory=dict)
    written: list[tuple[str, Ledger, list[Path]]] = field(default_factory=list)

    @classmethod
    def asked(cls, bands: bool, groups: str, sampling: str | None, seed: int) -> Weighing:
        """What the options ask for.

        Raises:
            OptionError: groups without bands, or a sampling that gives several clips.
        """
        if not bands:
            if groups:
                raise OptionError(f"--groups {groups} says how --bands are weighed: give --bands too")
            return cls(None)
        if sampling in ("windows", "views"):
            raise OptionError(
                f"--bands weighs the bands of one clip, and {sampling} are several: leave one of the two out"
            )
        return cls(Terms(groups=groups, seed=seed))

    def most(self, clip: Clip | Many, maps: int) -> int:
        """Forwards that the ledgers of so many maps will take at most.

        Raises:
            OptionError: the clip has a single band, or other bands than the groups.
        """
        return self.terms.most(clip, maps) if self.terms is not None and isinstance(clip, Clip) else 0

    def weigh(
        self,
        model: Model,
        clip: Clip | Many,
        rows: Sequence[Sequence[Explanation]],
        batch: int | None,
        precision: Precision,
        what: str,
    ) -> None:
        """Make the ledgers of one clip, a ledger a target, all from one queue of forwards.

        Args:
            model: the network.
            clip: what it saw.
            rows: its maps, a row a method and a column a target.
            batch: of the run.
            precision: likewise.
            what: the clip's name.
        """
        if self.terms is None or not isinstance(clip, Clip):
            return
        columns = list(zip(*rows, strict=True))
        with progress(f"weighing the bands of {what}") as tick:
            found = ledgers(model, clip, columns, self.terms, Run(batch, precision, tick))
        for column, ledger in zip(columns, found, strict=True):
            self.of |= dict.fromkeys(column, ledger)
        told = {line for row in rows for e in row for line in e.provenance.notes}
        for line in dict.fromkeys(line for ledger in found for line in ledger.notes if line not in told):
            note(line)

    def write(self, every: Sequence[Shown], video: str, path_of: Callable[[list[Shown]], Path]) -> None:
        """A figure and all numbers of each ledger, beside what is drawn of its maps.

        Args:
            every: maps of one video.
            video: its name.
            path_of: where a picture of some maps goes.
        """
        groups: dict[int, list[Shown]] = {}
        for shown in every if self.terms is not None else ():
            groups.setdefault(id(self.of[shown.explanation]), []).append(shown)
        paths = [path_of(group) for group in groups.values()]
        for group, path, stem in zip(groups.values(), paths, numbered([p.stem for p in paths]), strict=True):
            ledger = self.of[group[0].explanation]
            files = [ledger.save(path.with_name(f"{stem}_bands{suffix}")) for suffix in (".png", ".json")]
            self.written.append((video, ledger, files))

    def told(self, explanation: Explanation) -> dict[str, Any]:
        """The ledger that its tubes are in, ready for JSON, as `bands`; nothing where nobody asked."""
        if self.terms is None:
            return {}
        ledger = self.of[explanation]
        files = next(files for _, written, files in self.written if written is ledger)
        return {"bands": ledger.to_json() | {"out": [str(path) for path in files]}}

    def report(self) -> None:
        """A table a region on standard output, and where the files are."""
        for video, ledger, files in self.written:
            print(f"{source_name(video)}: bands of {ledger.title} · {ledger.made}")
            for region in ledger.regions:
                print_table(f"{ledger.where(region)}: {ledger.said(region)}", *ledger.table(region))
            print("\n".join([*map(str, files), ""]))
