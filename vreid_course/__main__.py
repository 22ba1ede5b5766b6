"""The command line: python -m vreid_course COMMAND ..."""

import argparse
import hashlib
import os
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import numpy as np
import torch
from torch import nn

from vreid_course import answers, classroom, devices, lessons, study
from vreid_course.command import Parser, at_least, finite, path
from vreid_course.data.known import same_set
from vreid_course.data.mars import NO_QUERIES, MarsError, read_mars
from vreid_course.files import cache_path, one_line, writable
from vreid_course.nets import resnet
from vreid_course.scales import course_data, scale
from vreid_course.studies import backbone, contrasts
from vreid_course.training import load_checkpoint

EPILOG = """examples
  python -m vreid_course train 01_baseline            train on mini-MARS (or on VREID_DATA)
  python -m vreid_course evaluate 01_baseline         test what was trained
  python -m vreid_course study 01_baseline            the lesson's table, row by row
  python -m vreid_course search data/street --out answers    from camera to camera: table, pages
  python -m vreid_course bench 01_baseline            parameters, operations, milliseconds
  python -m vreid_course release class                assignments for students, without solutions
  python -m vreid_course grade class                  grade class/submitted/STUDENT/LESSON/*.ipynb
  python -m vreid_course.data --help                  draw, check and convert data sets
  VREID_DATA=/data/MARS VREID_SCALE=paper torchrun --nproc_per_node 4 -m vreid_course train 02_cosam
                                                      full MARS on four GPUs

VREID_SCALE (smoke, mini, gpu, paper) chooses sizes; VREID_DATA names a set in MARS layout. What is
measured at scale mini on mini-MARS goes into the tables of data/results, all else into data/runs.
Everything can be stopped and goes on where it stopped when called again."""

CURE = "name another with VREID_CACHE, or with --folder where there is one"


