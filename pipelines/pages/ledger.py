"""The ledger report as people see it: tables and sentences on a terminal, and one page."""

from collections import Counter
from collections.abc import Mapping, Sequence

from featurizers.clocks import APART_S
from pipelines.accounts import STATES, Line
from pipelines.clocks import Apart
from pipelines.pages import Figure, Rows, Table, plots, render
from pipelines.pages.units import amount, share, size, span
from pipelines.parts import ALL, LABEL
from pipelines.report import Damaged, Lost, Report
from pipelines.spreads import Steps
from pipelines.throughput import FEATURIZER, MEANINGS, Throughput

PAGE_ROWS = 200
TERMINAL_ROWS = 20
VALUES = 30  # of a label, on the page
_SLOWEST_ON_TERMINAL = 5
_COLOURS = (plots.GREEN, plots.SKY, plots.RED, plots.GREY)


def tables(made: Report) -> list[tuple[str, Rows]]:
    """What a terminal shows: titles and rows of equal keys; tables without rows are left out."""
    lost = _lost_rows(made.quarantined)
    left = max(0, len(lost) - TERMINAL_ROWS)
    more = f" (the first {TERMINAL_ROWS}; --json has {amount(left)} more)" if left else ""
    found: list[tuple[str, Rows]] = [
        (f"{made.dataset}: clips = sample + absent + quarantined", _ledger_rows(made.of(ALL))),
        *[(f"by {part}", _ledger_rows(made.of(part))) for part in made.values if part != ALL],
        (f"quarantined{more}", lost[:TERMINAL_ROWS]),
        ("clocks that lie apart", _apart_rows(made.apart)[:TERMINAL_ROWS]),
        ("steps of a clip", _steps_rows(made.steps)),
        ("stages of the last run", [] if made.last_run is None else stage_rows(made.last_run)),
        ("slowest clips", _slow_rows(made)[:_SLOWEST_ON_TERMINAL]),
    ]
    return [(title, rows) for title, rows in found if rows]


def sentences(made: Report) -> list[str]:
    """What a terminal says below the tables: whether it balances, how long clips are, the speed."""
    found = [balance(made), *made.problems, *made.unfinished]
    if made.damaged:
        found.append(f"{amount(len(made.damaged))} samples have damage that was passed over")
    if made.apart:
        found.append(
            f"sound and pictures lie apart by {APART_S} s or more in {amount(len(made.apart))} of "
            f"{amount(made.measured)} clips that have both"
        )
    if (spread := made.durations.spread) is not None:
        found.append(
            f"clips have {span(spread.minimum)} to {span(spread.maximum)}, half of them at most "
            f"{span(spread.median)}, 95 % at most {span(spread.p95)}; {span(spread.total)} in all"
        )
    if made.last_run is not None:
        found += [f"last run: {line}" for line in made.last_run.sentences()]
    return found


def balance(made: Report) -> str:
    """Whether every clip is accounted for."""
    if not made.balanced:
        return "the ledger does not balance"
    if not made.columns:
        return "no column is finished"
    return (
        f"the ledger balances: each of {amount(made.clips)} clips is accounted for in each of "
        f"{made.columns} columns; {amount(made.complete)} are samples in all of them"
    )


def stage_rows(run: Throughput) -> Rows:
    """The stages of a run as rows of a table."""
    return [
        {
            "stage": stage.name,
            "items": stage.items,
            "busy": span(stage.seconds),
            "CPU": span(stage.cpu_seconds),
            "of jobs' time": share(stage.share),
            "items/s": amount(stage.items_per_second),
            "media s/s": amount(stage.media_per_second),
            "p50": span(stage.p50_seconds),
            "p99": span(stage.p99_seconds),
        }
        for stage in run.stages
    ]


def page(made: Report) -> str:
    """The report as one HTML file; equal reports give equal bytes."""
    return render(
        "ledger.html",
        made=made,
        balance=balance(made),
        tiles=_tiles(made),
        ledger=Table("Every column", _ledger_rows(made.of(ALL))),
        parts=[_part_table(made, part) for part in made.values if part != ALL],
        quarantined=_cut("Quarantined clips", _lost_rows(made.quarantined)),
        damaged=_cut("Samples with damage", _damaged_rows(made.damaged)),
        apart=_cut("Clocks that lie apart", _apart_rows(made.apart)),
        least=APART_S,
        durations=Table("Clips by split", _hours_rows(made)),
        steps=Table("Steps of a clip, by column", _steps_rows(made.steps)),
        runs=_runs(made),
        slowest=Table("Slowest clips of all runs", _slow_rows(made)),
        stages=[{"name": name, "meaning": meaning} for name, meaning in _meanings(made)],
        figures=figures(made),
    )


