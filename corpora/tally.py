"""Counts of the tensors in a conversion: loaded, ignored, or newly initialised."""
from collections import Counter
from dataclasses import dataclass, field

import weights


@dataclass
class Tally:
    """The functions that convert fill it in; `str` gives the summary line."""
    loaded: int = 0
    ignored: list = field(default_factory=list)     # names in the files, dropped on purpose
    new: dict = field(default_factory=dict)         # our name -> number of parameters, newly initialised

    def __str__(self):
        ignored = f" ({weights.few(self.ignored, 2)})" if self.ignored else ""
        return f"loaded {self.loaded}, ignored {len(self.ignored)}{ignored}, newly initialised {len(self.new)}"

    def print_new(self, depth: int) -> None:
        """Print one line per newly initialised module, named by the first `depth` parts of its tensors' names."""
        modules = Counter()
        for name, parameters in self.new.items():
            modules[".".join(name.split(".")[:depth])] += parameters
        for name, parameters in modules.items():
            print(f"new  {name:<42}{parameters:>14,} parameters")