def main(arguments: list[str] | None = None) -> int:
    """Run one command; returns the exit status. Expected errors are one line on stderr."""
    options = _parser().parse_args(arguments)
    try:
        options.run(options)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except torch.OutOfMemoryError as error:
        cure = "stop what else uses the GPU, or set VREID_SCALE=mini"
        print(f"error: {one_line(error)}: {cure}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("stopped; the same command goes on from the last checkpoint or row", file=sys.stderr)
        return 130
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        "python -m vreid_course", description="Train, test and compare the methods of the course.",
        epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    _lesson_commands(commands)
    _search_command(commands)
    _class_commands(commands)
    command = commands.add_parser("contrasts", help="the papers' differences beside ours, a score")
    command.set_defaults(run=lambda options: print(contrasts.write()))
    command = commands.add_parser("backbone", help="make data/weights/KIND_backbone.pt again")
    command.add_argument("kind", nargs="?", default="identity", choices=("identity", "course"))
    command.set_defaults(run=lambda options: print(backbone.make(options.kind)))
    return parser


def _lesson_commands(commands: argparse._SubParsersAction) -> None:
    for name, run, text in (
        ("train", _train, "train a lesson's network"),
        ("evaluate", _evaluate, "test a trained network: mAP and rank-k"),
        ("study", _study, "measure the rows of a lesson's table that are still missing"),
        ("bench", _bench, "measure a lesson's network: parameters, operations, milliseconds"),
        ("make", _make, "run a lesson's other stages: what its `make` prepares"),
    ):
        command = commands.add_parser(name, help=text, description=text)
        command.add_argument("lesson", help="such as 01_baseline: a notebook's name")
        command.set_defaults(run=run)
        if name in ("train", "evaluate"):
            command.add_argument("--seed", type=at_least(0), default=0)
            command.add_argument("--folder", type=path, help="of the checkpoint (default: runs/)")
            text = "replace frames that cannot be read by the one before, and count them"
            command.add_argument("--skip-bad", action="store_true", help=text)
        if name == "study":
            text = "rows at a time (default: 2, GPU: 1)"
            command.add_argument("--jobs", type=at_least(1), help=text)
        if name == "train":
            command.add_argument("--steps", type=at_least(1), help="default: those of the recipe")
            text = "processes that load data"
            command.add_argument("--workers", type=at_least(0), default=0, help=text)
            command.add_argument("--minutes", type=finite(0), default=5, help="between checkpoints")


def _search_command(commands: argparse._SubParsersAction) -> None:
    text = "look for the people of each camera in all the others: table, pages, points"
    command = commands.add_parser("search", help=text, description=text)
    command.set_defaults(run=_search)
    command.add_argument("set", type=path, help="in MARS layout, such as `data from-video` makes")
    command.add_argument("--out", type=path, required=True, help="new folder for the answers")
    command.add_argument("--camera", type=at_least(1), help="ask in this camera only")
    command.add_argument("--top", type=at_least(1), default=8, help="answers to a query (8)")
    text = "of a training (a folder with last.pt); default: the backbone of the scale, untrained"
    command.add_argument("--folder", type=path, help=text)
    command.add_argument("--lesson", help="whose network that is, such as 01_baseline")


def _class_commands(commands: argparse._SubParsersAction) -> None:
    for name, run, text in (
        ("release", _release, "write the student's edition of the lessons (nbgrader)"),
        ("grade", _grade, "run and grade what lies in FOLDER/submitted; writes grades.csv"),
    ):
        command = commands.add_parser(name, help=text, description=text)
        command.add_argument("folder", type=path, help="of the class; see notebooks/README.md")
        command.set_defaults(run=run)
        if name == "release":
            command.add_argument("--lessons", nargs="+", help="such as 01_baseline; default: all")


def _place(name: str) -> Path:
    """A folder for results, another one for each scale and each set, also of the same name."""
    data, where = os.environ.get("VREID_DATA"), scale().name
    if data:
        root = Path(data).expanduser().resolve()
        where += f"_{root.name}_{hashlib.sha256(os.fsencode(root)).hexdigest()[:8]}"
    return cache_path() / "runs" / f"{name}_{where}"


def _run_folder(options: argparse.Namespace) -> Path:
    return options.folder or _place(f"{options.lesson}_{options.seed}")


def _load(name: str):
    """A lesson; one that exports nothing, such as the tour, as an empty module."""
    try:
        return lessons.load(name)
    except ImportError as error:
        if "shares nothing" not in str(error):
            raise
        return ModuleType(name)


def _lesson(name: str):
    """A lesson with a network."""
    lesson = _load(name)
    if missing := [x for x in ("build", "loss", "embed", "recipe") if not hasattr(lesson, x)]:
        others = [other for other in lessons.names() if other[:2] not in ("00", "08")]
        fault = f"{name}: this lesson trains nothing, it exports no `{missing[0]}`"
        raise ValueError(f"{fault}: name one of {', '.join(others)}")
    return lesson


def _train(options: argparse.Namespace) -> None:
    at, lesson = scale(), _lesson(options.lesson)
    mars = course_data(at)
    split = mars.train
    model = study.new_model(lesson, split, at, options.seed)
    if (people := len(np.unique(split.pids))) < at.P:
        print(f"P={at.P} people a batch are more than the set has: P={people} (scales.py)")
        at = replace(at, P=people)
    recipe = lesson.recipe(at)
    if options.steps:
        recipe = replace(recipe, steps=options.steps)
    folder = writable(_run_folder(options), CURE)
    same_set(folder, mars)
    if (folder / "last.pt").exists():
        print(f"going on from {folder / 'last.pt'}; to start again, delete it")
    numbers = ", ".join(map(str, recipe.fitting(split)))
    print(f"numbers of processes that can share its batches: {numbers}")
    more = folder, options.workers, 60 * options.minutes, options.skip_bad
    study.fit(model, lesson.loss, recipe, split, at, options.seed, *more)
    print(f"trained {recipe.steps} steps: {folder / 'last.pt'}")


def _evaluate(options: argparse.Namespace) -> None:
    at, lesson = scale(), _lesson(options.lesson)
    mars, file = course_data(at), _run_folder(options) / "last.pt"
    if not len(mars.query):
        raise MarsError(f"{mars.root / 'info' / 'query_IDX.mat'}: {NO_QUERIES}")
    same_set(file.parent, mars, write=False)
    new = study.new_model(lesson, mars.train, at, options.seed)
    model, recipe = _trained(options.lesson, file, lambda _: new), lesson.recipe(at)
    more = lesson.embed, recipe, mars.test, at, options.skip_bad
    print(study.search(study.extract_features(model, *more), mars))


def _trained(name: str, file: Path, build: Callable[[dict], nn.Module]) -> nn.Module:
    """The network that build(weights) makes, with the weights of a checkpoint of lesson `name`."""
    if not file.is_file():
        raise FileNotFoundError(f"{file}: nothing trained yet: run `train {name}` first")
    state = load_checkpoint(file)
    try:
        model = build(state["model"])
        model.load_state_dict(state["model"])
    except (KeyError, TypeError, AttributeError, RuntimeError):
        fault = f"of another lesson than {name}, other data or another scale"
        raise ValueError(f"{file}: {fault}: train again, or name another folder") from None
    return model


def _study(options: argparse.Namespace) -> None:
    try:
        rows, measure = study.find(options.lesson)
    except ImportError as error:
        raise ValueError(f"{options.lesson} has no study ({error})") from None
    committed = scale().name == "mini" and not os.environ.get("VREID_DATA")
    place = study.RESULTS if committed else writable(_place("study"), CURE)
    if os.environ.get("VREID_DATA"):
        same_set(place, course_data(scale()))
    alone = devices.device().type != "cpu"
    jobs = options.jobs or (1 if alone else min(2, os.cpu_count() or 1))
    print(study.run(options.lesson, rows, measure, place, jobs))


def _make(options: argparse.Namespace) -> None:
    lesson = _load(options.lesson)
    if not hasattr(lesson, "make"):
        raise ValueError(f"{options.lesson} has nothing to make: its notebook exports no `make`")
    print(lesson.make())


def _release(options: argparse.Namespace) -> None:
    for edition in classroom.release(options.folder, options.lessons):
        print(edition)


def _grade(options: argparse.Namespace) -> None:
    print(classroom.grade(options.folder))


def _search(options: argparse.Namespace) -> None:
    at, mars, out = scale(), read_mars(options.set), options.out
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ValueError(f"{out}: is there already: name a new folder with --out")
    if bool(options.lesson) != bool(options.folder):
        raise ValueError("--lesson and --folder: name both, or none")
    answers.askers(mars, options.camera)  # before the features, which can take hours
    answers.places(mars)
    model, how = resnet(at.backbone, at.weights), ()
    if options.lesson:
        lesson, trunk = _lesson(options.lesson), model

        def build(state: dict) -> nn.Module:
            sizes = {len(x) for name, x in state.items() if name.endswith("classifier.weight")}
            return lesson.build(max(sizes, default=1), trunk)

        model = _trained(options.lesson, options.folder / "last.pt", build)
        recipe = lesson.recipe(at)
        how = lesson.embed, recipe.test_sampler, recipe.transform
    features = answers.features_of(model, mars.test, at, *how)
    found = answers.search(features, mars, options.camera)
    answers.write_all(writable(out, CURE), features, found, options.top)
    print(f"{found}\n{out.resolve()}: answers.csv, page_*.png, points.jsonl")


def _bench(options: argparse.Namespace) -> None:
    at, lesson = scale(), _lesson(options.lesson)
    device = devices.device()
    model = study.new_model(lesson, course_data(at).train, at, seed=0).to(device)
    clips = torch.zeros(1, at.T, 3, *at.size)
    for name, value in study.cost(model, clips).items():
        print(f"{name:12} {value:,.2f}")


if __name__ == "__main__":
    sys.exit(main())
