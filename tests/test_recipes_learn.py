"""Every named recipe takes steps of the optimizer on made-up clips, and its loss falls.

Streams are as wide as those of the corpora that recipes are named for. The networks of pictures are
as narrow as they can be; at their published width they are tried in tests/test_video_networks.py.
"""

from functools import partial

import pytest
import torch

from tests.test_video_networks import READS, TINY
from tests.test_video_networks import WIDTHS as PICTURED
from training.batch import FusionBatch, OwnLosses, Stream
from training.losses import clip_losses
from training.models import build
from training.recipe import Task
from training.recipes import RECIPES, named

SCORE = Task(kind="regression", label="score")
MOOD = Task(kind="classes", label="mood", classes=("sad", "calm", "glad"))
EMOTIONS = Task(kind="labels", label="emotions", classes=("happy", "sad", "angry", "neutral"))

WIDE = {
    "mmlatch_mosei": {"text": 300, "audio": 74, "visual": 35},
    "late_fusion_mosei": {"text": 300, "audio": 74, "visual": 35},
    "mult_mosei": {"text": 300, "audio": 74, "visual": 35},
    "mult_mosi": {"text": 300, "audio": 5, "visual": 20},
    "mult_iemocap": {"text": 300, "audio": 74, "visual": 35},
    "msaf_mosei": {"visual": 35, "audio": 74, "text": 768},
    "unimodal": {"audio": 24},
}
TASKS = {"mult_iemocap": EMOTIONS, "decision_product": MOOD, **dict.fromkeys(TINY, MOOD)}
# Dropout of whole channels leaves too little of a narrow network.
CALM = {"hcn": {"dropout": 0.0}}
CLIPS, STEPS, TAKEN = 8, 6, 16
# A rate for many channels moves few too little in so few steps.
FASTER = {"lmf": 4.0, **dict.fromkeys(TINY, 10.0), "hcn": 30.0}


def widths_of(name):
    if name in TINY:
        return {stream: PICTURED[stream] for stream in READS[name]}
    return WIDE.get(name, {"text": 32, "audio": 24, "visual": 12})


def made_up(widths, task):
    """Clips of noise, every second of which lacks its last step."""
    draw = torch.Generator().manual_seed(0)
    mask = torch.ones(CLIPS, STEPS, dtype=torch.bool)
    mask[::2, -1] = False
    streams = {}
    for name, width in widths.items():
        values = torch.randn(CLIPS, STEPS, width, generator=draw)
        values = (values * 60 + 128).clamp(0, 255) if name == "video" else values
        streams[name] = Stream(values * mask[..., None], mask)
    target = {
        "regression": torch.linspace(-3, 3, CLIPS),
        "classes": torch.arange(CLIPS) % 3,
        "labels": (torch.rand(CLIPS, task.outputs, generator=draw) < 0.5).float(),
    }[task.kind]
    weight = torch.ones(CLIPS)
    return FusionBatch(streams=streams, target=target, weight=weight, keys=tuple("abcdefgh"))


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_learns_made_up_clips_by_heart(name):
    task, widths = TASKS.get(name, SCORE), widths_of(name)
    recipe = named(name, task, tuple(widths), {**TINY.get(name, {}), **CALM.get(name, {})})
    torch.manual_seed(recipe.seed)
    model, batch = build(recipe.model, widths, task.outputs).train(), made_up(widths, task)
    optimizer = torch.optim.AdamW(
        model.parameters(),
        lr=recipe.learning_rate * FASTER.get(name, 1.0),
        weight_decay=recipe.weight_decay,
    )
    criterion = partial(clip_losses, target=batch.target, recipe=recipe)
    losses = []
    for _ in range(TAKEN):
        if isinstance(model, OwnLosses):
            loss = sum(model.losses(batch, criterion).values()).mean()
        else:
            loss = criterion(model(batch)).mean()
        optimizer.zero_grad()
        loss.backward()
        if recipe.clip_norm is not None:
            torch.nn.utils.clip_grad_norm_(model.parameters(), recipe.clip_norm)
        optimizer.step()
        losses.append(loss.item())
    # Dropout goes on, so single steps are uneven.
    assert sum(losses[-4:]) < 0.95 * sum(losses[:4]), losses
