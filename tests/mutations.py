"""Faults to plant in the course, and which fast tests should see them.

    python tests/mutations.py            plants each in a copy and lists those that nobody sees
    python tests/mutations.py triplet    only those whose name or file has this word in it

A mutation is (file, what stands there, what is put in its place, tests that should fail). What
stands there must stand there once; `test_style` sees to it, so that the list stays true.
"""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

ROOT = Path(__file__).parents[1]
COPIED = ("vreid_course", "notebooks", "tests", "pyproject.toml")
COMMITTED = ("weights", "results", "published_contrasts.csv")


class Mutation(NamedTuple):
    """One fault; file: without folder a notebook or a module, tests: the file that sees it."""

    file: str
    old: str
    new: str
    tests: str


MUTATIONS = [
    Mutation(*fault)
    for fault in (
        # found by a review of the first edition, which the fast tests passed
        ("loader.py", "(0.485, 0.456, 0.406)", "(0.406, 0.456, 0.485)", "seams"),
        ("loader.py", "(0.229, 0.224, 0.225)", "(0.225, 0.224, 0.229)", "seams"),
        ("loader.py", "default_rng((self.seed, step, place))", "default_rng((self.seed, place))",
         "seams"),
        ("nets.py", "return self.neck(self.pool(features[None]))[0]",
         "return self.pool(features[None])[0]", "seams"),
        ("nets.py", "return features, self.classifier(self.neck(features))",
         "return self.neck(features), self.classifier(self.neck(features))", "seams"),
        ("02_cosam", "nn.functional.normalize(model.neck(feature))",
         "nn.functional.normalize(feature)", "seams"),
        ("study.py", "rows, recipe.transform, seed, workers", "rows, recipe.transform, 0, workers",
         "seams"),
        ("study.py", "rows, recipe.transform, seed, workers", "rows, augment, seed, workers",
         "seams"),
        ("study.py", "recipe.test_sampler, recipe.transform)",
         "recipe.train_sampler, recipe.transform)", "seams"),
        ("study.py", "return evaluate(*part, merge_queries=merge_queries)",
         "return evaluate(*part, merge_queries=True)", "seams"),
        ("01_baseline", "return cross_entropy + triplet, parts", "return cross_entropy, parts",
         "seams"),
        ("01_baseline", '"lr": 3e-4}', '"lr": 3e-3}', "seams"),
        ("04_tkp", "image_labels = labels.repeat_interleave(i.shape[1])",
         "image_labels = labels.repeat(i.shape[1])", "seams"),
        ("04_tkp", "return np.zeros(1, np.int64)", "return np.full(1, length - 1)", "seams"),
        ("05_attributes", "shares(confidence(p, model.sigma))", "shares(confidence(p))", "seams"),
        ("06_vrstc", "F.softplus(-judge(real)).mean() + F.softplus(judge(fake.detach())).mean()",
         "F.softplus(judge(real)).mean() + F.softplus(-judge(fake.detach())).mean()", "seams"),
        ("backbone.py", "pose = torch.where(flip[:, None], pose * mirror, pose)", "pose = pose",
         "seams"),
        # devices and processes
        ("devices.py", "including_emulation=False", "including_emulation=True", "device"),
        ("devices.py", "p.dim() in layouts", "p.dim() == 4", "device"),
        ("training.py", "        model.to(home)\n", "        pass\n", "device"),
        ("training.py", "[here.process_index :: here.num_processes]",
         "[: len(store.split) - 1]", "training"),
        ("study.py", "range(1, P // self.people + 1)", "range(1, P + 1)", "seams"),
        ("losses.py", "terms.masked_fill(~usable, torch.nan)", "terms", "device"),
        ("06_vrstc", 'return load_weights(STCnet(), "stcnet").to(devices.device())',
         'return load_weights(STCnet(), "stcnet")', "device"),
        # checkpoints
        ("training.py", "file.truncate(end)", "pass", "training"),
        ("training.py", "self.optimiser.load_state_dict(state[\"optimiser\"])", "pass", "training"),
        ("training.py", "> save_seconds:", "< save_seconds:", "training"),
        ("training.py", 'not math.isfinite(values["loss"])', 'math.isinf(values["loss"])',
         "training"),
        # the rest
        ("study.py", "    torch.manual_seed(seed)\n    return lesson.build",
         "    return lesson.build", "seams"),
        ("__main__.py", '        model.load_state_dict(state["model"])\n    except',
         "        pass\n    except", "seams"),
        ("scales.py", "if imagenet_on_disk(\"resnet50\"):", "if False:", "seams"),
        ("losses.py", "hardest_negative + margin)", "hardest_negative + 0.3)", "losses"),
        ("nets.py", "frames.split(chunk)", "frames[: len(frames) // chunk * chunk].split(chunk)",
         "nets"),
        ("non_local.py", "return x + self.change(x)", "return self.change(x)", "non_local"),
        ("non_local.py", "scale=1.0", "scale=None", "non_local"),
        ("sampling.py", "else room // 2)", "else 0 * room)", "sampling"),
        ("03_gltr", "key.to(exact)).softmax(dim=2)", "key.to(exact)).softmax(dim=1)", "gltr"),
        ("04_tkp", "(f.detach() if stop else f).flatten", "f.flatten", "tkp"),
        ("05_attributes", "total = identity + model.share *", "total = identity + 1.0 *",
         "attributes_lesson"),
        ("06_vrstc", "[clean[i] - 8, clean[i] + 9]", "[clean[i] - 80, clean[i] + 9]", "vrstc"),
        ("07_related", "same, 1.0, 3 * same.sum()", "same, 1.0, same.sum()", "related"),
        ("07_related", "triplet(x, labels, 0.4) for x", "triplet(x, labels) for x", "related"),
        ("render.py", "rest = rest - at.w_w * (first * first)", "rest = rest - at.w_w * first",
         "mini_mars"),
        # what is drawn anew, the proving ground, the films of lesson 09, the search
        ("mini_mars.py", "| config.dials, change).draw", "| config.dials, Change()).draw",
         "mini_mars"),
        ("ground.py", "mars.train.select(~mine)", "mars.train.select(mine)", "ground"),
        ("ground.py", "[part::CLIPS]", "[part * frames :][:frames]", "ground"),
        ("film.py", "near[int(shared.argmax())][0] + 1", "near[0][0] + 1", "prototype"),
        ("film.py", "return left + xs.min(), top + ys.min()", "return left, top", "prototype"),
        ("devices.py", "capable() >= (7, 0)", "capable() >= (6, 0)", "device"),
        ("answers.py", "(split.camids != split.camids[q]) & good", "good", "answers"),
    )
]  # fmt: skip


