"""`score --timeline`: a film to a score for each utterance, as captions, a table and a page."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from featurizers.clip import BadClipError, Word
from featurizers.decoder import Decoder
from featurizers.store import publish
from featurizers.transcript import read_transcript, within
from pipelines.executors import Executor
from pipelines.experiment import Experiment, InputError, parse
from pipelines.films import write_table
from pipelines.pages.timeline import page
from pipelines.score import score
from pipelines.scoring import Job, words_of, write
from pipelines.segment import segment
from pipelines.show import Show
from pipelines.sources import RowDict
from pipelines.transcribe import transcribe

CAPTIONS, TABLE, PAGE = "scores.vtt", "scores.parquet", "index.html"
WORK = "work"


@dataclass(frozen=True, slots=True, kw_only=True)
class Utterance:
    """A part of a film, and what a model says of it.

    Attributes:
        start, end: Seconds of the film.
        text: What is said; empty where that is not known.
        answer: As `training.predict.Predictor.predict` gives it.
    """

    start: float
    end: float
    text: str
    answer: Mapping[str, Any]

    @property
    def scores(self) -> dict[str, float]:
        """By class or label its probability; of a regression the number; none when not scored."""
        if self.answer["state"] != "scored":
            return {}
        if self.answer["scores"]:
            found: dict[str, float] = json.loads(self.answer["scores"])
            return found
        return {"score": float(self.answer["prediction"])}

    @property
    def said(self) -> str:
        """What the model says, for people."""
        found = self.answer["prediction"]
        if self.answer["state"] != "scored":
            return f"not scored: {self.answer['fault'] or self.answer['message']}"
        return f"{found:+.2f}" if isinstance(found, float) else (found or "none")


def timeline_of(job: Job, executor: Executor, show: Show) -> list[dict[str, Any]]:
    """`timeline` as the command line asks for it; a row for each utterance.

    Raises:
        InputError: As `timeline`, or several clips or a part of one are named.
    """
    told = job.explain or job.start is not None or job.end is not None
    if told or len(job.clips) > 1:
        raise InputError("--timeline is of one whole film, without --start, --end and --explain")
    film = Path(job.clips[0])
    folder = job.to or Path(f"{film.stem}-timeline")
    with show.counting("score", None) as done:
        found = timeline(
            film,
            folder,
            job.uri,
            job.model,
            executor,
            transcript=job.transcript,
            recogniser=job.recogniser,
            done=done,
        )
    show.say(f"look at {folder / PAGE}")
    return [_flat(each) for each in found]


def timeline(
    film: Path,
    folder: Path,
    uri: str,
    model: str,
    executor: Executor,
    *,
    transcript: str | None = None,
    recogniser: str | None = None,
    done: Callable[[int], None] = lambda count: None,
) -> list[Utterance]:
    """Cut a film by voice, score each utterance, and write captions, a table and a page.

    What was cut and heard is kept in the folder, so that a run that was killed goes on.

    Args:
        film: A media file.
        folder: Where everything is written.
        uri: The tracking server.
        model: As `pipelines.score.score` takes it.
        executor: Where work runs.
        transcript: A file of words with times.
        recogniser: The Whisper checkpoint that says the words where no transcript is given: a
            folder, or a name on the hub. Without either, no words are known.
        done: Told how many utterances are scored.

    Raises:
        InputError: There is no such film, transcript, recogniser or model.
        FailedError: The film is bad, or nobody speaks in it.
    """
    experiment = _experiment(film, folder, transcript, recogniser)
    clips = segment(experiment, executor, lambda count: None).clips
    if recogniser is not None:
        clips = transcribe(experiment, executor, lambda count: None).clips
    answers = score(uri, model, [_row(clip) for clip in clips], executor, done=done)
    found = [
        Utterance(
            start=float(clip["start"]), end=float(clip["end"]), text=_text(clip), answer=answer
        )
        for clip, answer in zip(clips, answers, strict=True)
    ]
    publish(folder / CAPTIONS, captions(found).encode())
    write(folder / TABLE, [_flat(each) for each in found])
    version = answers[0]["model"] if answers else model
    html = page(film, folder, version, found, captions(found), seconds=_seconds(film))
    publish(folder / PAGE, html.encode())
    return found


def _experiment(
    film: Path, folder: Path, transcript: str | None, recogniser: str | None
) -> Experiment:
    """What `segment` and `transcribe` are told: a table of one film."""
    if not film.is_file():
        raise InputError(f"{film}: there is no such file")
    if transcript is not None and recogniser is not None:
        raise InputError("--transcript and --recogniser both say the words; give one of them")
    words = words_of(transcript)
    if "transcript" in words:
        raise InputError("--timeline wants --transcript as a file of words with times")
    whole = film.resolve()
    write_table(folder / WORK / "film.csv", [{"id": whole.stem, "media": str(whole), **words}])
    source: dict[str, Any] = {
        "table": str((folder / WORK / "film.csv").resolve()),
        "label": "none",
        "media_root": [str(whole.parent)],
        "segment": {},
    }
    if recogniser is not None:
        kind = "weights" if Path(recogniser).is_dir() else "model"
        named = str(Path(recogniser).resolve()) if kind == "weights" else recogniser
        source["transcribe"] = {kind: named}
    plain = {
        "dataset": str((folder / WORK).resolve()),
        "source": source,
        "features": {"none": {"featurizer": "logmel"}},
        "max_dropped": 0.0,
    }
    return parse(plain, Path.cwd(), str(film))


def _seconds(film: Path) -> float:
    """How long a film is; 0 where that cannot be read any more, which was when it was cut."""
    with Decoder() as decoder:
        try:
            return decoder.probe(film).seconds
        except BadClipError:
            return 0.0


def _row(clip: RowDict) -> dict[str, Any]:
    kept = ("id", "media", "start", "end", "transcript_file", "audio_stream", "video_stream")
    return {name: clip[name] for name in kept if name in clip}


def _text(clip: RowDict) -> str:
    if "transcript_file" not in clip:
        return ""
    try:
        found = read_transcript(Path(clip["transcript_file"]))
    except BadClipError:  # the answer tells it
        return ""
    words: Sequence[Word] = (
        () if isinstance(found, str) else within(found, float(clip["start"]), float(clip["end"]))
    )
    return " ".join(word.text for word in words)


def _flat(each: Utterance) -> dict[str, Any]:
    return {"start": each.start, "end": each.end, "text": each.text, **each.answer}


def captions(found: Sequence[Utterance]) -> str:
    """WebVTT that says, over the film, what the model says of each utterance."""
    cues = [
        f"{_clock(each.start)} --> {_clock(max(each.end, each.start + 0.001))}\n"
        f"{_cue(f'[{each.said}] {each.text}'.strip())}\n"
        for each in found
    ]
    return "\n".join(["WEBVTT\n", *cues])


def _clock(seconds: float) -> str:
    ms = round(seconds * 1000)
    minutes, hours = ms // 60_000 % 60, ms // 3_600_000
    return f"{hours:02d}:{minutes:02d}:{ms // 1000 % 60:02d}.{ms % 1000:03d}"


def _cue(text: str) -> str:
    flat = " ".join(text.split())
    return flat.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
