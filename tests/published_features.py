"""Small files of published features, laid out as the originals are."""

import pickle

import numpy as np

WIDTHS = {"text": 6, "audio": 5, "vision": 4}
LONGEST = {"text": 8, "audio": 20, "vision": 15}
SPLITS = {"train": 12, "valid": 4, "test": 4}
SAID = "this movie was sort of quite good"


def clips_of(split):
    """Of each clip: its id, what is said, its label, and its streams without padding."""
    random = np.random.default_rng(list(SPLITS).index(split))
    for number in range(SPLITS[split]):
        words = 3 + number % 4
        steps = {"text": words + 2, "audio": 9 + number % 7, "vision": 6 + number % 5}
        streams = {
            name: random.normal(size=(steps[name], width)).astype(np.float32)
            for name, width in WIDTHS.items()
        }
        label = float(np.round(streams["text"][:, 0].mean() * 3, 4))
        said = " ".join(SAID.split()[:words])
        yield f"{split}film{number // 2}$_${number % 2}", said, label, streams


def padded(arrays, longest, *, in_front=False):
    made = np.zeros((len(arrays), longest, arrays[0].shape[1]), dtype=np.float32)
    for row, array in zip(made, arrays, strict=True):
        row[longest - len(array) if in_front else 0 :][: len(array)] = array
    return made


def unaligned():
    """As MMSA's unaligned_50.pkl: BERT's features, numbers of pieces, lengths, several labels."""
    data = {}
    for split in SPLITS:
        ids, said, labels, streams = zip(*clips_of(split), strict=True)
        of = {name: [each[name] for each in streams] for name in WIDTHS}
        counts = [len(each) for each in of["text"]]
        mask = (np.arange(LONGEST["text"]) < np.array(counts)[:, None]).astype(np.float32)
        data[split] = {
            "raw_text": np.array(said),
            "audio": padded(of["audio"], LONGEST["audio"]).astype(np.float64),
            "vision": padded(of["vision"], LONGEST["vision"]),
            "id": np.array(ids),
            "text": padded(of["text"], LONGEST["text"]),
            "text_bert": np.stack([mask * 101, mask, mask * 0], axis=1),
            "audio_lengths": [len(each) for each in of["audio"]],
            "vision_lengths": [len(each) for each in of["vision"]],
            "annotations": np.array([signs(label) for label in labels]),
            "classification_labels": np.array([np.sign(label) + 1 for label in labels]),
            "regression_labels": np.array(labels, dtype=np.float32),
            "regression_labels_T": np.array(labels, dtype=np.float32) / 2,
        }
    data["train"]["audio"][0, 0, 2] = -np.inf  # COVAREP's logarithm of silence
    data["train"]["audio"][1, 1, :2] = np.nan, np.inf
    return data


def aligned(*, in_front=True):
    """As MMSA's aligned_50.pkl: no lengths; here padded in front, as MulT's files are."""
    data = {}
    for split in SPLITS:
        ids, said, labels, streams = zip(*clips_of(split), strict=True)
        some = [[name, [each[name][:5] for each in streams]] for name in WIDTHS]
        data[split] = {
            **{name: padded(arrays, 7, in_front=in_front) for name, arrays in some},
            "id": list(ids),
            "raw_text": list(said),
            "regression_labels": np.array(labels),
        }
        data[split]["vision"][0, -2:] = 0.0  # no face in the last two words
    return data


def signs(label):
    return ("Negative", "Neutral", "Positive")[int(np.sign(label)) + 1]


def dumped(path, data):
    path.write_bytes(pickle.dumps(data, protocol=4))
    return path
