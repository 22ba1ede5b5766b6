"""How long to train: the mean baseline, its steps doubled until they move it less than a point."""

from dataclasses import replace

from vreid_course import study
from vreid_course.scales import scale
from vreid_course.studies import compare, ground

ROWS = [{"method": "mean", "steps": steps, "seed": 0} for steps in (100, 200, 400, 800)]


def measure(row: dict) -> dict:
    """mAP on the validation people, and on the test people beside it."""
    at = replace(ground.footing(scale()), steps=row["steps"])
    model = compare.trained(row["method"], "common", at, row["seed"])
    found = study.summary(compare.searched(row["method"], "common", model, at, "validation"))
    test = compare.searched(row["method"], "common", model, at).mAP
    return found | {"test mAP": f"{100 * test:.2f}", "scale": at.name}
