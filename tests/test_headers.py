"""What headers promise, read from bytes that no writer of media would give."""

import io
import struct

import pytest

from featurizers.headers import counts_its_frames, lacks_index, told_seconds

FORMAT = struct.pack("<HHIIHH", 1, 1, 16_000, 32_000, 2, 16)


def chunk(name, content, size=None):
    """A chunk of a RIFF file; those of odd sizes are filled up."""
    said = len(content) if size is None else size
    return name + struct.pack("<I", said) + content + b"\0" * (len(content) % 2)


def wav(*chunks):
    body = b"WAVE" + b"".join(chunks)
    return io.BytesIO(b"RIFF" + struct.pack("<I", len(body)) + body)


def box(name, content=b"", size=None):
    return struct.pack(">I", 8 + len(content) if size is None else size) + name + content


def mp4(*boxes):
    return io.BytesIO(b"".join(boxes))


def test_the_size_of_the_samples_is_seconds_and_the_file_stands_at_its_beginning():
    file = wav(chunk(b"fmt ", FORMAT), chunk(b"data", b"", 48_000))
    assert told_seconds(file) == [1.5]
    assert file.tell() == 0


def test_a_chunk_of_an_odd_size_is_filled_up():
    assert told_seconds(
        wav(chunk(b"LIST", b"abc"), chunk(b"fmt ", FORMAT), chunk(b"data", b"", 32_000))
    ) == [1.0]


@pytest.mark.parametrize("size", [0, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF])
def test_a_size_that_a_writer_into_a_pipe_gives_promises_nothing(size):
    assert told_seconds(wav(chunk(b"fmt ", FORMAT), chunk(b"data", b"", size))) == [None]


def test_bytes_of_compressed_sound_promise_no_seconds():
    adpcm = struct.pack("<H", 0x11) + FORMAT[2:]
    assert told_seconds(wav(chunk(b"fmt ", adpcm), chunk(b"data", b"", 32_000))) == [None]


@pytest.mark.parametrize("rest", [(), (chunk(b"fmt ", FORMAT[:4]),), (chunk(b"data", b"", 9),)])
def test_a_header_that_says_too_little_promises_nothing(rest):
    assert told_seconds(wav(*rest)) == [None]


def test_nobody_walks_through_chunks_without_end():
    many = [chunk(b"junk", b"")] * 2000
    assert told_seconds(wav(*many, chunk(b"fmt ", FORMAT), chunk(b"data", b"", 32_000))) == [None]


def test_an_index_is_found_wherever_it_lies():
    head, media = box(b"ftyp", b"isom"), box(b"mdat", b"12345")
    assert not lacks_index(mp4(head, box(b"moov"), media))
    assert not lacks_index(mp4(head, media, box(b"moov")))
    assert lacks_index(mp4(head, media))
    assert not lacks_index(mp4(media))  # of no form that is known here


def test_an_index_behind_a_box_of_more_than_four_gigabytes_is_found():
    head = box(b"ftyp", b"isom")
    large = box(b"mdat", struct.pack(">Q", 16 + 5) + b"12345", size=1)
    assert not lacks_index(mp4(head, large, box(b"moov")))


@pytest.mark.parametrize("size", [2**62, 2**63, 2**64 - 1])
def test_a_box_larger_than_any_file_is_its_last(size):
    head = box(b"ftyp", b"isom")
    large = box(b"mdat", struct.pack(">Q", size), size=1)
    assert lacks_index(mp4(head, large, box(b"moov")))


def tagged(size):
    """What an ID3 tag of so many bytes begins with: seven bits of each byte count."""
    return b"ID3\4\0\0" + bytes(size >> 7 * at & 127 for at in (3, 2, 1, 0)) + bytes(size)


@pytest.mark.parametrize("before", [b"", tagged(9), tagged(5000)], ids=["bare", "tag", "long tag"])
@pytest.mark.parametrize(("flags", "counted"), [(0, False), (1, True), (2, False), (15, True)])
def test_frames_are_counted_where_the_first_one_says_so(before, flags, counted):
    frame = b"\xff\xfb\x90\0" + bytes(32) + b"Info" + struct.pack(">I", flags) + bytes(400)
    assert counts_its_frames(io.BytesIO(before + frame)) == counted


def test_nobody_walks_through_boxes_without_end():
    many = [box(b"free")] * 2000
    assert lacks_index(mp4(box(b"ftyp", b"isom"), *many, box(b"moov")))