def where(mutation: Mutation, root: Path = ROOT) -> Path:
    """The file that a mutation is in."""
    if not mutation.file.endswith(".py"):
        return root / "notebooks" / f"{mutation.file}.ipynb"
    path = root / "vreid_course" / mutation.file
    return path if path.exists() else next((root / "vreid_course").rglob(mutation.file))


def written(mutation: Mutation, text: str) -> str:
    """Text as it stands in the mutation's file: in a notebook as JSON, line by line."""
    return text if mutation.file.endswith(".py") else json.dumps(text, ensure_ascii=False)[1:-1]


def count(mutation: Mutation, root: Path = ROOT) -> int:
    """How often the text that is to be replaced stands in its file."""
    return where(mutation, root).read_text("utf-8").count(written(mutation, mutation.old))


def fails(tests: str, mutation: Mutation | None = None) -> bool:
    """Whether tests fail in a copy of the course, with a mutation planted in it or none."""
    with TemporaryDirectory() as folder:
        root = Path(folder)
        for name in COPIED:
            copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
            copy(ROOT / name, root / name)
        (root / "data").mkdir()
        for name in COMMITTED:
            (root / "data" / name).symlink_to(ROOT / "data" / name)
        if mutation:
            path = where(mutation, root)
            text = path.read_text("utf-8")
            old, new = (written(mutation, x) for x in (mutation.old, mutation.new))
            path.write_text(text.replace(old, new), "utf-8")
        command = [sys.executable, "-m", "pytest", "-q", "-x", "-m", "not slow"]
        command += ["-p", "no:cacheprovider", "--rootdir", folder, f"tests/test_{tests}.py"]
        environment = os.environ | {"PYTHONPATH": folder}
        done = subprocess.run(command, cwd=folder, env=environment, capture_output=True)
        return done.returncode == 1  # 0: they pass; anything else: they could not run


def main(word: str = "") -> int:
    """Plant what has the word in it; returns how many nobody saw."""
    chosen = [m for m in MUTATIONS if word in f"{m.file} {m.old} {m.new} {m.tests}"]
    missed = 0
    for tests in sorted({m.tests for m in chosen}):
        if fails(tests):
            raise SystemExit(f"test_{tests}.py fails without a fault: mend that first")
    for number, mutation in enumerate(chosen, 1):
        found = fails(mutation.tests, mutation)
        missed += not found
        what = f"{mutation.file}: {mutation.old.strip()!r} -> {mutation.new.strip()!r}"
        print(f"{number} of {len(chosen)} {'seen' if found else 'SURVIVES'}  {what}", flush=True)
    print(f"{missed} of {len(chosen)} survive")
    return missed


if __name__ == "__main__":
    sys.exit(bool(main(*sys.argv[1:2])))
