"""The papers' controlled differences beside ours: `data/results/contrasts.csv`, and the score.

A published contrast is a difference between two systems that differ in one thing (`PUBLISHED`, 44
rows). Ours is the same difference on the proving ground. It agrees or disagrees if its interval
leaves out zero and all seeds have its sign; else it cannot be told. Where a gain was published and
the oracle of its gate gains too little, there is no room, and nothing is concluded.
"""

import csv
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy.stats import spearmanr

from vreid_course import study
from vreid_course.metrics import bootstrap
from vreid_course.studies import compare, gltr

PUBLISHED = Path(__file__).parents[2] / "data" / "published_contrasts.csv"


@dataclass(frozen=True)
class Ours:
    """Where our difference comes from: rows of a study's table, and the gate it rests on.

    of, minus: the columns that rows must have, such as {"method": "mean"}; column: of the APs;
    other: the study of the rows `minus`, "" for the same. Study "gates": the gate itself is the
    difference. Gate "": what the claim rests on is not in the clips of this study, so it has no
    room for a gain; a loss can be seen.
    """

    study: str
    of: dict[str, str]
    minus: dict[str, str]
    gate: str
    column: str = "ap"
    other: str = ""


def _compared(of: str, minus: str, gate: str) -> Ours:
    return Ours("compare", compare.chosen(of), compare.chosen(minus), gate)


def _cosam(name: str, minus: str) -> Ours:
    return Ours("02_cosam", {"network": name}, compare.chosen(minus), MASK, other="compare")


def _heads(of: str, minus: str, column: str = "ap") -> Ours:
    """Two heads of lesson 03, each at its chosen rate."""
    sides = ({"test": "people", "head": name, "rate": f"{gltr.HEADS[name]:g}"}
             for name in (of, minus))  # fmt: skip
    return Ours("03_gltr", *sides, VISIBLE, column)


MASK, VISIBLE = "true mask, trained with", "weights by true visibility"
ONE_FRAME = "tracklet minus one frame as query"
NO_ORDER = ""  # four frames spread over a tracklet show no cadence: nothing to gain by order
T_2 = {"network": "COSAM4,5, T=2"}
#: Filled from the tables that stand; each lesson's study adds its own.
OURS = {
    "g1": _compared("mean", "one picture", ONE_FRAME),
    "g2": _compared("attention", "mean", VISIBLE),
    "g3": _compared("LSTM", "mean", NO_ORDER),
    "g4": _compared("C3D", "mean", NO_ORDER),
    "c1": _cosam("COSAM2", "mean"),
    "c2": _cosam("COSAM3", "mean"),
    "c3": _cosam("COSAM4", "mean"),
    "c4": _cosam("COSAM5", "mean"),
    "c5": _compared("COSAM", "mean", MASK),
    "c6": _cosam("COSAM4,5, attention", "attention"),
    "c7": _cosam("COSAM4,5, LSTM", "LSTM"),
    "c8": Ours("compare", compare.chosen("COSAM"), T_2, MASK, other="02_cosam"),
    "c9": _cosam("COSAM4,5, T=8", "COSAM"),
    "l1": _heads("DTP", "mean"),
    "l2": _heads("TSA", "mean"),
    "l3": _heads("GLTR", "DTP"),
    "l4": _heads("GLTR", "TSA"),
    "l5": _heads("GLTR", "GLTR, undilated", "hit"),
    "t1": Ours("gates", {}, {}, ONE_FRAME),
    "r1": _compared("LSTM", "mean", NO_ORDER),
    "r2": _compared("M3D", "P3D", NO_ORDER),
    "r3": _compared("P3D", "C3D", NO_ORDER),
}


def published() -> list[dict[str, str]]:
    """The papers' differences, one row each."""
    with PUBLISHED.open(encoding="utf-8", newline="") as stream:
        return list(csv.DictReader(stream))


