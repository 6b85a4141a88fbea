"""Recipes that repeat a paper's settings, on features that were imported or on raw clips."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

from training.recipe import Pooling, Recipe, Scalar, Schedule
from training.recipe_builder import Asked, Setting, build

# How the authors of MMLatch train on CMU-MOSEI: AdamW without decay is their Adam, and the rate is
# halved on a plateau of two epochs, down to a twentieth, as everywhere where nothing else is said.
_MMLATCH_MOSEI: Mapping[str, Setting] = {
    "epochs": 100,
    "patience": 10,
    "global_batch": 32,
    "learning_rate": 5e-4,
    "weight_decay": 0.0,
    "clip_norm": None,
    "schedule": Schedule(cooldown=2, floor=1 / 20),
}

_MMLATCH_SIZES: Mapping[str, Scalar] = {
    "hidden": 100,
    "encoder_dropout": 0.2,
    "fusion_dropout": 0.1,
    "pooling": "sum",
}

# Of the paper's table, what its three corpora have in common.
_MULT_TRAINING: Mapping[str, Setting] = {
    "learning_rate": 1e-3,
    "weight_decay": 0.0,
    "schedule": Schedule(factor=0.1, patience=20),
}

_MULT_SIZES: Mapping[str, Scalar] = {"width": 40, "layers": 4, "output_dropout": 0.1}

# How the authors of MSAF train on CMU-MOSEI; AdamW without decay is their Adam.
_MSAF_MOSEI: Mapping[str, Setting] = {
    "epochs": 10,
    "patience": 10,
    "global_batch": 16,
    "learning_rate": 1e-3,
    "weight_decay": 0.0,
    "clip_norm": None,
    "loss": "mse",
    "schedule": Schedule(kind="constant"),
    "pooling": Pooling(kind="steps", steps=50),
}

_MSAF_SIZES: Mapping[str, Scalar] = {
    "channels": "32, 64, 128",
    "block_width": 16,
    "reduction": 2,
    "segments": 5,
    "block_dropout": 0.2,
}

# How the authors of MSAF train their networks of whole pictures. Clips that lack a stream would
# count as 0 in the statistics of BatchNorm.
_RAVDESS: Mapping[str, Setting] = {
    "epochs": 70,
    "patience": 70,
    "global_batch": 4,
    "learning_rate": 1e-3,
    "weight_decay": 0.0,
    "clip_norm": None,
    "schedule": Schedule(kind="constant"),
    "take_absent": False,
    # Longer streams are thinned; pictures must not be averaged.
    "pooling": Pooling(kind="own", most=30_000, how="first"),
}

_NTU: Mapping[str, Setting] = {
    **_RAVDESS,
    "epochs": 20,
    "patience": 20,
    "learning_rate": 1e-4,
    "weight_decay": 1e-4,
    "schedule": Schedule(kind="step", at=(5, 20), factor=0.1),
}


def mmlatch_mosei(asked: Asked) -> Recipe:
    """MMLatch as its authors train it on CMU-MOSEI.

    The paper's streams are GloVe words, COVAREP and FACET, in this order, averaged over each word.
    """
    sizes = {**_MMLATCH_SIZES, "mask_dropout": 0.2, "mask_rnn_dropout": 0.1}
    return build("mmlatch_mosei", asked, kind="mmlatch", model=sizes, training=_MMLATCH_MOSEI)


def late_fusion_mosei(asked: Asked) -> Recipe:
    """The baseline of `mmlatch_mosei`: the same without feedback."""
    return build(
        "late_fusion_mosei",
        asked,
        kind="late_fusion",
        model=_MMLATCH_SIZES,
        training=_MMLATCH_MOSEI,
    )


def mult_mosei(asked: Asked) -> Recipe:
    """MulT as its authors train it on CMU-MOSEI.

    The paper's streams are GloVe words, COVAREP and FACET, in this order. As theirs, the
    learning rate is divided by ten when more than 20 epochs brought no better validation loss, and
    no run stops early.
    """
    sizes = {
        **_MULT_SIZES,
        "heads": 8,
        "kernels": "1,3,3",
        "embedding_dropout": 0.3,
        **_blocks(0.1),
    }
    training = {**_MULT_TRAINING, "global_batch": 16, "clip_norm": 1.0, **_epochs(20)}
    return build("mult_mosei", asked, kind="mult", model=sizes, training=training)


def mult_mosi(asked: Asked) -> Recipe:
    """MulT as its authors train it on CMU-MOSI; see `mult_mosei`."""
    sizes = {
        **_MULT_SIZES,
        "heads": 10,
        "kernels": "1,3,3",
        "embedding_dropout": 0.2,
        **_blocks(0.2),
    }
    training = {**_MULT_TRAINING, "global_batch": 128, "clip_norm": 0.8, **_epochs(100)}
    return build("mult_mosi", asked, kind="mult", model=sizes, training=training)


def mult_iemocap(asked: Asked) -> Recipe:
    """MulT as its authors train it on IEMOCAP; see `mult_mosei`.

    Theirs are four questions at once (happy, sad, angry, neutral), each of two outputs and a cross
    entropy of two ways. That is a task of several labels, with one output for each: the softmax of
    two scores is the sigmoid of their difference, so "bce" is the same loss. Scorecards have each
    emotion's accuracy and weighted F1 by itself, as the paper reports them.
    """
    sizes = {
        **_MULT_SIZES,
        "heads": 10,
        "kernels": "3,5,3",
        "embedding_dropout": 0.3,
        **_blocks(0.25),
    }
    training = {
        **_MULT_TRAINING,
        "global_batch": 32,
        "clip_norm": 0.8,
        "learning_rate": 2e-3,
        **_epochs(30),
    }
    return build("mult_iemocap", asked, kind="mult", model=sizes, training=training)


def msaf_mosei(asked: Asked) -> Recipe:
    """MSAF as its authors train it on CMU-MOSEI.

    The paper's streams are FACET, COVAREP and BERT, in this order, of 50 steps each.
    """
    return build("msaf_mosei", asked, kind="msaf", model=_MSAF_SIZES, training=_MSAF_MOSEI)


def msaf_ravdess(asked: Asked) -> Recipe:
    """Emotions from faces and voices, as MSAF's authors train on RAVDESS: pixels, then MFCC.

    Both branches are to start from weights that `resnext3d` and `sound_cnn` were trained to on the
    same fold: `start` {"video": FILE, "audio": FILE}. Nothing stops early, as in the release; but
    the best epoch is chosen on validation clips, where the release chooses on those it reports.
    Pictures are mirrored by clip, not cropped anew.
    """
    return _network("msaf_ravdess", asked, raw=asked.streams[:1], training=_RAVDESS)


def resnext3d(asked: Asked) -> Recipe:
    """The video branch of `msaf_ravdess` alone: one stream of pixels."""
    return _network("resnext3d", asked, raw=asked.streams, training=_RAVDESS)


def sound_cnn(asked: Asked) -> Recipe:
    """The sound branch of `msaf_ravdess` alone: one stream of MFCC."""
    return _network("sound_cnn", asked, raw=(), training=_RAVDESS)


def msaf_ntu(asked: Asked) -> Recipe:
    """Actions from pictures and joints, in this order, as MSAF's authors train on NTU RGB+D.

    Both branches are to start from weights that `i3d` and `hcn` were trained to: `start`
    {"video": FILE, "skeleton": FILE}. The release runs each batch twice, and updates first for the
    loss of one branch, then for that of the other; this adds the two losses, in one update a batch.
    The learning rate is divided by ten after 5 epochs, as there; weights decay apart from the
    gradient (AdamW).
    """
    chosen = replace(asked, settings={"objective": "branches", **asked.settings})
    return _network("msaf_ntu", chosen, raw=asked.streams, training=_NTU)


def i3d(asked: Asked) -> Recipe:
    """The video branch of `msaf_ntu` alone: one stream of pixels."""
    return _network("i3d", asked, raw=asked.streams, training=_NTU)


def hcn(asked: Asked) -> Recipe:
    """The skeleton branch of `msaf_ntu` alone: one stream of joints."""
    return _network("hcn", asked, raw=asked.streams, training=_NTU)


def _blocks(share: float) -> dict[str, Scalar]:
    """The "attention block dropout" of MulT's table."""
    return {f"{name}_dropout": share for name in ("attention", "relu", "residual")}


def _epochs(count: int) -> dict[str, Setting]:
    """So many epochs, whatever the validation loss."""
    return {"epochs": count, "patience": count}


def _network(
    name: str, asked: Asked, *, raw: Sequence[str], training: Mapping[str, Setting]
) -> Recipe:
    """The recipe of a network that scales some of its streams by itself."""
    return build(name, asked, model={}, training={**training, "raw": raw})
