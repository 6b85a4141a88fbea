"""What a featurizer computes of one file of numbers, for tests."""

from featurizers.catalog import build
from featurizers.clip import BadClipError, Clip
from featurizers.decoder import Decoder
from featurizers.extract import extract
from featurizers.spec import check_feature


def of_file(kind, stream, path, *, rate=None, span=(0.0, None), **settings):
    """The feature of a clip that has the file as a stream. Raises BadClipError."""
    clip = Clip(
        key="a",
        id="a",
        media="a.mp4",
        media_digest="",
        start=span[0],
        end=span[1],
        streams={stream: str(path)},
        stream_rates={} if rate is None else {stream: rate},
    )
    featurizer = build(kind, stream=stream, **settings)
    with Decoder() as decoder:
        (outcome,) = extract(clip, None, [featurizer], decoder)
    if outcome.feature is None:
        raise BadClipError(outcome.fault, outcome.message)
    check_feature(featurizer.spec, outcome.feature)
    return outcome.feature
