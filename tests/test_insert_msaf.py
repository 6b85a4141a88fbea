"""MSAF between layers of networks that are not edited: the same numbers, gradients, errors."""

import threading
import warnings
from collections import namedtuple

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from training.models.insert_msaf import insert_msaf
from training.models.msaf import Msaf, MsafSettings

IDENTITY = MsafSettings(floor=1.0)


class Pictures(nn.Module):
    """A plain CNN with a residual sum, dropout and a head: no chain that could simply be cut."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.layer1 = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU())
        self.dropout = nn.Dropout(0.5)
        self.layer2 = nn.Sequential(nn.Conv2d(8, 16, 3, stride=2), nn.ReLU())
        self.head = nn.Linear(16, 5)

    def forward(self, x):
        x = self.stem(x).relu()
        x = self.dropout(x + self.layer1(x))
        return self.head(self.layer2(x).mean((2, 3)))


class Sounds(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv1d(4, 6, 3, padding=1)
        self.conv2 = nn.Conv1d(6, 12, 3, padding=1)
        self.head = nn.Linear(12, 5)

    def forward(self, x, *, gain=1.0):
        x = self.conv1(x).relu() * gain
        return self.head(self.conv2(x).relu().mean(2))


AT = [{"video": "layer1", "audio": "conv1"}, {"video": "layer2", "audio": "conv2"}]


def two():
    torch.manual_seed(0)
    return {"video": Pictures().eval(), "audio": Sounds().eval()}


def some(clips=3):
    draw = torch.Generator().manual_seed(1)
    return {
        "video": torch.randn(clips, 3, 9, 9, generator=draw),
        "audio": torch.randn(clips, 4, 20, generator=draw),
    }


def by_hand(fused, inputs):
    """The same networks, written out anew with the modules between their layers."""
    video, audio, (first, second) = fused.branches["video"], fused.branches["audio"], fused.fusions
    v, a = video.stem(inputs["video"]).relu(), audio.conv1(inputs["audio"])
    layer, a = first([video.layer1(v), a])
    v = video.layer2(video.dropout(v + layer))
    v, a = second([v, audio.conv2(a.relu())])
    return {"video": video.head(v.mean((2, 3))), "audio": audio.head(a.relu().mean(2))}


def test_outputs_and_gradients_are_those_of_networks_written_for_it():
    fused = insert_msaf(two(), AT, MsafSettings(block_dropout=0)).double()
    inputs = {name: x.double().requires_grad_() for name, x in some().items()}
    wanted = [*inputs.values(), *fused.parameters()]
    found = []
    for outputs in (fused(inputs), by_hand(fused, inputs)):
        loss = sum(y.square().sum() for y in outputs.values())
        found.append((outputs, torch.autograd.grad(loss, wanted)))
    (ours, our_gradients), (theirs, their_gradients) = found
    assert list(ours) == ["video", "audio"]
    for name in ours:
        torch.testing.assert_close(ours[name], theirs[name], atol=1e-12, rtol=0)
    for mine, other in zip(our_gradients, their_gradients, strict=True):
        torch.testing.assert_close(mine, other, atol=1e-12, rtol=0)


def test_with_a_floor_of_one_branches_compute_what_they_did():
    branches, inputs = two(), some()
    wanted = {name: branch(inputs[name]) for name, branch in branches.items()}
    fused = insert_msaf(branches, AT, IDENTITY)
    for name, output in fused.eval()(inputs).items():
        assert torch.equal(output, wanted[name])


def test_weights_stay_the_branches_own_and_have_their_names():
    branches = two()
    fused = insert_msaf(branches, AT)
    state = fused.state_dict()
    for name, branch in branches.items():
        for key, tensor in branch.state_dict().items():
            assert state[f"branches.{name}.{key}"].data_ptr() == tensor.data_ptr()
    rest = {key.split(".")[0] for key in state} - {"branches"}
    assert rest == {"fusions"}
    assert all(parameter.requires_grad for parameter in fused.fusions.parameters())


def test_a_branch_called_alone_is_what_it_was():
    branches, inputs = two(), some()
    wanted = branches["video"](inputs["video"])
    fused = insert_msaf(branches, AT).eval()
    fused(inputs)
    assert torch.equal(fused.branches["video"](inputs["video"]), wanted)
    assert not any(layer._forward_hooks for layer in fused.modules())


def test_equal_seeds_give_equal_dropout():
    fused = insert_msaf(two(), AT, MsafSettings(block_dropout=0.3)).train()
    outputs = []
    for _ in range(2):
        torch.manual_seed(7)
        outputs.append(fused(some())["video"])
    assert torch.equal(*outputs)


def test_modes_of_the_caller_are_those_of_the_branches():
    seen = []

    class Nosy(Sounds):
        def forward(self, x):
            seen.append((torch.is_grad_enabled(), torch.is_inference_mode_enabled()))
            seen.append(self.conv1(x).dtype)
            return super().forward(x)

    fused = insert_msaf({"video": Pictures(), "audio": Nosy()}, AT[1:]).eval()
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        fused(some())
    with torch.inference_mode():
        fused(some())
    fused(some())
    assert seen == [
        *[(False, False), torch.bfloat16],
        *[(False, True), torch.float32],
        *[(True, False), torch.float32],
    ]


def test_one_network_may_be_two_branches():
    audio = Sounds().eval()
    left, right = torch.randn(2, 4, 9), torch.randn(2, 4, 9)
    fused = insert_msaf({"left": audio, "right": audio}, [{"left": "conv1", "right": "conv1"}])
    outputs = fused.eval()({"left": left, "right": right})
    first, second = fused.fusions[0]([audio.conv1(left), audio.conv1(right)])
    for name, x in (("left", first), ("right", second)):
        wanted = audio.head(audio.conv2(x.relu()).relu().mean(2))
        torch.testing.assert_close(outputs[name], wanted)


def test_a_point_may_leave_a_branch_out():
    torch.manual_seed(0)
    branches = {"a": Sounds(), "b": Sounds(), "c": Sounds()}
    at = [{"a": "conv1", "c": "conv1"}, {"c": "conv2", "b": "conv1"}]
    fused = insert_msaf(branches, at, IDENTITY).eval()
    x = torch.randn(2, 4, 9)
    outputs = fused({"a": x, "b": (x,), "c": {"x": x, "gain": 2.0}})
    assert torch.equal(outputs["a"], branches["a"](x))
    assert torch.equal(outputs["b"], branches["b"](x))
    assert torch.equal(outputs["c"], branches["c"](x, gain=2.0))


# transformers backbones


def backbones():
    import transformers as hf

    small = {
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 48,
    }
    torch.manual_seed(0)
    speech = hf.Wav2Vec2Model(
        hf.Wav2Vec2Config(
            **small,
            conv_dim=(16, 16),
            conv_kernel=(10, 8),
            conv_stride=(5, 4),
            num_feat_extract_layers=2,
            num_conv_pos_embeddings=16,
            num_conv_pos_embedding_groups=2,
            apply_spec_augment=False,
        )
    )
    text = hf.BertModel(hf.BertConfig(**small, vocab_size=50))
    return {"audio": speech.eval(), "text": text.eval()}


def spoken():
    draw = torch.Generator().manual_seed(2)
    mask = torch.ones(2, 6, dtype=torch.long)
    mask[1, 4:] = 0
    text = {"input_ids": torch.randint(50, (2, 6), generator=draw), "attention_mask": mask}
    return {"audio": torch.randn(2, 800, generator=draw), "text": text}


BACKBONES_AT = [
    {"audio": "encoder.layers.0", "text": "encoder.layer.0"},
    {"audio": "encoder.layers.1", "text": "encoder.layer.1"},
]
LAST = {"audio": -1, "text": -1}


def test_transformers_are_fused_and_with_a_floor_of_one_are_as_they_were():
    branches, inputs = backbones(), spoken()
    wanted = {
        "audio": branches["audio"](inputs["audio"]).last_hidden_state,
        "text": branches["text"](**inputs["text"]).last_hidden_state,
    }
    masks = {"text": inputs["text"]["attention_mask"].bool()}
    for settings in (IDENTITY, MsafSettings(segments=2)):
        fused = insert_msaf(branches, BACKBONES_AT, settings, channels=LAST).eval()
        assert [fusion.channels for fusion in fused.fusions] == [(32, 32), (32, 32)]
        outputs = fused(inputs, masks)
        for name, output in outputs.items():
            same = torch.equal(output.last_hidden_state, wanted[name])
            assert same == (settings == IDENTITY)


def test_gradients_reach_transformers_a_cnn_and_what_lies_between():
    branches = {**backbones(), "video": Pictures().train()}
    at = [{"audio": "encoder.layers.0", "text": "encoder.layer.0", "video": "layer2"}]
    fused = insert_msaf(branches, at, channels=LAST)
    outputs = fused({**spoken(), "video": some(2)["video"]})
    # The loss of one branch alone: what it needs of the others must come through the fusion.
    outputs["video"].square().sum().backward()
    for name in (
        "branches.audio.feature_extractor.conv_layers.0.conv.weight",
        "branches.text.embeddings.word_embeddings.weight",
        "branches.video.stem.weight",
        "fusions.0.join.weight",
        "fusions.0.attention.weight",
    ):
        assert fused.get_parameter(name).grad.abs().sum() > 0, name


def test_masks_are_thinned_to_the_steps_of_a_layer():
    fused = insert_msaf(two(), AT[:1], MsafSettings(block_dropout=0)).eval()
    inputs = some()
    mask = torch.arange(40) < torch.tensor([40, 11, 0])[:, None]
    louder = {**inputs, "audio": inputs["audio"].clone()}
    louder["audio"][1, :, 8:] = 9  # heard by step 7 as well, but not by those before it
    louder["audio"][2] = 9
    found = [fused(each, {"audio": mask})["video"] for each in (inputs, louder)]
    torch.testing.assert_close(*found)
    assert not torch.allclose(fused(louder)["video"], found[0])


Pair = namedtuple("Pair", "x more")


class Gives(nn.Module):
    """A layer that gives its tensor in some packing."""

    def __init__(self, pack):
        super().__init__()
        self.layer = nn.Linear(3, 4)
        self.pack = pack

    def forward(self, x):
        return self.pack(self.layer(x))


@pytest.mark.parametrize(
    ("pack", "unpack"),
    [
        (lambda x: x, lambda out: out),
        (lambda x: (x, 5), lambda out: out[0]),
        (lambda x: [x], lambda out: out[0]),
        (lambda x: Pair(x, 5), lambda out: out.x),
        (lambda x: {"x": x, "more": 5}, lambda out: out["x"]),
    ],
)
def test_the_first_tensor_is_fused_and_the_packing_kept(pack, unpack):
    torch.manual_seed(0)
    branch = nn.Sequential(Gives(pack), nn.Identity())
    fused = insert_msaf({"a": branch, "b": nn.Sequential(nn.Linear(3, 4))}, [{"a": "0", "b": "0"}])
    x = torch.randn(2, 3)
    outputs = fused.eval()({"a": x, "b": x})
    wanted, _ = fused.fusions[0]([unpack(branch(x)), fused.branches["b"](x)])
    assert type(outputs["a"]) is type(branch(x))
    torch.testing.assert_close(unpack(outputs["a"]), wanted)


# What goes wrong


class Fails(Sounds):
    def forward(self, x):
        self.conv1(x)
        raise ArithmeticError("in the middle")


class Skips(Sounds):
    def forward(self, x):
        return self.conv1(x)


class Repeats(Sounds):
    def forward(self, x):
        self.conv1(x)
        return self.conv1(x)


class Backwards(Sounds):
    def forward(self, x):
        self.conv2(x.repeat(1, 2, 1)[:, :6])
        return super().forward(x)


class Blind(Sounds):
    def forward(self, x):
        with torch.no_grad():
            return super().forward(x)


class Checkpoints(Sounds):
    def forward(self, x):
        return checkpoint(super().forward, x, use_reentrant=False)


@pytest.mark.parametrize("first", ["video", "audio"])
@pytest.mark.parametrize(
    ("audio", "error", "message"),
    [
        (Fails, ArithmeticError, "in the middle"),
        (Skips, RuntimeError, "branch 'audio' ended without passing 'conv2'"),
        (Repeats, RuntimeError, "branch 'audio' passes 'conv1' twice"),
        (Backwards, RuntimeError, "branch 'audio' passes 'conv2' before 'conv1'"),
        (Blind, RuntimeError, "gradients are switched off at 'conv1' of branch 'audio'"),
        (
            Checkpoints,
            RuntimeError,
            "'conv1' of branch 'audio' lies in a part that is checkpointed",
        ),
    ],
)
def test_what_goes_wrong_in_a_branch_is_raised_and_no_thread_is_left(audio, error, message, first):
    branches = {"video": Pictures(), "audio": audio()}
    fused = insert_msaf({first: branches.pop(first), **branches}, AT).eval()
    threads = threading.active_count()
    with pytest.raises(error, match=message):
        fused(some())
    assert threading.active_count() == threads
    assert not any(layer._forward_hooks for layer in fused.modules())
    if audio in (Blind, Checkpoints):
        with torch.no_grad():
            assert fused(some())["audio"].shape == (3, 5)


def test_the_whole_can_be_recomputed_in_the_backward_pass():
    fused = insert_msaf(two(), AT, MsafSettings(block_dropout=0)).eval()
    inputs = some()
    x = inputs["video"].requires_grad_()
    plain = torch.autograd.grad(fused(inputs)["audio"].square().sum(), x)
    threads = threading.active_count()
    again = checkpoint(lambda x: fused({**inputs, "video": x})["audio"], x, use_reentrant=False)
    torch.testing.assert_close(torch.autograd.grad(again.square().sum(), x), plain)
    assert threading.active_count() == threads


def test_a_checkpoint_elsewhere_in_a_branch_is_no_matter():
    class Thrifty(Pictures):
        def forward(self, x):
            x = checkpoint(lambda x: self.stem(x).relu(), x, use_reentrant=False)
            return self.head(self.layer2(x + self.layer1(x)).mean((2, 3)))

    fused = insert_msaf({"video": Thrifty(), "audio": Sounds()}, AT).eval()
    fused(some())["audio"].sum().backward()
    assert fused.branches["video"].stem.weight.grad.abs().sum() > 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"at": []}, "no point at which to insert MSAF"),
        ({"at": [{"video": "layer1"}]}, r"point 0 names layers of \['video'\]"),
        (
            {"at": [{"vide": "layer1", "audio": "conv1"}]},
            "no branch 'vide'; the nearest are 'video'",
        ),
        (
            {"at": [{"video": "layer1", "audio": "conv3"}]},
            "branch 'audio' has no layer 'conv3'; the nearest are 'conv2', 'conv1'",
        ),
        ({"at": [AT[0], AT[0]]}, r"'video' is fused behind \['layer1', 'layer1'\]"),
        ({"settings": [IDENTITY]}, "1 settings for 2 points"),
        ({"widths": {"audo": [3]}}, "no branch 'audo'; the nearest are 'audio'"),
        ({"widths": {"audio": [3]}}, r"takes part in 2 points, and \[3\] was given"),
        ({"channels": {"audio": [1, 1, 1]}}, r"2 points, and \[1, 1, 1\] was given"),
        (
            {"at": [{"video": "dropout", "audio": "conv1"}]},
            r"'dropout' of branch 'video' \(Dropout\) does not tell how many channels",
        ),
    ],
)
def test_points_that_cannot_be_say_why(change, message):
    with pytest.raises(ValueError, match=message):
        insert_msaf(**{"branches": two(), "at": AT, **change})


def test_a_branch_that_no_point_names_is_refused():
    with pytest.raises(ValueError, match=r"branch 'text' is fused behind \[\]"):
        insert_msaf({**two(), "text": Sounds()}, AT)


@pytest.mark.parametrize(
    ("change", "inputs", "message"),
    [
        (
            {"widths": {"video": [8, 24]}},
            {},
            "'layer2' of branch 'video' gives 16 channels in axis",
        ),
        ({"channels": {"audio": 3}}, {}, r"'conv1' of branch 'audio' gives \[3, 6, 20\]"),
        ({}, {"audi": torch.zeros(3, 4, 9)}, "no branch 'audi'; the nearest are 'audio'"),
        ({}, {"audio": torch.zeros(2, 4, 9)}, r"3 clips in modality 0, and 2 in modality 1"),
    ],
)
def test_inputs_that_do_not_fit_say_why(change, inputs, message):
    with pytest.raises(ValueError, match=message):
        insert_msaf(two(), AT, **change)({**some(), **inputs})


def test_a_branch_without_input_and_a_layer_without_tensor_are_refused():
    with pytest.raises(ValueError, match=r"branches \['video'\] have no input"):
        insert_msaf(two(), AT)({"audio": some()["audio"]})
    odd = nn.Sequential(Gives(lambda x: "text"))
    fused = insert_msaf({"a": odd, "b": odd}, [{"a": "0", "b": "0"}])
    with pytest.raises(ValueError, match="'0' of branch 'a' gives str"):
        fused({"a": torch.zeros(2, 3), "b": torch.zeros(2, 3)})


@pytest.mark.parametrize("early", [False, True])
def test_compiled_branches_and_parts_of_them_are_fused(early):
    settings = MsafSettings(block_dropout=0)
    plain, inputs = insert_msaf(two(), AT, settings).eval(), some()
    branches = dict(plain.branches)
    compiled = torch.compile(Pictures().eval(), backend="eager")
    compiled.load_state_dict(
        {f"_orig_mod.{k}": v for k, v in branches["video"].state_dict().items()}
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if early:
            compiled(inputs["video"])  # before there are any hooks
        branches["audio"].conv2.compile(backend="eager")
        at = [{**point, "video": f"_orig_mod.{point['video']}"} for point in AT]
        fused = insert_msaf({"video": compiled, "audio": branches["audio"]}, at, settings).eval()
        fused.fusions.load_state_dict(plain.fusions.state_dict())
        fused = torch.compile(fused, backend="eager")
        for name, output in fused(inputs).items():
            torch.testing.assert_close(output, plain(inputs)[name])


def test_recurrent_layers_tell_their_width():
    lstm = nn.LSTM(3, 5, bidirectional=True, batch_first=True)
    fused = insert_msaf(
        {"a": nn.Sequential(lstm), "b": nn.Sequential(nn.LayerNorm(4))},
        [{"a": "0", "b": "0"}],
        channels={"a": -1, "b": -1},
    ).eval()
    assert isinstance(fused.fusions[0], Msaf)
    assert fused.fusions[0].channels == (10, 4)
    outputs = fused({"a": torch.randn(2, 6, 3), "b": torch.randn(2, 7, 4)})
    assert outputs["a"][0].shape == (2, 6, 10)
    assert outputs["b"].shape == (2, 7, 4)