def table() -> list[dict[str, str]]:
    """All published rows with ours beside them; "not measured" where no table has them yet."""
    found = {"queries": next(r for r in study.read("compare") if r["test"] == "queries")}
    people = np.array(found["queries"]["person"].split(), int)
    gates = {r["gate"]: r for r in study.read("gates") if r["network"] == "trained"}
    return [row | _ours(OURS.get(row["id"]), float(row["difference"]), people, gates)
            for row in published()]  # fmt: skip


def _ours(ours: Ours | None, published: float, people: np.ndarray, gates: dict) -> dict[str, str]:
    found = _difference(ours, people, gates) if ours else None
    if not found:
        return dict.fromkeys(("ours", "low", "high", "smallest", "seeds"), "") | {
            "verdict": "not measured", "gate": ours.gate if ours else "", "study": ""}  # fmt: skip
    mean, low, high, each = found
    verdict = verdict_of(mean, low, high, each, published)
    closed = not ours.gate or gates[ours.gate]["verdict"] == "fails"
    if published > 0 and closed:
        verdict = "no room"
    return {
        "ours": f"{mean:.2f}", "low": f"{low:.2f}", "high": f"{high:.2f}",
        "smallest": f"{2.8 * (high - low) / 3.92:.2f}",
        "seeds": " ".join(f"{x:+.2f}" for x in each), "verdict": verdict,
        "gate": ours.gate, "study": ours.study,
    }  # fmt: skip


def _difference(ours: Ours, people: np.ndarray, gates: dict) -> tuple | None:
    """Mean, low and high of our difference and that of each seed, in points; None: no rows yet."""
    if ours.study == "gates":
        row = gates[ours.gate]
        values = (float(row[column]) for column in ("difference", "low", "high"))
        return *values, np.array(row["seeds"].split(), float)
    of, minus = _aps(ours)
    if not (seeds := sorted(of.keys() & minus.keys())):
        return None
    a, b = (np.stack([side[seed] for seed in seeds]) for side in (of, minus))
    mean, low, high = (100 * x for x in bootstrap(a.mean(0), b.mean(0), people=people))
    return mean, low, high, 100 * (np.nanmean(a, 1) - np.nanmean(b, 1))


def _aps(ours: Ours) -> list[dict[str, np.ndarray]]:
    """Of both sides, the APs of every query by seed."""
    sides = (ours.study, ours.of), (ours.other or ours.study, ours.minus)
    return [{r["seed"]: study.aps([r], ours.column)[0] for r in study.read(name)
             if side.items() <= r.items() and r[ours.column]}
            for name, side in sides]  # fmt: skip


def verdict_of(mean: float, low: float, high: float, each: np.ndarray, published: float) -> str:
    """Ours against the published difference, all in points; each: of every seed."""
    if low <= 0 <= high or len(set(np.sign(each))) > 1:
        return "cannot be told"
    return "agrees" if mean * published > 0 else "disagrees"


def score(rows: list[dict[str, str]]) -> str:
    """How many are decided, how many of them agree, and the rank correlation of the differences."""
    ours = [r for r in rows if r["ours"] and r["verdict"] != "no room"]
    told = [r for r in ours if r["verdict"] in ("agrees", "disagrees")]
    agree = sum(r["verdict"] == "agrees" for r in told)
    text = f"{len(rows)} published differences, {len(ours)} measured with room: "
    text += f"{len(told)} decided, {agree} of them as published, {len(told) - agree} not"
    if len(ours) > 2:
        pairs = np.array([(float(r["ours"]), float(r["difference"])) for r in ours])
        text += f"; rank correlation {spearmanr(*pairs.T).statistic:+.2f}"
    return text


def write() -> Path:
    """Write `data/results/contrasts.csv` anew from the tables; prints the score."""
    path, rows = study.RESULTS / "contrasts.csv", table()
    with path.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.DictWriter(stream, [*rows[0]], lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    for row in [row for row in rows if row["ours"]]:
        sides = f"{row['id']:4}{row['what is compared']:30} - {row['with']:30}"
        found = f"{row['ours']:>6} ({row['low']} to {row['high']}): {row['verdict']}"
        print(sides, f"{float(row['difference']):+5.1f}", found)
    print(score(rows))
    return path
