"""Every method trained for two steps by one process or by two; `test_processes` compares them.

python in_processes.py FOLDER, or the same by torchrun. One process does what two do together: the
loss of each half of a batch, and their mean.
"""

import pickle
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from accelerate import PartialState
from torch import Tensor, nn

from vreid_course import devices, lessons, study
from vreid_course.data.mars import Mars
from vreid_course.loader import FrameStore
from vreid_course.nets import resnet
from vreid_course.scales import SCALES, scale
from vreid_course.studies import compare

METHODS = [name for name in compare.METHODS if name != "one picture"]
AT = replace(scale("smoke"), height=64, P=4, K=2, T=2, weights=None)


class Halves:
    """A loss, of the two halves of a batch one after the other."""

    def __init__(self, loss) -> None:
        self.loss, self.steps = loss, 0

    def __call__(self, model: nn.Module, batch: dict[str, Tensor]) -> tuple[Tensor, dict]:
        totals = []
        for i in range(2):
            torch.manual_seed(1000 * self.steps + i)  # as `train` does in each process
            half = {key: x[i * len(x) // 2 :][: len(x) // 2] for key, x in batch.items()}
            totals.append(self.loss(model, half)[0])
        self.steps += 1
        return torch.stack(totals).mean(), {}


def trained(name: str, split) -> nn.Module:
    """A method after two steps by plain SGD."""
    torch.manual_seed(0)
    method = compare.METHODS[name]
    model, loss = compare.new_model(method, 4, AT), compare.loss_of(method, "paper")
    sgd = lambda model: torch.optim.SGD(model.parameters(), 1e-2)  # noqa: E731
    recipe = replace(lessons.load("01_baseline").recipe(AT), steps=2, optimiser=sgd)
    study.fit(model, loss if devices.processes() == 2 else Halves(loss), recipe, split, AT, 0)
    return model


def scored(split) -> list[np.ndarray]:
    """Lesson 06's scores of all frames, which processes share."""
    torch.manual_seed(0)
    return lessons.load("06_vrstc").score_split(resnet("course"), FrameStore(split, AT.size))


def completed(mars: Mars, out: Path) -> list[str]:
    """The files of a changed copy of a set, which processes write together."""
    vrstc = lessons.load("06_vrstc")
    flags = {
        split.folder.name: [np.arange(3 * n).reshape(n, 3) == 4 for n in split.lengths]
        for split in (mars.train, mars.test)
    }
    done = vrstc.write_version(mars, out, vrstc.dropped(flags))
    return sorted(str(path.relative_to(done.root)) for path in done.root.rglob("*.jpg"))


def main(folder: Path) -> None:
    SCALES["smoke"] = AT  # what lessons ask for their sizes
    mars = pickle.loads((folder / "mars").read_bytes())
    name = f"{devices.processes()}_{PartialState().process_index}"
    found = {m: trained(m, mars.train) for m in METHODS}
    tables = {m: model.state_dict() for m, model in found.items()}
    weights = {m: dict(model.named_parameters()) for m, model in found.items()}
    extra = scored(mars.train), completed(mars, folder / f"version_{devices.processes()}")
    torch.save((tables["Snippet"], weights, *extra), folder / f"{name}.pt")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
