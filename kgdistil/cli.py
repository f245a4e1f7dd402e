"""The command `kgdistil`: distill, predict, similar, evaluate and so on; tables for people, JSON for programs."""

from __future__ import annotations

import contextlib
import errno
import io
import json
import logging
import os
import re
import shlex
import stat
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import click
from click.core import ParameterSource

from kgdistil._version import __version__
from kgdistil.answer.answers import Answers
from kgdistil.answer.rendering import finite, plain, printable
from kgdistil.errors import BusyError, ConfigError, DataError, KgdistilError, needs

if TYPE_CHECKING:  # imported where they are used, so that `--help` is quick
    from kgdistil.answer.labels import Labels
    from kgdistil.answer.student import Student

FOLDER = click.Path(path_type=Path, file_okay=False)
FILE = click.Path(path_type=Path)
DIM, PRECISION = 8, "int8"  # of a student where nobody says, and no budget does
WIDEST = 70  # characters of a readable name in a table
EXIT_CODES = (
    "Exit codes: 0 done, and a server that is stopped; 1 an error that the last line explains; 2 a wrong option; 130 "
    "stopped with Ctrl-C."
)


WORDS = {  # what a table of runs calls them
    "rounded": "the teacher's own numbers in as few bytes as the student's",
    "no-DS": "the student trained alone",
    "stage 1": "trained by a teacher that stays as it is",
    "stage 2": "both go on, and the teacher learns too",
    "+ lists": "further epochs of sampled softmax",
    "paths": "taught once more, by a model of the paths between entities and the student above",
}
MEANT = {  # what a query may ask for
    "probability": "the share of such answers that were true when validation triples were held out, of queries that "
    "had a true one; what is true but not in the graph counted as false",
    "coverage": "how often a set of this kind holds the answer that is missing, by split conformal prediction on the "
    "validation triples",
}
TIES = "Realistic ties: among entities that score the same, the true one takes the middle place."


class Commands(click.Group):
    """Errors as one line, never a traceback; `distil`, as in Python, is `distill`."""

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        return super().get_command(ctx, "distill" if name == "distil" else name)

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except KgdistilError as error:
            fail(str(error), 1)
        except KeyboardInterrupt:
            trains = ctx.invoked_subcommand in ("distill", "distil")
            fail("stopped" + "; the same command goes on where its last checkpoint stands" * trains, 130)
        except ModuleNotFoundError as error:  # of a library; what this package holds is always there
            fail(f'this needs {error.name}: pip install "kgdistil[train]"; a student answers without it', 1)
        except MemoryError:
            fail("out of memory: take a smaller graph or dimension", 1)

    def main(self, *arguments: Any, **options: Any) -> Any:
        """Click's own, and a line where standard output is full; without this text the book would show click's."""
        if isinstance(getattr(sys.stdout, "buffer", None), io.RawIOBase):  # PYTHONUNBUFFERED, python -u
            sys.stdout = io.TextIOWrapper(
                Whole(sys.stdout.buffer), sys.stdout.encoding, sys.stdout.errors, write_through=True
            )
        try:
            return super().main(*arguments, **options)
        except OSError as error:  # of a pipe that is closed click ends quietly
            fail(f"{error.filename or 'cannot write standard output'}: {error.strerror or error}", 1)


class Whole(io.RawIOBase):
    """A file without a buffer, of which a part that the disk has no room for is an error, as it is of one with."""

    def __init__(self, file: Any):
        self.file = file

    def writable(self) -> bool:
        return True

    def fileno(self) -> int:
        return int(self.file.fileno())

    def isatty(self) -> bool:
        return bool(self.file.isatty())

    def write(self, data: Any) -> int:
        """All of it.

        Raises:
            OSError: the file takes no more.
        """
        left = memoryview(data).cast("B")
        size = len(left)
        while left:
            count = self.file.write(left)
            if not count:
                raise BlockingIOError(errno.EAGAIN, "it takes no more")
            left = left[count:]
        return size


def fail(line: str, code: int) -> None:
    say(f"kgdistil: {line}", err=True)
    sys.exit(code)


class Plain(logging.Formatter):
    """A log line that cannot steer the terminal."""

    def format(self, record: logging.LogRecord) -> str:
        return printable(super().format(record))


@click.group(
    "kgdistil",
    cls=Commands,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
    epilog=EXIT_CODES,
)
@click.version_option(__version__, prog_name="kgdistil")
def main() -> None:
    """Small knowledge-graph embeddings from large ones.

    A graph is a file of triples, one "head, relation, tail" a line: .tsv, .csv, .parquet, RDF and more, packed or not.
    In three steps from such a file to answers:

    \b
      kgdistil distill triples.tsv --dim 8 -o student/
      kgdistil predict student/ --head "Ada Lovelace" --relation wrote -k 5
      kgdistil evaluate student/

    `kgdistil COMMAND --help` explains each command with examples.
    """
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(Plain("kgdistil: %(message)s"))
    # how far another library is, PyKEEN for one, is not asked for
    handler.addFilter(lambda record: record.levelno >= logging.WARNING or record.name.startswith("kgdistil"))
    logging.basicConfig(handlers=[handler], level=logging.WARNING, force=True)
    logging.getLogger("kgdistil").setLevel(logging.INFO)  # how far training is


by_number = click.option("--ids", is_flag=True, help="What is given are numbers from 0, not labels.")
unseen = click.option("--unseen", is_flag=True, help="Answer about what stands in no training triple, too.")


