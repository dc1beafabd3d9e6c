"""Models x methods x metrics over a data set, into a run that can be continued; and reports of runs."""

from tubelens.evaluate.items import Item, Manifest
from tubelens.evaluate.job import Network
from tubelens.evaluate.manifest import read_manifest
from tubelens.evaluate.run import evaluate
from tubelens.evaluate.summary import Evaluation, Fault, Line

__all__ = ["Evaluation", "Fault", "Item", "Line", "Manifest", "Network", "evaluate", "read_manifest"]
