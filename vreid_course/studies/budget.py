"""How long to train, and how fast what is new may learn: chosen on the validation people.

Steps: those of the mean baseline, doubled until its mAP moves less than a point. Rates: the same
three for every method, one seed, half of the steps, the common loss.
"""

from dataclasses import replace

import numpy as np

from vreid_course import study
from vreid_course.scales import scale
from vreid_course.studies import compare, ground

STEPS = (100, 200, 400, 800)
RATES = (3e-4, 1e-3, 3e-3)
ROWS = [{"question": "steps", "method": "mean", "steps": s, "rate": 3e-3} for s in STEPS]
ROWS += [{"question": "rate", "method": name, "steps": ground.STEPS // 2, "rate": rate}
         for name in compare.METHODS for rate in RATES]  # fmt: skip


def measure(row: dict) -> dict:
    """mAP on the validation people."""
    at = replace(ground.footing(scale()), steps=row["steps"])
    model = compare.trained(row["method"], "common", at, seed=0, rate=row["rate"])
    found = compare.searched(row["method"], "common", model, at, "validation")
    return study.summary(found) | {"scale": at.name}


def rates(rows: list[dict]) -> dict[str, float]:
    """The rate of each method: that of its best row."""
    best: dict[str, tuple[float, float]] = {}
    for row in rows:
        if row["question"] == "rate" and row.get("mAP"):
            value = float(row["mAP"]), float(row["rate"])
            best[row["method"]] = max(best.get(row["method"], (-np.inf, 0)), value)
    return {name: rate for name, (_, rate) in best.items()}
