"""What people see: bars and tables on a terminal or in a notebook, plain lines elsewhere."""

import math
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from featurizers.store import shown
from pipelines.pages import printable
from pipelines.pages.units import HOUR_S, span

if TYPE_CHECKING:
    from pipelines.featurize import Balance
    from pipelines.forecast import Forecast
    from pipelines.promote import Promotion
    from pipelines.worker import Done
    from tracking.scorecard import Scorecard
    from training.pace import Pace

LINE_EVERY_S = 10.0
NOTEBOOK_EVERY_S = 0.2


class Show:
    """Writes for people.

    Args:
        quiet: Say nothing: standard output belongs to a machine.
    """

    def __init__(self, *, quiet: bool = False) -> None:
        # Wider than a terminal when there is none: a table in a log file must not be cut.
        width = None if sys.stdout.isatty() else 140
        self.console = Console(quiet=quiet, highlight=False, width=width, soft_wrap=True)
        self.bars = self.console.is_terminal or self.console.is_jupyter

    def say(self, text: str) -> None:
        """A line; logs of jobs keep it, so addresses are told without what is secret in them."""
        self.console.print(shown(text), markup=False)

    def head(self, text: str) -> None:
        """A heading."""
        self.console.print(f"\n[bold]{text}[/bold]")

    @contextmanager
    def counting(self, what: str, total: int | None) -> Iterator[Callable[[int], None]]:
        """A bar over some things, of which the number may not be known.

        Yields what is to be told of finished ones.
        """
        with self._bar(f"{{task.completed}}{_of(total)} {{task.fields[note]}}") as bar:
            task = bar.add_task(what, total=total, note="")
            line = _Lines(self, what, total)

            def done(count: int) -> None:
                bar.advance(task, count)
                line.advance(count, "")

            yield done

    @contextmanager
    def featurizing(self, clips: int | None) -> "Iterator[Callable[[Done], None]]":
        """A bar with clips, media seconds per second, faults and time left.

        Args:
            clips: How many there are in all jobs; None when that is not known.
        """
        began, media, faults = time.perf_counter(), 0.0, 0
        with self._bar(f"{{task.completed}}{_of(clips)} clips {{task.fields[note]}}") as bar:
            task = bar.add_task("featurize", total=clips, note="")
            line = _Lines(self, "featurize", clips)

            def done(job: "Done") -> None:
                nonlocal media, faults
                media += job.media_seconds
                faults += sum(sum(record.faults.values()) for record in job.records)
                speed = media / max(time.perf_counter() - began, 1e-9)
                note = f"{speed:.1f} media s/s, {faults} faults"
                bar.update(task, note=note, advance=job.clips)
                line.advance(job.clips, note)

            yield done

    @contextmanager
    def training(self, runs: int, epochs: int) -> "Iterator[TrainingBar]":
        """A bar over the epochs of several runs; early stopping ends one before its last epoch."""
        with self._bar("{task.fields[note]}") as bar:
            yield TrainingBar(bar, _Lines(self, "train", runs * epochs), runs, epochs)

    def _bar(self, text: str) -> Progress:
        columns = (TextColumn("{task.description:<10}"), BarColumn(), TextColumn(text))
        kind = _NotebookProgress if self.console.is_jupyter else Progress
        hidden = self.console.is_jupyter or not self.bars
        return kind(
            *columns, TimeRemainingColumn(), console=self.console, disable=hidden, transient=True
        )

    def ledger(self, balances: "Sequence[Balance]") -> None:
        """The ledger of some columns: clips = sample + absent + quarantined."""
        table = Table(title="clips = sample + absent + quarantined")
        for name in ("stream", "column"):
            table.add_column(name)
        for name in ("clips", "sample", "absent", "quarantined"):
            table.add_column(name, justify="right")
        table.add_column("faults")
        for each in balances:
            faults = ", ".join(f"{name} {count}" for name, count in sorted(each.faults.items()))
            numbers = (each.clips, each.sample, each.absent, each.quarantined)
            table.add_row(_plain(each.stream), each.column, *map(str, numbers), faults)
        self.console.print(table)

    def forecast(self, found: "Forecast") -> None:
        """What featurizing would do."""
        if found.changes is not None:
            counts = ", ".join(f"{name} {count}" for name, count in found.changes.items())
            self.say(f"clips: {counts}")
        table = Table(title="shards (clips, media)")
        for name in ("stream", "column", "new", "redo", "keep"):
            table.add_column(name, justify="left" if name in {"stream", "column"} else "right")
        for each in found.columns:
            shares = (f"{s.shards} ({s.clips}, {span(s.hours * HOUR_S)})" for s in each.shares())
            table.add_row(each.stream, each.column, *shares)
        self.console.print(table)
        time_text = "unknown" if found.seconds is None else span(found.seconds)
        self.say(
            f"{found.jobs} jobs, {span(found.media_hours * HOUR_S)} of media to decode; "
            f"time: {time_text} ({found.basis})"
        )

    def scores(self, title: str, cards: "Mapping[str, Scorecard]", metrics: Sequence[str]) -> None:
        """Test metrics of some models with their 95 % intervals, and why one is undefined.

        The longer of the two lists goes down. Below stands what a model may know of the clips.
        """
        from tracking.gate import leaks

        found = [[_score(card, metric) for metric in metrics] for card in cards.values()]
        wide = len(metrics) > len(cards)
        rows = [list(each) for each in zip(*found, strict=True)] if wide else found
        down, across = (list(metrics), list(cards)) if wide else (list(cards), list(metrics))
        table = Table(title=f"{title} (with 95 % intervals)")
        table.add_column("metric" if wide else "model")
        for name in across:
            table.add_column(_plain(name), justify="right")
        for name, row in zip(down, rows, strict=True):
            table.add_row(_plain(name), *row)
        self.console.print(table)
        for name, card in cards.items():
            for metric in metrics:
                if metric in card.undefined:
                    self.say(f"{name}: {metric} is undefined: {card.undefined[metric]}")
            if card.leaks or card.unknown_starts:
                self.say(f"{name}: {leaks(card).text}")

    def missing(self, cards: "Mapping[str, Scorecard]", metrics: Sequence[str]) -> None:
        """What missing streams cost: of the clips that lack some, and with each taken away."""
        rows: list[dict[str, object]] = []
        for name, card in cards.items():
            found = [("lacks", part) for part in card.as_found if len(card.as_found) > 1]
            for how, part in [*found, *(("without", part) for part in card.as_asked)]:
                what = f"{how} {', '.join(part.streams) or 'nothing'}"
                scores = {metric: f"{part.metrics[metric]:.3f}" for metric in metrics}
                rows.append({"model": name, "streams": what, "clips": part.count, **scores})
        if rows:
            self.rows("streams that clips lack, and each taken away from all clips", rows)

    def promotion(self, promotion: "Promotion") -> None:
        """A verdict with its reasons, and what followed."""
        table = Table(title=f"{promotion.name} version {promotion.version}")
        for name in ("rule", "passed", "reason"):
            table.add_column(name)
        for reason in promotion.verdict.reasons:
            table.add_row(reason.rule, "yes" if reason.passed else "NO", reason.text)
        self.console.print(table)
        for drift in promotion.mended:
            self.say(f"put back: alias {drift}")
        self.say(_outcome(promotion))

    def answers(self, answers: Sequence[Mapping[str, Any]]) -> None:
        """What a model says of clips, as `pipelines.score.score` gives it; its name above."""
        rows = [{name: row[name] for name in row if name != "model"} for row in answers]
        self.rows(answers[0]["model"] if answers else "", rows)

    def explained(self, answers: Sequence[Mapping[str, Any]]) -> None:
        """What each stream did to what is said of some clips, and how far each word let it through.

        Args:
            answers: As `pipelines.score.score` gives them where it explains.
        """
        for model in dict.fromkeys(answer["model"] for answer in answers):
            self.head(_plain(model))
        for answer in answers:
            told = answer["message"] if answer["prediction"] is None else answer["prediction"]
            self.head(f"{_plain(answer['id'])}: {_cell(told)}")
            if answer["without"]:
                self.rows("with a stream taken away", _without(answer["without"]))
            if answer["masks"]:
                self.rows("how far each stream is let through", _masks(answer))

    def rows(self, title: str, rows: Sequence[Mapping[str, object]]) -> None:
        """Any rows of equal keys; numbers stand on the right."""
        table = Table(title=_plain(title))
        for name, value in rows[0].items() if rows else ():
            number = isinstance(value, int | float) and not isinstance(value, bool)
            table.add_column(_plain(str(name)), justify="right" if number else "left")
        for row in rows:
            table.add_row(*(_cell(value) for value in row.values()))
        self.console.print(table)