def figures(made: Report) -> dict[str, Figure]:
    """The figures for which there are numbers, by name."""
    drawn = {
        "ledger": _ledger_figure(made.of(ALL)),
        "faults": _faults_figure(made),
        "durations": _durations_figure(made),
        "steps": _steps_figure(made.steps),
        "stages": None if made.last_run is None else _stages_figure(made.last_run),
        "slowest": _slowest_figure(made),
    }
    return {name: figure for name, figure in drawn.items() if figure is not None}


def _ledger_figure(lines: Sequence[Line]) -> Figure | None:
    if not any(line.clips for line in lines):
        return None
    parts = {state: [getattr(line, state) for line in lines] for state in STATES}
    if any(line.unknown > 0 for line in lines):
        parts["not done"] = [max(0, line.unknown) for line in lines]
    names = [line.stream for line in lines]
    title = "Clips by state in each column"
    svg = plots.stacks("ledger", title, "clips", parts, names=names, colours=_COLOURS)
    return Figure(svg, "What became of the clips in each column.")


def _faults_figure(made: Report) -> Figure | None:
    clips = Counter(fault for fault, _ in {(each.fault, each.key) for each in made.quarantined})
    if not clips:
        return None
    counts = dict(sorted(clips.items(), key=lambda each: (-each[1], each[0])))
    notes = {name: f"{amount(n)} ({share(n / made.clips)})" for name, n in counts.items()}
    svg = plots.bars("faults", "Quarantined clips by reason", "clips", counts, notes=notes)
    return Figure(svg, "Quarantined clips by reason; a clip counts once, in however many columns.")


def _durations_figure(made: Report) -> Figure | None:
    told = made.durations
    if not told.counts:
        return None
    unit = "duration of a clip (seconds)"
    svg = plots.histogram(
        "durations", "Clips by duration", unit, told.edges, told.counts, log=told.log
    )
    scale = ", on a logarithmic scale" if told.log else ""
    return Figure(svg, f"How long clips are{scale}.")


def _steps_figure(steps: Sequence[Steps]) -> Figure | None:
    spreads = {
        each.stream: (found.minimum, found.median, found.p95, found.maximum)
        for each in steps
        if (found := each.spread) is not None and found.minimum > 0
    }
    if not spreads:
        return None
    svg = plots.ranges("steps", "Steps of a clip by column", "steps of a clip", spreads)
    return Figure(
        svg, "Steps of a clip: all of them (line), 95 % of them (bar) and the median (dot)."
    )


def _stages_figure(run: Throughput) -> Figure | None:
    busy = {stage.name: stage.seconds for stage in run.stages if stage.seconds}
    if not busy:
        return None
    svg = plots.bars(
        "stages",
        "Busy time by stage",
        "busy time, all workers (seconds)",
        busy,
        inner={stage.name: stage.cpu_seconds for stage in run.stages},
        legend=("busy", "of which CPU"),
        notes={stage.name: share(stage.share) for stage in run.stages},
    )
    return Figure(svg, "Where the last run's time went; in percent of the jobs' time.")


def _slowest_figure(made: Report) -> Figure | None:
    taken = {each.key: each.seconds for each in made.slowest if each.seconds}
    if not taken:
        return None
    notes = {each.key: span(each.media_seconds or None) for each in made.slowest}
    svg = plots.bars("slowest", "Slowest clips", "work on a clip (seconds)", taken, notes=notes)
    return Figure(svg, "The clips that took longest, by key; behind each bar how long the clip is.")


def _tiles(made: Report) -> list[tuple[str, str]]:
    spread = made.durations.spread
    lost = len({each.key for each in made.quarantined})
    return [
        ("clips", amount(made.clips)),
        ("of media", "" if spread is None else span(spread.total)),
        ("columns", amount(made.columns)),
        ("samples in every column", amount(made.complete)),
        ("quarantined in some column", f"{amount(lost)} ({share(lost / max(1, made.clips))})"),
    ]


def _part_table(made: Report, part: str) -> Table:
    shown = set(made.values[part][:VALUES])
    left = len(made.values[part]) - len(shown)
    note = f"{amount(left)} more values are left out; --json has all of them." if left else ""
    lines = [line for line in made.of(part) if line.value in shown]
    return Table(f"By {part}", _ledger_rows(lines), note)


def _cut(caption: str, rows: Rows) -> Table:
    left = len(rows) - PAGE_ROWS
    note = f"{amount(left)} more are left out; --json has all of them." if left > 0 else ""
    return Table(caption, rows[:PAGE_ROWS], note)


def _ledger_rows(lines: Sequence[Line]) -> Rows:
    folders = any(line.part == ALL and line.column != line.stream for line in lines)
    return [
        {
            **({} if line.part == ALL else {line.part.removeprefix(LABEL): line.value}),
            "column": line.stream,
            "clips": line.clips,
            "sample": line.sample,
            "absent": line.absent,
            "quarantined": line.quarantined,
            **({"not done": line.unknown} if any(each.unknown for each in lines) else {}),
            "lost": share(line.lost),
            **({"faults": _told(line.faults)} if any(each.faults for each in lines) else {}),
            **({"folder": line.column} if folders else {}),
        }
        for line in lines
    ]