def graph_options(command: Any) -> Any:
    """How triples are read: what `distill` and `import` have in common."""
    options = (
        click.option("--valid", type=click.Path(path_type=Path), help="Validation triples; then --test is needed too."),
        click.option("--test", type=click.Path(path_type=Path), help="Test triples."),
        click.option("--split-seed", type=int, help="Seed of the split of a single file.  [default: 0]"),
        click.option(
            "--held-out",
            type=float,
            help="Share for validation, and again for test.  [default: 0.1, but at most 50,000 triples each]",
        ),
        click.option(
            "--columns",
            metavar="HEAD,RELATION,TAIL",
            help="Names of the three columns in the first line, or their numbers, counted from 1.",
        ),
        click.option("--order", help="Of three columns without names: htr for head, tail, relation.  [default: hrt]"),
        click.option("--header/--no-header", default=None, help="The first line names the columns, or is a triple."),
        click.option(
            "--keep-labels",
            is_flag=True,
            help="Labels that differ in spaces at their ends, quotes round them or kinds of accents stay apart.",
        ),
        click.option("--drop-overlap", is_flag=True, help="Leave out of valid and test what stands in training too."),
        click.option("--names", type=click.Path(path_type=Path), help="Readable names: a file of label, tab, name."),
    )
    return with_options(command, options)


TRAINING = ".training"  # after a student's folder: that of its teacher, checkpoints and records
PARTIAL = ".partial"  # after the name of a file of answers: those before a line that could not be answered
READ, SUM = ("teacher", "teacher_lists", "names", "labels"), " sum"  # what is read beside the graph, and of it is kept
TEACHER = ("trust_pickle", "convention", "norm", "gamma", "labels")  # what `teacher_options` adds


def teacher_options(command: Any) -> Any:
    """How a teacher's file is read: what `distill` and `import` have in common."""
    options = (
        click.option(
            "--trust-pickle",
            is_flag=True,
            help="I trust the teacher's file: PyKEEN's is a pickle, which can run any code when it is read.",
        ),
        click.option(
            "--convention",
            help="Whose layout the teacher's numbers have: kgdistil, pykeen, libkge, dgl-ke, kgemb, openke or "
            "torchkge.  [default: the file's library; kgdistil for .npz]",
        ),
        click.option("--norm", type=click.IntRange(1, 2), help="Of the teacher's distance, if its file does not say."),
        click.option("--gamma", type=float, help="By which dgl-ke, kgemb and openke scale RotatE's angles."),
        click.option("--labels", type=FOLDER, help="Folder with the teacher's tables of labels, if not beside it."),
    )
    return with_options(command, options)


def with_options(command: Any, options: Sequence[Any]) -> Any:
    for option in reversed(options):
        command = option(command)
    return command


def read(source: str, options: dict[str, Any]) -> Any:
    from kgdistil.graphs.readers import read_graph

    columns, further = options["columns"], ("order", "header", "keep_labels", "drop_overlap", "names")
    given: dict[str, Any] = {name: options.get(name) for name in further}
    return read_graph(
        source,
        options["valid"],
        options["test"],
        held_out=options["held_out"],
        seed=options["split_seed"],
        columns=tuple(columns.split(",")) if columns else None,
        **given,
    )


