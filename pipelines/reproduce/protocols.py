"""Published experiments as data: corpus, split, models, seeds, metrics, and what was published.

A published figure stands here only with a source that can be looked at; what nobody could check is
left out, and the table shows a dash in its place. Figures that were read where others quote them
say so.
"""

import difflib
from collections.abc import Mapping
from typing import Any

from pipelines.corpora.cmu_folds import MOSI as MOSI_FOLDS
from pipelines.corpora.ntu import WHOLE
from pipelines.experiment import InputError
from pipelines.reproduce.archives import Archive
from pipelines.reproduce.protocol import Metric, Model, Protocol, Published

_SENTIMENT = (
    Metric(title="Acc-7", name="acc7"),
    Metric(title="Acc-2 has0", name="acc2_has0"),
    Metric(title="Acc-2 non0", name="acc2_non0"),
    Metric(title="F1 has0", name="f1_has0"),
    Metric(title="F1 non0", name="f1_non0"),
    Metric(title="MAE", name="mae", percent=False),
    Metric(title="Corr", name="corr", percent=False),
)

_ZEROS = (
    "has0 asks negative or not, of all clips; non0 asks negative or positive, of clips whose label "
    "is not 0. Published figures stand in the column that their authors' code computes."
)

_WEIGHTED = (
    "F1 is weighted by the support in the truth; MulT's and MMLatch's code weights by the "
    "prediction, which is higher for a model that leans to one side."
)

_ALIGNED = ("text", "audio", "visual")
# GloVe, COVAREP, FACET; of MOSI as MulT's files have them.
_WIDTHS = {"text": 300, "audio": 74, "visual": 35}
_MOSI_WIDTHS = {"text": 300, "audio": 5, "visual": 20}

# Of clips themselves: what needs no weights. The papers' features cannot be computed any more.
_LIGHT: Mapping[str, Mapping[str, Any]] = {
    "text": {"featurizer": "hashed-words"},
    "audio": {"featurizer": "logmel", "hop_ms": 10},
    "visual": {"featurizer": "face-motion", "fps": 5},
}

_NOT_THEIRS = ", which are not the paper's GloVe, COVAREP and FACET: no repetition of its result"

_MULT = "Y.-H. H. Tsai et al., ACL 2019, arXiv 1906.00295, word-aligned"
_MMSA = "github.com/thuiar/MMSA, results/result-stat.md (2025-01-15), mean of five seeds"
_BERT = "text is BERT, streams are not aligned, and settings are MMSA's"
_SVFAP = "quoted by L. Sun et al., arXiv 2401.00416, Table 12"
_MSAF = "L. Su et al., arXiv 2012.07175"

MOSEI = Protocol(
    name="mosei",
    corpus="CMU-MOSEI (A. Zadeh et al., ACL 2018): sentiment from -3 to 3",
    split="the folds of the CMU Multimodal SDK",
    label="sentiment",
    task="regression",
    metrics=_SENTIMENT,
    features=_LIGHT,
    not_theirs=_NOT_THEIRS,
    seeds=5,
    notes=(_ZEROS, _WEIGHTED),
    sizes={"train": (16_326, 16_322), "valid": (1871,), "test": (4659,)},
    models=(
        Model(
            recipe="mmlatch_mosei",
            title="MMLatch",
            streams=_ALIGNED,
            time_base="one",
            widths=_WIDTHS,
            published=(
                Published(
                    what="MMLatch",
                    values={"Acc-2 non0": 82.4},
                    source="G. Paraskevopoulos et al., ICASSP 2022, arXiv 2201.09828, by its entry "
                    "in the Papers with Code archive (paperswithcode2.com, paper 273242)",
                    chosen_on="valid",
                ),
            ),
        ),
        Model(
            recipe="late_fusion_mosei",
            title="late fusion, MMLatch's baseline",
            streams=_ALIGNED,
            time_base="one",
            widths=_WIDTHS,
        ),
        Model(
            recipe="mult_mosei",
            title="MulT",
            streams=_ALIGNED,
            time_base="any",
            widths=_WIDTHS,
            published=(
                Published(
                    what="MulT",
                    values={
                        "Acc-7": 51.8,
                        "Acc-2 non0": 82.5,
                        "F1 non0": 82.3,
                        "MAE": 0.580,
                        "Corr": 0.703,
                    },
                    source=f"{_MULT}, quoted by zjujournals.com, 59(8), 2025, Table 3",
                    chosen_on="valid",
                ),
                Published(
                    what="MulT in MMSA",
                    values={
                        "Acc-7": 52.84,
                        "Acc-2 has0": 81.15,
                        "Acc-2 non0": 84.63,
                        "F1 has0": 81.56,
                        "F1 non0": 84.52,
                        "MAE": 0.5593,
                        "Corr": 0.7331,
                    },
                    source=_MMSA,
                    chosen_on="valid",
                    note=_BERT,
                ),
            ),
        ),
        Model(
            recipe="msaf_mosei",
            title="MSAF",
            streams=("visual", "audio", "bert"),
            widths={"bert": 768, "audio": 74, "visual": 35},
        ),
    ),
)