def _told(faults: Mapping[str, int]) -> str:
    """Faults with their counts, which stay beside them when the line is broken."""
    return ", ".join(f"{name}\u00a0{count}" for name, count in faults.items())


def _lost_rows(lost: Sequence[Lost]) -> Rows:
    """A row for each clip and reason; one file that is broken for several columns is one row."""
    streams: dict[tuple[str, ...], list[str]] = {}
    for each in lost:
        about = (each.fault, each.id, each.key, each.message, each.media)
        streams.setdefault(about, []).append(each.stream)
    return _without_needless_keys(
        [
            {
                "fault": fault,
                "id": name,
                "column": ", ".join(found),
                "message": message,
                "media": media,
                "key": key,
            }
            for (fault, name, key, message, media), found in streams.items()
        ]
    )


def _damaged_rows(damaged: Sequence[Damaged]) -> Rows:
    return _without_needless_keys(
        [
            {
                "id": each.id,
                "column": each.stream,
                "message": each.message,
                "media": each.media,
                "key": each.key,
            }
            for each in damaged
        ]
    )


def _apart_rows(apart: Sequence[Apart]) -> Rows:
    return _without_needless_keys(
        [
            {"id": each.id, "found": "; ".join(each.told), "media": each.media, "key": each.key}
            for each in apart
        ]
    )


def _without_needless_keys(rows: Rows) -> Rows:
    """Keys are told where some differ from ids."""
    if any(row["key"] != row["id"] for row in rows):
        return rows
    return [{name: value for name, value in row.items() if name != "key"} for row in rows]


def _hours_rows(made: Report) -> Rows:
    return [
        {"split": split, "media": span(hours * 3600)}
        for split, hours in made.durations.hours.items()
    ]


def _steps_rows(steps: Sequence[Steps]) -> Rows:
    return [
        {
            "column": each.stream,
            "steps/s": "by event" if each.rate_hz is None else amount(each.rate_hz),
            "samples": found.count,
            "least": round(found.minimum),
            "median": round(found.median),
            "p95": round(found.p95),
            "most": round(found.maximum),
            "in all": round(found.total),
        }
        for each in steps
        if (found := each.spread) is not None
    ]


def _slow_rows(made: Report) -> Rows:
    return _without_needless_keys(
        [
            {
                "id": each.id,
                "key": each.key,
                "took": span(each.seconds),
                "media": span(each.media_seconds or None),
            }
            for each in made.slowest
        ]
    )


def _runs(made: Report) -> dict[str, object] | None:
    """What the page says of the last run, and beside it of all, where there are several."""
    last, everything = made.last_run, made.all_runs
    if last is None or everything is None:
        return None
    several = len(everything.runs) > 1
    told = {"last run": last, f"all {len(everything.runs)} runs": everything}
    shown: Mapping[str, Throughput] = told if several else {"run": last}
    facts = {name: _facts(run) for name, run in shown.items()}
    first = next(iter(facts.values()))
    return {
        "name": last.runs[-1] or "without a name",
        "sentences": last.sentences(),
        "facts": Table(
            "Runs",
            [{"": fact, **{name: told[fact] for name, told in facts.items()}} for fact in first],
        ),
        "stages": [
            Table(f"Stages, {name}" if several else "Stages", stage_rows(run))
            for name, run in shown.items()
        ],
    }


def _facts(run: Throughput) -> dict[str, str]:
    return {
        "clips": amount(run.clips),
        "jobs": amount(run.jobs),
        "media": span(run.media_seconds),
        "took": span(run.elapsed_seconds),
        "clips/s": amount(run.clips_per_second),
        "media s/s": amount(run.media_per_second),
        "workers": amount(run.workers),
        "hosts": amount(run.hosts),
        "workers with a job": share(run.busy_share),
        "a job's wait for a worker, mean": span(run.queued_seconds / max(1, run.jobs)),
        "the longest wait": span(run.longest_queue_seconds),
        "tries beyond the first": amount(run.retries),
        "read": size(run.bytes_read),
        "written": size(run.bytes_written),
        "most memory of a worker": size(run.peak_bytes or None),
        "most memory of a decoder": size(run.decoder_peak_bytes or None),
    }


def _meanings(made: Report) -> list[tuple[str, str]]:
    names = [stage.name for stage in made.all_runs.stages] if made.all_runs else []
    ours = [(name, MEANINGS[name]) for name in MEANINGS if name in names]
    return ours + [(name, FEATURIZER) for name in sorted(names) if name not in MEANINGS]