# ---- distill --------------------------------------------------------------------------------------------------------
@main.command()
@click.argument("graph")
@click.option("-o", "--output", required=True, type=FOLDER, help="Folder for the student.")
@click.option("--dim", type=int, help=f"Dimension of the student.  [default: {DIM}]")
@click.option(
    "--precision",
    help=f"float32, float16, int8, 4bit, 2bit or 1bit: the numbers of the student's file.  [default: {PRECISION}]",
)
@click.option("--rank", type=int, default=0, help="For few bits: floats of an entity of low rank, which share a map.")
@click.option(
    "--budget",
    metavar="LIMIT",
    help="In place of --dim and --precision: bytes of weights, as 2MB, or 16B/entity, or time of a query, as 2ms. "
    "Without --model and --teacher, the best student of the measured frontier that fits.",
)
@click.option(
    "--time",
    "time_",
    metavar="TIME",
    help="Search for so long, as 30min, for the settings of teacher and students of few bits (kgdistil[search]); "
    "see below.",
)
@click.option(
    "--model",
    help="RotatE, TransE, TransH, ComplEx, DistMult, SimplE or ReciprocalComplEx.  "
    "[default: the teacher's, RotatE; ComplEx for few bits]",
)
@click.option(
    "--teacher",
    type=click.Path(path_type=Path, exists=True),
    help="A trained teacher: a folder of kgdistil, a result folder of PyKEEN, a checkpoint of LibKGE, an .npz, or "
    "another that `kgdistil import` reads. Left out: one is trained.",
)
@click.option(
    "--teacher-lists",
    type=FILE,
    help="In place of a teacher, what any model says: a Parquet file with the columns head (the entity that is given), "
    "relation, side (tail or head), candidate and score. For --precision 4bit, 2bit or 1bit.",
)
@teacher_options
@click.option("--teacher-dim", default=64, show_default=True, help="Dimension of the teacher that is trained here.")
@click.option(
    "--stages", type=click.IntRange(1, 2), default=2, show_default=True, help="1: the teacher stays as it is."
)
@click.option(
    "--epochs",
    type=int,
    help="Of the teacher, and of each stage.  [default: 150; 20 for few bits, 10 of many millions of triples]",
)
@click.option(
    "--softmax-epochs",
    type=click.IntRange(0),
    default=10,
    show_default=True,
    help="For few floats: epochs of sampled softmax, after those of the paper. 0: the paper alone.",
)
@click.option(
    "--no-paths",
    is_flag=True,
    help="For few bits: no path model teaches the student once more, where one would help. It is tried on graphs of "
    "10,000 training triples to 100,000 entities that have few enough paths.",
)
@click.option("--lists", type=click.IntRange(0), hidden=True, help="The former name of --softmax-epochs.")
@click.option("--seed", default=0, show_default=True, help="Of all training.")
@click.option("--device", default="cpu", show_default=True)
@click.option("--replace", is_flag=True, help="Replace a student that the folder holds already.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@graph_options
def distill(
    graph: str,
    output: Path,
    dim: int | None,
    precision: str | None,
    budget: str | None,
    time_: str | None,
    model: str | None,
    teacher: Path | None,
    teacher_lists: Path | None,
    replace: bool,
    as_json: bool,
    **options: Any,
) -> None:
    """Make a small student of GRAPH, with a teacher and without one, and keep the better one.

    GRAPH is a file of triples, a folder with train, valid and test, a known graph (umls, wn18rr, …) or
    pykeen:NAME. A single file is split: every entity stays in the training part.

    \b
      kgdistil distill triples.tsv --dim 8 -o student/
      kgdistil distill triples.csv --columns from,type,to --budget 2MB -o student/
      kgdistil distill triples.tsv --budget 16B/entity --time 30min -o student/
      kgdistil distill triples.tsv --teacher my_pykeen_results/ --trust-pickle --dim 8 -o student/

    With --time a third of it goes into trials of the teacher, a third into those of its student, and as much as that
    into the student alone, on the validation triples; OUTPUT/search.jsonl has a line for each trial. Some trials are
    not cut short, so that it may take longer: the first, and those of the student alone that give it what its teacher
    had. The same command goes on where it was stopped, and with more --time where it ended.

    Teacher, checkpoints and records go to a folder beside the student, OUTPUT.training, which you may delete when you
    have what you want; until then the same command goes on where it was stopped. Once it is finished, the same command
    shows what it made.
    """
    from kgdistil.answer.files import write_text
    from kgdistil.answer.student import half_saved, holds_student
    from kgdistil.compress.packing import GROUPS, check_precision
    from kgdistil.distillation.budget import parse_budget, plan, search_seconds, searched
    from kgdistil.distillation.distil import SEARCHED, distil
    from kgdistil.distillation.recipes import family
    from kgdistil.graphs.importers import import_teacher
    from kgdistil.records import kept_in

    check_output(output)
    if budget is not None and (dim is not None or precision is not None or options["rank"]):
        raise ConfigError("give --budget, or --dim and --precision: the budget decides both")
    parse_budget(budget or 1), check_precision(precision or PRECISION)  # before a large graph is read
    search_seconds(time_, "4bit" if budget else precision or PRECISION, teacher, teacher_lists)
    if (lists := options.pop("lists")) is not None:
        options["softmax_epochs"] = lists
    if teacher is None and (unread := [name for name in TEACHER if options[name]]):
        raise ConfigError(f"{', '.join(unread)}: this says how a teacher's file is read; name it as teacher")
    asked = as_asked(output, dim=dim, precision=precision, budget=budget, model=model, teacher=teacher, **options)
    no_paths = options.pop("no_paths") or None
    check_paths("4bit" if budget else precision or PRECISION, no_paths)
    asked |= as_asked(output, teacher_lists=teacher_lists, time=time_, no_paths=no_paths)
    if holds_student(output) and not replace and is_done(output, {"graph": read(graph, options).sha256, **asked}):
        student = opened(output)
        if not as_json:
            say(f"{output} holds what this command made: nothing is left to do.")
        report(student, output, as_json)
        return
    if output.exists() and not holds_student(output) and not half_saved(output):
        raise ConfigError(f"{output} holds other files; name a new or empty folder")
    training = Path(f"{os.path.realpath(output)}{TRAINING}")
    with only_one(training), kept_in(training):
        found = read(graph, options)
        if not as_json:
            say(str(found))
        how = {name: options[name] for name in TEACHER if options[name]}
        brought = teacher and import_teacher(teacher, found, **{"model": model, **how})
        teacher_dim = brought.model.dim if brought else options["teacher_dim"]
        expected = None
        if budget is not None:
            kind = model or (family(brought.model) if brought else None)
            few = time_ is not None or teacher_lists is not None
            expected = plan(found, budget, kind, teacher_dim, few_bits=few)
            if not as_json:
                say(f"the budget of {budget} buys {expected}\n{expected.why}\n{expected.expected}")
        names = ("stages", "epochs", "seed", "device", "rank", "softmax_epochs")
        wanted = {name: options[name] for name in names} | {"teacher_dim": teacher_dim, "model": model}
        wanted |= {"paths": not no_paths, "dim": DIM if dim is None else dim, "precision": precision or PRECISION}
        if expected:
            shape = ("dim", "precision", "teacher_dim", "rank", "whole", "model")
            wanted |= {name: getattr(expected, name) for name in shape}
            if budget and time_ and expected.precision in GROUPS:
                kinds = SEARCHED if model is None else ()
                wanted["models"], wanted["shapes"] = searched(found, expected, budget, kinds)
        alike = wanted["precision"] in GROUPS and (time_ or teacher_lists)  # student and teacher, in dimension
        wanted["teacher_dim"] = wanted["dim"] if alike else wanted["teacher_dim"]
        check_paths(wanted["precision"], no_paths)
        check_unread(options, wanted, coded=wanted["precision"] in GROUPS and wanted["dim"] == wanted["teacher_dim"])
        wanted |= {"teacher": brought, "teacher_options": None if brought else how}
        done = distil(found, teacher_lists=teacher_lists, time=time_, **wanted)
        done.student.about |= {"expected": expected and expected.expected, "asked": {"graph": found.sha256, **asked}}
        done.student.save(output)
        if done.trials:
            write_text(output / "search.jsonl", "".join(json.dumps(row) + "\n" for row in done.trials))
    report(opened(output), output, as_json)


def check_paths(precision: str, no_paths: bool | None) -> None:
    """ConfigError where paths are refused of a student that they never teach."""
    from kgdistil.compress.packing import GROUPS

    if no_paths and precision not in GROUPS:
        raise ConfigError(f"--no-paths is for few bits, and this student is {precision}: leave it out")


def check_unread(options: dict[str, Any], wanted: dict[str, Any], coded: bool) -> None:
    """ConfigError where an option is given that the training of this student, `coded` or not, would not read."""
    context, floats = click.get_current_context(), ("stages", "softmax_epochs")
    given = [x for x in ("teacher_dim", *floats) if context.get_parameter_source(x) is ParameterSource.COMMANDLINE]
    if "teacher_dim" in given and options["teacher_dim"] != (dim := wanted["teacher_dim"]):
        raise ConfigError(
            f"--teacher-dim is {options['teacher_dim']}, but this student's teacher has {dim}: leave it out"
        )
    if unread := [name for name in floats if coded and name in given]:
        option = f"--{unread[0].replace('_', '-')}"
        raise ConfigError(f"{option} is for few floats: {wanted['precision']} is trained in one stage; leave it out")


def opened(folder: Path) -> Student:
    """A student, without PyTorch wherever its model is one of this package's."""
    from kgdistil.answer.student import load_student
    from kgdistil.errors import ForeignModelError

    try:
        return load_student(folder)
    except ForeignModelError:
        from kgdistil.students.labelled import open_own

        return open_own(folder)


def as_asked(output: Path, **values: Any) -> dict[str, str]:
    """What a command was asked, as a student's folder keeps it, and the sums of what it reads beside the graph; whether
    a pickle is trusted changes nothing."""
    from kgdistil.graphs.cache import sum_of_all

    given = {key: x for key, x in values.items() if x is not None and key != "trust_pickle"}
    own = [f"{os.path.realpath(output)}{end}" for end in ("", TRAINING)]
    asked = {key: str(os.path.realpath(x) if isinstance(x, Path) else x) for key, x in given.items()}
    return asked | {f"{key}{SUM}": sum_of_all(x, own) for key, x in given.items() if key in READ and kept_still(x)}


def kept_still(path: Path) -> bool:
    """Whether it can be read twice, as a pipe cannot."""
    return path.is_file() or path.is_dir()


def is_done(output: Path, asked: dict[str, str]) -> bool:
    """Whether the student in a folder is what a command asks for; not where a search has more time than it had.

    Raises:
        ConfigError: it is another.
    """
    from kgdistil.distillation.budget import parse_time

    before = made(output) or {}
    now = {key: value for key, value in asked.items() if key in before or not key.endswith(SUM)}  # as before there were
    if "budget" not in asked:  # said aloud or not
        before, now = ({"dim": str(DIM), "precision": PRECISION, **told} if told else {} for told in (before, now))
    had, has = (parse_time(told["time"]) if "time" in told else 0 for told in (before, now))
    if had and before == {**now, "time": before["time"]}:
        if had == has:
            return True
        if had < has and any(Path(f"{os.path.realpath(output)}{TRAINING}", "search").glob("*.log")):
            return False
    if before == now:
        return True
    other = [key for key in {**before, **now} if before.get(key) != now.get(key)]
    changed = f"; {other[0].removesuffix(SUM).replace('_', ' ')} differs" if before else ""
    raise ConfigError(f"{output} holds a model already{changed}: name another folder, or add --replace")


def made(output: Path) -> Any:
    """What the command was asked that made the student in a folder; None where that is not known."""
    from kgdistil.errors import CheckpointError

    try:
        asked = opened(output).about.get("asked")
    except CheckpointError:
        return None
    # As earlier releases kept it.
    return asked and {key: x for key, x in asked.items() if x != "None" and key != "trust_pickle"}


def report(student: Student, output: Path, as_json: bool) -> None:
    """What a student's folder says of how it was made."""
    about = student.about
    if as_json:
        told = {"student": str(output), "dim": student.dim, "precision": student.precision}
        told |= {"run_id": student.run_id, **about.get("gain", {})}
        kept = (
            "chosen",
            "verdict",
            "expected",
            "metrics",
            "precisions",
            "notes",
            *(x for x in ("search", "predicted") if x in about),
        )
        emit(told | {key: about.get(key) for key in kept})
        return
    if notes := about.get("notes"):
        say("\n".join(["\nWhat is to be known of the graph and the teacher:", *(f"- {note}" for note in notes)]))
    if found := about.get("search"):
        say("\n".join(["\nWhat the search found (search.jsonl has its trials):", *(f"- {line}" for line in found)]))
    say("\nTest triples, filtered ranks of both sides:")
    show(Answers.of(about["metrics"]))
    runs = " ".join(row["model"] for row in about["metrics"])
    say(f"({'; '.join(f'{name}: {what}' for name, what in WORDS.items() if name in runs)})\n{TIES}")
    say(f"\n{about['verdict'][0].upper()}{about['verdict'][1:]} (one seed).")
    if "first" in (expected := about.get("predicted", {})):  # an older student's has another share
        say(
            f"At its first validation the distilled student had {expected['first']:.0%} of its teacher's MRR and was "
            f"expected to keep {expected['share']:.0%}."
        )
    say(f"\nThe student that is kept ({about['chosen']}), at each precision:")
    show(Answers.of(about["precisions"]))
    h, r = (student.entities[0], student.relations[0])
    if student.has_triples:
        test = student.triples.of("test")
        answered = test[~student.unseen("entity", test[:, 0]) & ~student.unseen("relation", test[:, 1])]
        first = (answered if len(answered) else student.triples.of("train"))[0].tolist()
        h, r = student.entities[first[0]], student.relations[first[1]]
    say(f"\n{output} holds the {student.precision} student. Ask it:")
    say(f"  kgdistil predict {shlex.quote(str(output))} --head {shlex.quote(h)} --relation {shlex.quote(r)}")


def check_output(output: Path) -> None:
    """Refuse what can never become a folder before anything is read or trained."""
    from kgdistil.config import short

    try:
        folder = stat.S_ISDIR(output.stat().st_mode)
    except FileNotFoundError:
        return
    except OSError as error:
        raise ConfigError(f"{short(str(output))}: {error.strerror}; name a new or an empty folder") from None
    if not folder:
        raise ConfigError(f"{output} is no folder; name a new or an empty one")


@contextlib.contextmanager
def only_one(folder: Path) -> Iterator[None]:
    """A lock on a folder, made where it is not there and gone again at the end where nothing was put there.

    Raises:
        BusyError: another process holds it.
    """
    import filelock

    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = filelock.FileLock(folder / ".lock", timeout=0)
        lock.acquire()
    except filelock.Timeout:
        raise BusyError(f"{folder}: another process is at work here; wait for it or name another folder") from None
    except OSError as error:
        raise KgdistilError(f"cannot write {folder}: {error.strerror or error}; name another folder") from None
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            if os.listdir(folder) == [".lock"]:  # refused before anything was trained
                (folder / ".lock").unlink()
                folder.rmdir()
        lock.release()


# ---- asking ---------------------------------------------------------------------------------------------------------
@main.command()
@click.argument("student", type=FOLDER)
@click.option("--head", help="Label of the head.")
@click.option("--relation", help="Label of the relation.")
@click.option("--tail", help="Label of the tail.")
@click.option("-k", type=int, help="How many answers, at most.  [default: 10; with --coverage 1,000]")
@click.option("--new", is_flag=True, help="Leave out what the graph says already.")
@click.option(
    "--probability",
    is_flag=True,
    help="Add how likely each answer is true, calibrated on validation triples; 1 where the graph has it.",
)
@click.option(
    "--coverage", type=float, help="As many answers as hold the missing one so often, such as 0.9, in place of -k."
)
@click.option("--typed", is_flag=True, help="Only entities that training saw in that place of that relation.")
@click.option("--candidates", type=FILE, help="Only the entities of a file, one a line.")
@click.option("--candidate", multiple=True, metavar="LABEL", help="Only this entity; give it once for each.")
@click.option(
    "--shortlist",
    type=click.IntRange(min=1),
    metavar="N",
    help="Of a nested student: rank all by their first codes, and only the best N by all of them.  [default: all]",
)
@by_number
@unseen
@click.option("--json", "as_json", is_flag=True, help="Print a JSON list.")
@click.option("--batch", type=FILE, help="Ask all queries of a file; - is standard input.")
@click.option(
    "--format",
    "format_",
    type=click.Choice(["tsv", "jsonl", "parquet"]),
    help="Of the answers to a batch.  [default: tsv]",
)
@click.option(
    "-o", "--output", type=click.Path(path_type=Path, dir_okay=False), help="File for the answers to a batch."
)
@click.option("--replace", is_flag=True, help="Write over that file where it is there already.")
@click.option(
    "--skip-errors",
    is_flag=True,
    help="Say which lines of a batch cannot be answered, and go on.",
)
def predict(
    student: Path,
    as_json: bool,
    ids: bool,
    candidates: Path | None,
    candidate: tuple[str, ...],
    batch: Path | None,
    format_: str | None,
    output: Path | None,
    replace: bool,
    skip_errors: bool,
    **query: Any,
) -> None:
    """Ask a STUDENT for what is missing: give two of head, relation and tail.

    The query's own entity is no answer, unless training has the relation from entities to themselves.

    A batch is a file with a query a line: head, relation and tail with tabs between them, where what is asked for is
    left empty, or "?". Its answers have the line's number, the triple, the rank and the score.

    \b
      kgdistil predict student/ --head "Ada Lovelace" --relation wrote -k 5
      kgdistil predict student/ --relation wrote --tail "Notes" --new
      kgdistil predict student/ --head "Ada Lovelace" --tail "Notes" --json
      kgdistil predict student/ --head "Ada Lovelace" --relation wrote --coverage 0.9 --probability
      kgdistil predict student/ --head "Ada Lovelace" --relation wrote --candidate "Notes" --candidate "Letters"
      kgdistil predict student/ --batch queries.tsv -k 3 > answers.tsv
      kgdistil predict student/ --batch queries.tsv --format parquet -o answers.parquet
    """
    from kgdistil.answer.asking import find_all
    from kgdistil.answer.lines import entities_of, number_of

    places = {place: query.pop(place) for place in ("head", "relation", "tail")}
    if batch is None and (format_ or output or skip_errors or replace):
        raise ConfigError("--format, --output, --replace and --skip-errors are of a batch: add --batch FILE")
    if batch is not None and (as_json or any(x is not None for x in places.values())):
        raise ConfigError("--batch comes without --head, --relation, --tail and --json; --format jsonl gives JSON")
    if ids:
        places = {place: x if x is None else number_of(x, place) for place, x in places.items()}
    by: Any = "id" if ids else "label"
    who = opened(student)
    if candidates is not None or candidate:
        given = [number_of(x, "candidate") if ids else x for x in candidate]
        query["candidates"] = given + (entities_of(who, candidates, ids) if candidates is not None else [])
    for name in ("k", "shortlist"):
        if query[name] is None:
            del query[name]
    if batch is not None:
        if query.get("candidates") is not None:
            query["candidates"] = find_all(who, query["candidates"], "entity", by).tolist()
        try:
            answer_batch(who, batch, format_ or "tsv", output, ids, replace, skip_errors=skip_errors, **query)
        except OSError as error:
            if isinstance(error, BrokenPipeError):
                raise
            where = output or "standard output"
            raise KgdistilError(
                f"cannot write {where}: {error.strerror or error}; make room, or name another"
            ) from None
        return
    found = who.predict(by=by, ids=ids or as_json, **places, **query)
    if as_json:
        emit(found.rows())
        return
    show(found)
    for name, words in MEANT.items():
        if query.get(name):
            say(f"({name}: {words})")


def answer_batch(
    who: Student, file: Path, format_: str, output: Path | None, ids: bool, replace: bool, **options: Any
) -> None:
    """Answer the queries of a file, or of standard input, a thousand at a time."""
    from kgdistil.answer import lines

    if output is None and format_ == "parquet":
        raise ConfigError("Parquet is no text: name a file with -o")
    if str(file) == "-" and sys.stdin is None:
        raise DataError("standard input is closed; name a file, or let something stand there")
    if str(file) != "-" and (not file.exists() or file.is_dir()):
        raise DataError(f"{file} is missing or a folder; - is standard input")
    if output is not None:
        check_answers(output, file, who, replace)
    shown = sys.stderr.isatty() and (output is not None or not sys.stdout.isatty())
    begun, told = time.monotonic(), {"queries": 0, "answers": 0}
    with contextlib.ExitStack() as stack:
        asked = sys.stdin.buffer if str(file) == "-" else stack.enter_context(file.open("rb"))
        size, name = (0, "standard input") if str(file) == "-" else (file.stat().st_size, str(file))
        found = lines.answer_lines(who, asked, name, ids=ids, **options)

        def pour(into: BinaryIO) -> None:
            with contextlib.closing(lines.writer(format_)(into)) as sink:
                for count, columns in found:
                    sink.write(columns)
                    told["queries"], told["answers"] = told["queries"] + count, told["answers"] + len(columns["line"])
                    if shown:
                        done, spent = asked.tell() / size if size else 0, time.monotonic() - begun
                        left = f"{done:4.0%}, about {spent / done - spent:.0f} s left, " if done else ""
                        click.echo(f"\r\x1b[K{left}{told['queries']:,} queries", err=True, nl=False)

        if shown:
            stack.callback(click.echo, "\r\x1b[K", err=True, nl=False)
        if output is None:
            pour(sys.stdout.buffer)
        elif output.exists() and not output.is_file():  # a pipe
            pour(stack.enter_context(output.open("wb")))
        else:
            all_or_apart(output, pour, told)
    if output is not None:
        say(f"{output}  {told['queries']:,} queries, {told['answers']:,} answers, {output.stat().st_size:,} bytes")


def all_or_apart(output: Path, pour: Callable[[BinaryIO], None], told: dict[str, int]) -> None:
    """Answers in their file when all are there; those before a line that has none, or before Ctrl-C, in one beside."""
    from kgdistil.answer.files import write_atomically

    def fill(scratch: str) -> None:
        try:
            with open(scratch, "wb") as into:
                pour(into)
        except (DataError, KeyboardInterrupt) as error:  # what was answered before it is kept
            if not told["queries"]:
                raise
            os.replace(scratch, place := f"{output}{PARTIAL}")
            if isinstance(error, DataError):
                raise DataError(f"{error}; the answers before it are in {place}") from None
            click.echo(f"kgdistil: the answers until now are in {place}", err=True)
            raise

    write_atomically(output, fill)


def check_answers(output: Path, file: Path, who: Student, replace: bool) -> None:
    """ConfigError where a file of answers would take the place of what it must not: queries, a student, or any other
    unless it may."""
    from kgdistil.answer.folder import check_free

    if not output.parent.is_dir():
        raise KgdistilError(f"cannot write {output}: No such file or directory; name a folder that is there")
    if output.exists() and file.exists() and output.samefile(file):
        raise ConfigError(f"{output} holds the queries: name another file")
    if who.folder and Path(os.path.realpath(output)).is_relative_to(os.path.realpath(who.folder)):
        raise ConfigError(f"{output} lies in the student's own folder: name another place")
    check_free(output, replace)


@main.command()
@click.argument("student", type=FOLDER)
@click.argument("entity")
@click.option("-k", default=10, show_default=True, help="How many entities.")
@by_number
@unseen
@click.option("--json", "as_json", is_flag=True, help="Print a JSON list.")
def similar(student: Path, entity: str, k: int, ids: bool, unseen: bool, as_json: bool) -> None:
    """The entities whose embeddings in STUDENT are most like that of ENTITY, by cosine.

    \b
      kgdistil similar student/ "Ada Lovelace" -k 5
    """
    from kgdistil.answer.lines import number_of

    asked = number_of(entity, "entity") if ids else entity
    found = opened(student).similar(asked, k, by="id" if ids else "label", unseen=unseen)
    emit(found.rows()) if as_json else show(found)


@main.command()
@click.argument("student", type=FOLDER)
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen at; 0.0.0.0: every one it has.")
@click.option("--port", type=click.IntRange(0, 65535), default=8000, show_default=True, help="0: any that is free.")
@click.option("--workers", type=click.IntRange(1, 64), default=1, show_default=True, help="Processes that answer.")
@click.option("--max-k", type=click.IntRange(1), default=1000, show_default=True, help="Answers to a query.")
@click.option("--max-batch", type=click.IntRange(1), default=1000, show_default=True, help="Queries in a request.")
@click.option("--max-body", type=click.IntRange(1), default=1 << 20, show_default=True, help="Bytes of a request.")
@click.option(
    "--allow-host",
    multiple=True,
    metavar="NAME",
    help="Go by this name only; give it once for each.  [default: loopback]",
)
def serve(student: Path, host: str, port: int, workers: int, allow_host: tuple[str, ...], **most: int) -> None:
    """Answer over HTTP what STUDENT is asked: a page to try it at /, what programs ask at /docs.

    \b
      kgdistil serve student/
      curl "http://127.0.0.1:8000/predict?head=Ada+Lovelace&relation=wrote&k=5"

    It is for this machine alone unless --host says otherwise, and has no password. A folder that is replaced meanwhile
    is not looked at again: start the server anew. Ctrl-C stops it.
    """
    with needs("starlette and uvicorn", "the server", "serve"):
        from kgdistil.serve.app import Limits
        from kgdistil.serve.run import serve

    hosts = tuple(name.lower() for name in allow_host)
    limits = Limits(most["max_k"], most["max_batch"], most["max_body"], hosts)
    serve(str(student), host, port, workers, limits, say)


@main.command()
@click.argument("student", type=FOLDER)
@click.option("--split", default="test", show_default=True, help="train, valid or test.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def evaluate(student: Path, split: str, as_json: bool) -> None:
    """Rank the triples that STUDENT came with: MRR, Hits@k, filtered, realistic ties.

    \b
      kgdistil evaluate student/ --split valid
    """
    metrics = opened(student).evaluate(split)
    metrics.pop("mean_of_two_ranks")
    if as_json:
        emit(metrics)
        return
    show(Answers.of([{"side": side, **found} for side, found in metrics.items()]))
    say(TIES)


# ---- in and out -----------------------------------------------------------------------------------------------------
@main.command()
@click.argument("student", type=FOLDER)
@click.option("--to", "form", required=True, help="One of the forms below.")
@click.option(
    "-o", "--output", required=True, type=click.Path(path_type=Path), help="File for npz and faiss, folder for others."
)
@click.option("--replace", is_flag=True, help="Write over what is there.")
def export(student: Path, form: str, output: Path, replace: bool) -> None:
    """Write STUDENT for other programs.

    \b
      onnx     tails.onnx and heads.onnx, checked in onnxruntime, and labels.json (of many entities labels.tsv)
      npz      one file of numpy arrays: the numbers, the scales and the labels
      arrays   numpy arrays one by one, decoded, with codes and codebook where it has them, and labels.tsv
      pykeen   trained_model.pkl and training_triples, as PyKEEN's pipeline saves them
      faiss    an index of the same codes (IndexPQ); Student.vectors makes the queries
      browser  a folder that the book's browser page reads where it is served

    \b
      kgdistil export student/ --to onnx -o onnx/
      kgdistil export student/ --to npz -o student.npz
    """
    from kgdistil.students.export import export as write
    from kgdistil.students.labelled import load_labelled

    for path in write(load_labelled(student), form, output, replace):
        say(f"{path}  {path.stat().st_size:,} bytes")


@main.command()
@click.argument("student", type=FOLDER)
@click.option("-o", "--output", type=FOLDER, help="Another folder; the student stays as it is.")
@click.option("--bytes", "size", type=int, help="Of a student trained for several sizes, that of so many an entity.")
def convert(student: Path, output: Path | None, size: int | None) -> None:
    """Write a STUDENT of an earlier release as this one writes it, which is opened where it lies; in one move. Or one
    of precision nested as one of its smaller sizes.

    \b
      kgdistil convert student/
      kgdistil convert student/ -o other/
      kgdistil convert student/ --bytes 16 -o small/
    """
    from kgdistil.answer.adding import alone
    from kgdistil.answer.format import HEADER, VERSION
    from kgdistil.answer.published import found as place
    from kgdistil.answer.student import load_student

    student = place(student)
    found, target = load_student(student), output or student
    here = target.resolve() == student.resolve()
    before, done = sizes(student), (student / HEADER).is_file()
    if size is not None:
        if here:
            raise ConfigError(f"{student} stays as it is: name a folder for its {size} bytes an entity with -o")
        found, done = found.shorter(size), False
    if done and here:
        say(f"{student} is of format {VERSION} already ({before}): nothing is left to do.")
        return
    if not here and target.exists() and any(target.iterdir()):
        raise ConfigError(f"{target} holds other files; name a new or empty folder")
    if here:
        with alone(student):
            load_student(student).replace(student)  # with what was added meanwhile
    else:
        found.save(target)
    say(f"{student}: {before}")
    say(f"{target}: {sizes(target)}, {'a copy' if done else f'of format {VERSION}'}")


def sizes(folder: Path) -> str:
    """The files of a student and their bytes."""
    from kgdistil.answer import format1
    from kgdistil.answer.format import FILES

    there = [path for name in (*format1.FILES, *reversed(FILES)) if (path := folder / name).is_file()]
    each = [f"{path.name} {path.stat().st_size:,}" for path in there]
    return f"{sum(path.stat().st_size for path in there):,} bytes ({', '.join(each)})"


@main.command()
@click.argument("student", type=FOLDER)
def calibrate(student: Path) -> None:
    """Fit the probabilities and answer sets of a STUDENT to its validation triples, for predict; the folder keeps them.

    `distill` does so itself: this is for students of earlier releases, and for those whose weights were replaced.

    \b
      kgdistil calibrate student/
    """
    from kgdistil.students.calibration import calibrate as fit

    told = fit(student).header["calibration"]
    say(f"{student}: {len(told['tables'])} tables of {told['queries']:,} queries of validation triples")


@main.command()
@click.argument("student", type=FOLDER)
@click.argument("triples", type=FILE)
@click.option("--keep-labels", is_flag=True, help="Keep labels as they are: by default they are tidied as a graph's.")
@click.option("--json", "as_json", is_flag=True, help="Print a JSON list.")
def add(student: Path, triples: Path, keep_labels: bool, as_json: bool) -> None:
    """Learn new entities from their TRIPLES, without training again; what the STUDENT knows of all others stays.

    TRIPLES is a file of "head, relation, tail" a line, separated by tabs, or by commas in a .csv. An entity that the
    student has not is fitted to its triples, which are known (--new) from then on.

    \b
      kgdistil add student/ new.tsv
    """
    from kgdistil.answer.lines import triples_of
    from kgdistil.graphs.forms import names_columns

    found, places = triples_of(triples)
    known = opened(student)
    if found[0][1] not in known.relations and names_columns(found[0]):
        found, places = found[1:], places[1:]
        if not found:
            raise DataError(f"{triples} holds the names of its columns and no triple")
    if not keep_labels:
        from kgdistil.graphs.labels import tidy, unquoted

        bare = (lambda x: x) if triples.suffix.lower() == ".csv" else unquoted  # as in graphs

        def tidied(label: str, there: Labels) -> str:
            return label if label in there else tidy(bare(tidy(label)))

        given = [x for triple in found for x in triple]
        found = [
            [tidied(h, known.entities), tidied(r, known.relations), tidied(t, known.entities)] for h, r, t in found
        ]
        if count := sum(x != y for x, y in zip(given, (x for triple in found for x in triple))):
            logging.getLogger("kgdistil").warning(
                "%s: %d labels were tidied (spaces, quotes, invisible characters, NFC); see --keep-labels",
                triples,
                count,
            )
    before = known.graph_sha256
    added = known.add(found, places=places)
    if as_json:
        emit(added.rows())
        return
    if added.empty:
        old = (
            "triples, of entities that it had, are known from now on" if known.graph_sha256 != before else "nothing new"
        )
        say(f"{student} has no new entities: {old}.")
        return
    first = {name: column[:10] for name, column in added.by_name.items()}
    first["entity"] = [x if len(x) <= WIDEST else f"{x[: WIDEST - 1]}…" for x in first["entity"]]
    show(Answers(first))
    more = f" ({len(added) - 10:,} more than are shown)" * (len(added) > 10)
    say(f"{student} has {len(added):,} new entities{more}.")


@main.command("import")
@click.argument("teacher", type=click.Path(path_type=Path, exists=True))
@click.option("--graph", required=True, help="The graph whose entities the teacher knows; as in distill.")
@click.option("-o", "--output", required=True, type=FOLDER, help="Folder for the model.")
@click.option(
    "--model",
    help="RotatE, TransE, TransH, ComplEx, DistMult, SimplE or ReciprocalComplEx, where the file does not say.",
)
@teacher_options
@click.option("--replace", is_flag=True, help="Replace a model that the folder holds already.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@graph_options
def import_(
    teacher: Path,
    graph: str,
    output: Path,
    replace: bool,
    as_json: bool,
    **options: Any,
) -> None:
    """Bring a TEACHER trained elsewhere into a folder that `predict`, `evaluate` and `distill --teacher` read.

    TEACHER is a result folder of PyKEEN, a folder of DGL-KE or PyTorch-BigGraph, a checkpoint of LibKGE, OpenKE or
    TorchKGE, or an .npz with entities, relations, entity_labels and relation_labels. Entities are matched by label.
    Training triples are ranked under each way in which the numbers may be meant. Only PyKEEN's file can run code, so it
    needs --trust-pickle.

    \b
      kgdistil import my_pykeen_results/ --trust-pickle --graph triples.tsv -o teacher/
      kgdistil import weights.npz --model RotatE --convention libkge --graph triples.tsv -o teacher/
      kgdistil import transe.ckpt --model TransE --graph benchmarks/FB15K237/ --labels benchmarks/FB15K237/ -o teacher/
    """
    from kgdistil.answer.student import holds_student
    from kgdistil.distillation.recipes import family
    from kgdistil.graphs.importers import import_teacher
    from kgdistil.models import MODELS
    from kgdistil.students.labelled import Labelled

    check_output(output)
    found = read(graph, options)
    asked = as_asked(output, teacher=teacher, **options) | {"graph": found.sha256}
    if holds_student(output) and not replace:
        is_done(output, asked)
    brought = import_teacher(teacher, found, **{name: options[name] for name in ("model", *TEACHER)})
    asked_for = {name.lower(): name for name in MODELS}.get((options["model"] or "").lower())
    if asked_for not in (None, kind := family(brought.model)):
        raise ConfigError(f"--model is {options['model']}, and {teacher} holds a {kind}: leave --model out")
    about = {"source": brought.source, "asked": asked, "notes": [*found.notes, *brought.notes]}
    student = Labelled(brought.model, found, about=about)
    metrics = student.evaluate()["both"]
    student.about["metrics"] = [{"model": type(brought.model).__name__, "dim": brought.model.dim, **metrics}]
    student.save(output)
    if as_json:
        emit({"model": str(output), "source": brought.source, "notes": brought.notes, "test": metrics})
        return
    for line in brought.notes:
        say(line)
    kind = f"{type(brought.model).__name__} of dimension {brought.model.dim}"
    say(f"{output} holds the {kind}; test MRR {metrics['mrr']:.3f}")
    say("(too good where the teacher was trained on triples that are test triples here)")


# ---- what is printed ------------------------------------------------------------------------------------------------
def say(text: str, err: bool = False) -> None:
    """Lines for people."""
    click.echo("\n".join(map(printable, text.split("\n"))), err=err)


def show(table: Answers) -> None:
    """A table for people; the readable name only where it says more than the label."""
    shown = dict(table.by_name)
    if "name" in shown and shown["name"] == shown.get("entity"):
        del shown["name"]
    if "name" in shown:  # a gloss may fill a page
        shown["name"] = [name if len(name) <= WIDEST else f"{name[: WIDEST - 1]}…" for name in shown["name"]]
    say(plain(shown, zip(*shown.values())))
    if table.empty:
        say("(no answer is left)")


def emit(value: Any) -> None:
    """JSON, in which what could steer the terminal is escaped."""
    text = json.dumps(finite(value), ensure_ascii=False, indent=1, allow_nan=False)
    click.echo(re.sub(r"[^\n -~]", lambda m: m[0] if m[0].isprintable() else json.dumps(m[0])[1:-1], text))


if __name__ == "__main__":
    main()