MOSI = Protocol(
    name="mosi",
    corpus="CMU-MOSI (A. Zadeh et al., arXiv 1606.06259): sentiment from -3 to 3",
    split="the folds of the CMU Multimodal SDK",
    label="sentiment",
    task="regression",
    metrics=_SENTIMENT,
    features=_LIGHT,
    not_theirs=_NOT_THEIRS,
    seeds=5,
    notes=(_ZEROS, _WEIGHTED),
    sizes={"train": (1284,), "valid": (229,), "test": (686,)},
    recordings=MOSI_FOLDS,
    models=(
        Model(
            recipe="mult_mosi",
            title="MulT",
            streams=_ALIGNED,
            time_base="any",
            widths=_MOSI_WIDTHS,
            published=(
                Published(
                    what="MulT",
                    values={
                        "Acc-7": 40.0,
                        "Acc-2 non0": 83.0,
                        "F1 non0": 82.8,
                        "MAE": 0.871,
                        "Corr": 0.698,
                    },
                    source=f"{_MULT}, quoted by arXiv 2408.14809 (GSIFN), which calls it unaligned",
                    chosen_on="valid",
                ),
                Published(
                    what="MulT in MMSA",
                    values={
                        "Acc-7": 36.91,
                        "Acc-2 has0": 79.71,
                        "Acc-2 non0": 80.98,
                        "F1 has0": 79.63,
                        "F1 non0": 80.95,
                        "MAE": 0.8799,
                        "Corr": 0.7022,
                    },
                    source=_MMSA,
                    chosen_on="valid",
                    note=_BERT,
                ),
            ),
        ),
    ),
)

_EMOTIONS = ("happy", "sad", "angry", "neutral")

IEMOCAP = Protocol(
    name="iemocap",
    corpus="IEMOCAP (C. Busso et al., 2008): four questions of yes and no",
    split="that of MulT's data",
    label="emotions",
    task="labels",
    metrics=tuple(
        Metric(title=f"{emotion} {title}", name=name, label=emotion)
        for emotion in _EMOTIONS
        for title, name in (("Acc", "accuracy"), ("F1", "f1_weighted"))
    ),
    features=_LIGHT,
    not_theirs=_NOT_THEIRS,
    own_split="5 folds, a session each, tested on once; the next one validates. Not the paper's",
    own_folds=5,
    seeds=5,
    notes=(
        "Chance is high: who says the commoner answer to each question is right for most clips.",
        _WEIGHTED,
    ),
    models=(
        Model(
            recipe="mult_iemocap",
            title="MulT",
            streams=_ALIGNED,
            time_base="any",
            widths=_WIDTHS,
        ),
    ),
)

_CLASSES = (Metric(title="Acc", name="accuracy"), Metric(title="UAR", name="uar"))

_ON_FOLD = (
    "The published figures are of the best epoch on the fold that they report, with no clips to "
    "validate on: hold them against the rows that do the same, which are marked."
)

RAVDESS = Protocol(
    name="ravdess",
    corpus="RAVDESS (S. R. Livingstone, F. A. Russo, PLOS ONE 13(5), 2018): eight emotions of "
    "speech, sound and picture",
    split="6 folds of 4 actors in their order, each tested on once; the next fold validates, the "
    "other four train",
    label="emotion",
    task="classes",
    metrics=_CLASSES,
    seeds=3,
    folds=6,
    best_on_test=True,
    monitor="valid_accuracy",
    features={
        "video": {
            "featurizer": "frames",
            "crop": "face",
            "size": 224,
            "picture": 640,
            "fps": 12,
        },
        "audio": {"featurizer": "mfcc", "deltas": 0, "hop_ms": 12},
    },
    notes=(_ON_FOLD,),
    models=(
        Model(
            recipe="resnext3d",
            title="3D ResNeXt-50, video alone",
            streams=("video",),
            published=(
                Published(
                    what="3D ResNeXt-50",
                    values={"Acc": 62.99},
                    source=f"{_MSAF}, {_SVFAP}",
                    chosen_on="test",
                ),
            ),
        ),
        Model(recipe="sound_cnn", title="1D CNN over MFCC, audio alone", streams=("audio",)),
        Model(
            recipe="msaf_ravdess",
            title="MSAF",
            streams=("video", "audio"),
            start={"video": "resnext3d", "audio": "sound_cnn"},
            published=(
                Published(
                    what="MSAF",
                    values={"Acc": 74.86},
                    source=f"{_MSAF}, {_SVFAP}",
                    chosen_on="test",
                ),
            ),
        ),
    ),
    archive=Archive(
        what="RAVDESS at Zenodo, record 1188976: the films of speech",
        address="https://zenodo.org",
        record="1188976",
        files=r"Video_Speech_Actor_\d\d\.zip",
        count=24,
        licence="CC BY-NC-SA 4.0: not for commercial use",
    ),
)