def with_interval(value: float, ends: tuple[float, float]) -> str:
    """A metric with the interval around it, where there is one."""
    around = "" if math.isnan(ends[0]) else f" ({ends[0]:.3f} to {ends[1]:.3f})"
    return f"{value:.3f}{around}"


def _score(card: "Scorecard", metric: str) -> str:
    return with_interval(card.metrics[metric], card.intervals.get(metric, (math.nan, math.nan)))


def _outcome(promotion: "Promotion") -> str:
    name = f"{promotion.name} version {promotion.version}"
    if promotion.entry is not None:
        return f"{name} is champion now (generation {promotion.entry.generation})"
    if promotion.champion == promotion.version:
        return f"{name} is champion already"
    if promotion.verdict.promote:
        return f"{name} would be promoted"
    return f"{name} is not promoted; champion: {promotion.champion or 'none'}"


def _without(taken: Mapping[str, Any]) -> list[dict[str, object]]:
    return [
        {
            "stream": name,
            "prediction": "nothing is left" if less is None else _predicted(less["prediction"]),
            "change": "" if less is None else _changes(less["change"]),
        }
        for name, less in taken.items()
    ]


def _predicted(prediction: float | str | None) -> float | str:
    return "NaN or infinity" if prediction is None else prediction


def _changes(change: float | Mapping[str, float] | None) -> str:
    if change is None:
        return ""
    if isinstance(change, Mapping):
        return ", ".join(f"{name} {moved:+.3f}" for name, moved in change.items())
    return f"{change:+.4f}"