_ON_SUBJECTS = (
    "The published figures are of the best epoch on subjects that belong to those they report; the "
    "rows of this project choose it on subjects of the training half."
)

NTU = Protocol(
    name="ntu",
    corpus="NTU RGB+D 60 (A. Shahroudy et al., CVPR 2016): sixty actions",
    split="cross-subject: 20 subjects train, some of them validate, the other 20 test; recordings "
    "whose skeletons are known to be missing are left out",
    label="action",
    task="classes",
    metrics=_CLASSES,
    seeds=3,
    features={
        "video": {"featurizer": "frames", "crop": "centre", "size": 224, "fps": 12},
        "skeleton": {"featurizer": "skeleton", "stream": "skeleton", "persons": 2},
    },
    notes=(_ON_SUBJECTS,),
    sizes={"train+valid": (WHOLE["training"],), "test": (WHOLE["testing"],)},
    models=(
        Model(
            recipe="i3d",
            title="I3D, video alone",
            streams=("video",),
            published=(
                Published(
                    what="I3D",
                    values={"Acc": 85.63},
                    source="the name of the checkpoint that github.com/anita-hu/MSAF starts from "
                    "(ntu_rgb_d/README.md)",
                    chosen_on="test",
                ),
            ),
        ),
        Model(
            recipe="hcn",
            title="HCN, skeletons alone",
            streams=("skeleton",),
            published=(
                Published(
                    what="HCN",
                    values={"Acc": 85.24},
                    source="the name of the checkpoint that github.com/anita-hu/MSAF starts from "
                    "(ntu_rgb_d/README.md)",
                    chosen_on="test",
                ),
            ),
        ),
        Model(
            recipe="msaf_ntu",
            title="MSAF",
            streams=("video", "skeleton"),
            start={"video": "i3d", "skeleton": "hcn"},
            published=(
                Published(
                    what="MSAF (I3D + HCN)",
                    values={"Acc": 92.24},
                    source=f"{_MSAF}, by its entry in the Papers with Code archive "
                    "(paperswithcode2.com, paper 194132)",
                    chosen_on="test",
                ),
            ),
        ),
    ),
)

_OWN = (
    "No figure of these models on this corpus has a source that could be checked; the protocol is "
    "that of the corpus's paper, the settings of training are this project's."
)

UTD_MHAD = Protocol(
    name="utd-mhad",
    corpus="UTD-MHAD (C. Chen, R. Jafari, N. Kehtarnavaz, ICIP 2015): 27 actions",
    split="subjects 1, 3, 5, 7 train, one of them validates; 2, 4, 6, 8 test",
    label="action",
    task="classes",
    metrics=_CLASSES,
    seeds=5,
    features={
        "skeleton": {"featurizer": "skeleton", "stream": "skeleton", "joints": 20},
        "inertial": {"featurizer": "numbers", "stream": "inertial", "dims": 6},
    },
    notes=(_OWN,),
    models=(
        Model(
            recipe="hcn",
            title="HCN, skeletons alone",
            streams=("skeleton",),
            settings={"joints": 20, "centre": 2},
            # The recipe's own are for a corpus a hundred times as large.
            train={
                "epochs": 100,
                "patience": 20,
                "global_batch": 32,
                "learning_rate": 1e-3,
                "schedule": "plateau",
            },
        ),
        Model(recipe="unimodal", title="LSTM, inertial sensor alone", streams=("inertial",)),
        Model(recipe="msaf", title="MSAF of two LSTMs", streams=("skeleton", "inertial")),
    ),
)

PROTOCOLS: Mapping[str, Protocol] = {
    each.name: each for each in (MOSEI, MOSI, IEMOCAP, RAVDESS, NTU, UTD_MHAD)
}


def find(name: str) -> Protocol:
    """The protocol of a name. Raises InputError, which names the nearest, when there is none."""
    if name not in PROTOCOLS:
        near = difflib.get_close_matches(name, PROTOCOLS, n=1)
        meant = f" (did you mean {near[0]!r}?)" if near else ""
        raise InputError(
            f"there is no published experiment {name!r}{meant}; there are {', '.join(PROTOCOLS)}"
        )
    return PROTOCOLS[name]