def _masks(answer: Mapping[str, Any]) -> list[dict[str, object]]:
    """A row a step: the word, where steps are words, and the mean mask of each stream."""
    masks: Mapping[str, Sequence[float | None]] = answer["masks"]
    steps = max(map(len, masks.values()))
    words = answer["words"] if len(answer["words"]) == steps else []
    return [
        {
            "step": number + 1,
            "word": words[number][0] if words else "",
            **{
                name: "" if number >= len(mask) or mask[number] is None else f"{mask[number]:.3f}"
                for name, mask in masks.items()
            },
        }
        for number in range(steps)
    ]


def _cell(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    return "" if value is None else _plain(str(value))


def _plain(text: str) -> str:
    """What users wrote, as it is: no markup, and nothing that a terminal would obey."""
    return escape(printable(text))


def _of(total: int | None) -> str:
    return "" if total is None else f"/{total}"


class _NotebookProgress(Progress):
    """A bar in a notebook: one output that changes in place.

    Rich draws it with ipywidgets there, and without those warns and shows nothing. Every notebook
    has IPython, and what was shown last stays in the file that is saved.
    """

    _shown: Any = None
    _drawn_s = 0.0

    def start(self) -> None:
        """Show it."""
        from IPython.display import display

        if not self.console.quiet:
            self._shown = display(self, display_id=True)  # type: ignore[no-untyped-call] # IPython's

    def stop(self) -> None:
        """Show how far it came."""
        self._draw()

    def update(self, *arguments: Any, **changes: Any) -> None:  # noqa: ANN401 - as Rich has it
        """See `Progress`."""
        super().update(*arguments, **changes)
        self._draw(wait_s=NOTEBOOK_EVERY_S)

    def advance(self, *arguments: Any, **changes: Any) -> None:  # noqa: ANN401 - as Rich has it
        """See `Progress`."""
        super().advance(*arguments, **changes)
        self._draw(wait_s=NOTEBOOK_EVERY_S)

    def _draw(self, wait_s: float = 0.0) -> None:
        now = time.monotonic()
        if self._shown is not None and now - self._drawn_s >= wait_s:
            self._drawn_s = now
            self._shown.update(self)


class TrainingBar:
    """A bar over epochs, told of each that is finished, and now and then of the unfinished one.

    Args:
        bar: Where it is drawn.
        line: What stands for it where nothing is drawn.
        runs: How many runs there are, one after the other or several at a time.
        epochs: The most that each takes.
    """

    def __init__(self, bar: Progress, line: "_Lines", runs: int, epochs: int) -> None:
        self._bar, self._line, self._runs, self._epochs = bar, line, runs, epochs
        self._task = bar.add_task("train", total=runs * epochs, note="starting workers")
        self._reached: dict[str, int] = {}
        self._parts: dict[str, float] = {}
        self._began, self._done = time.monotonic(), 0

    def __call__(self, name: str, epoch: int, metrics: Mapping[str, float]) -> None:
        """An epoch of a run is finished."""
        self._meet(name)
        self._parts.pop(name, None)
        self._reached[name] = epoch + 1
        self._done += 1
        note = f"epoch {epoch + 1}: train {metrics['train_loss']:.3f}"
        note += f" valid {metrics['valid_loss']:.3f}"
        self._tell(name, note, metrics.get("samples_per_second"), count=1)

    def within(self, name: str, pace: "Pace") -> None:
        """An epoch of a run is not finished."""
        self._meet(name)
        if pace.epoch < self._reached[name]:
            return
        self._parts[name] = pace.step / pace.steps
        note = f"epoch {pace.epoch + 1}, {self._parts[name]:.0%}: train {pace.loss:.3f}"
        self._tell(name, note, pace.samples_per_second, count=0)

    def _meet(self, name: str) -> None:
        if name not in self._reached:
            self._done = len(self._reached) * self._epochs
            self._reached[name] = 0

    def _tell(self, name: str, note: str, speed: float | None, *, count: int) -> None:
        note = f"{name} ({len(self._reached)}/{self._runs}) {note}"
        if speed is not None:
            note += f", {speed:.0f} samples/s"
        done = self._done + sum(self._parts.values())
        self._bar.update(self._task, note=note, completed=done)
        left_s = (self._runs * self._epochs - done) * (time.monotonic() - self._began) / done
        self._line.advance(count, f"{note}, at most {span(left_s)} left")


class _Lines:
    """A plain line now and then where there is no terminal."""

    def __init__(self, show: Show, what: str, total: int | None) -> None:
        self._show, self._what, self._of = show, what, _of(total)
        self._count, self._last = 0, time.monotonic()

    def advance(self, count: int, note: str) -> None:
        self._count += count
        now = time.monotonic()
        if self._show.bars or now - self._last < LINE_EVERY_S:
            return
        self._last = now
        self._show.say(f"{self._what}: {self._count}{self._of} {note}".rstrip())
