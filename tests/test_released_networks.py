"""Weights of the authors' networks over pictures, sound and joints, by their names there.

The authors' modules are laid out here with our layers in them, so that `state_dict` names each
tensor as a released checkpoint does; renamed, it must be our state again.
"""

import pytest
import torch
from torch import nn

from tests.test_video_networks import tiny
from training.models import hcn, i3d, msaf_ntu, msaf_ravdess, sound_cnn
from training.start import begin, pinned

ENDPOINTS = ("Conv3d_1a_7x7", "Conv3d_2b_1x1", "Conv3d_2c_3x3")
BRANCHES = ("b0", "b1a", "b1b", "b2a", "b2b", "b3b")


def nothing():
    return nn.Identity()


def as_convolution(linear):
    """A convolution of one step and pixel with the weights of a linear layer."""
    layer = nn.Conv3d(linear.in_features, linear.out_features, 1)
    layer.weight.data, layer.bias.data = (
        linear.weight[:, :, None, None, None].data,
        linear.bias.data,
    )
    return layer


def units(block):
    """The six convolutions of an Inception block in the order of its paths."""
    return (block.alone, *block.middle, *block.short, block.pooled)


def numbered_i3d(net):
    """anita-hu/mfas, models/auxiliary/I3D.py: all layers in one row, poolings and dropout too."""

    def mixed(name):
        alone, narrow, middle, thin, short, pooled = units(net.mixed[name])
        paths = [[alone], [narrow, middle], [thin, short], [nothing(), pooled]]
        return nn.ModuleDict({f"branch{n}": nn.Sequential(*path) for n, path in enumerate(paths)})

    row = [net.conv_1a, nothing(), net.conv_2b, net.conv_2c, nothing(), mixed("3b"), mixed("3c")]
    row += [nothing(), *(mixed(f"4{letter}") for letter in "bcdef"), nothing()]
    row += [mixed("5b"), mixed("5c"), nothing(), nothing(), as_convolution(net.logits)]
    return nn.ModuleDict({"features": nn.Sequential(*row)})


def named_i3d(net):
    """piergiaj/pytorch-i3d: layers by endpoint."""

    def unit(own):
        return nn.ModuleDict({"conv3d": own.conv, "bn": own.bn})

    stem = zip(ENDPOINTS, (net.conv_1a, net.conv_2b, net.conv_2c), strict=True)
    layers = {name: unit(own) for name, own in stem}
    for name, block in net.mixed.items():
        paths = zip(BRANCHES, units(block), strict=True)
        layers[f"Mixed_{name}"] = nn.ModuleDict({path: unit(own) for path, own in paths})
    layers["logits"] = nn.ModuleDict({"conv3d": as_convolution(net.logits)})
    return nn.ModuleDict(layers)


def released_hcn(net):
    """huguyuehuhu/HCN-pytorch, model/HCN.py: each layer in a row with what follows it."""
    layers = {}
    for path, mark in ((net.places, ""), (net.motion, "m")):
        layers[f"conv1{mark}"] = nn.Sequential(path.conv1, nothing())
        layers[f"conv2{mark}"] = path.conv2
        layers[f"conv3{mark}"] = nn.Sequential(path.conv3, nothing())
        layers[f"conv4{mark}"] = nn.Sequential(path.conv4, nothing(), nothing())
    for name in ("conv5", "conv6", "fc7"):
        layers[name] = nn.Sequential(getattr(net, name), nothing(), nothing())
    return nn.ModuleDict({**layers, "fc8": net.fc8})


def released_sound(net):
    layers = {name: getattr(net, name) for name in ("conv1", "bn1", "conv2", "bn2", "conv3", "bn3")}
    return nn.ModuleDict({**layers, "fc1": net.fc})


def released_msaf(module):
    """anita-hu/MSAF, MSAF.py: a block for each segment, in it a linear layer for each block."""
    blocks = nn.ModuleList()
    width, count = module.settings.block_width, sum(module.blocks)
    for q in range(module.settings.segments):
        narrow = module.join.bias.shape[1]
        join, norm = nn.Linear(width, narrow), nn.BatchNorm1d(narrow)
        dense = nn.ModuleList(nn.Linear(narrow, width) for _ in range(count))
        join.weight.data, join.bias.data = module.join.weight[q].data.mT, module.join.bias[q].data
        norm.weight.data, norm.bias.data = module.norm.weight[q].data, module.norm.bias[q].data
        norm.running_mean, norm.running_var = (
            module.norm.running_mean[q],
            module.norm.running_var[q],
        )
        for k, layer in enumerate(dense):
            at = slice(k * width, (k + 1) * width)
            layer.weight.data = module.attention.weight[q][:, at].data.mT
            layer.bias.data = module.attention.bias[q][at].data
        joint = nn.Sequential(join, norm, nothing())
        blocks.append(nn.ModuleDict({"joint_features": joint, "dense_group": dense}))
    return nn.ModuleDict({"blocks": blocks})


def released_ntu(net):
    parts = {"visual": numbered_i3d(net.video), "skeleton": released_hcn(net.skeleton)}
    return nn.ModuleDict(
        {**parts, "msaf1": released_msaf(net.msaf1), "msaf2": released_msaf(net.msaf2)}
    )


def released_ravdess(net):
    """ravdess/networks/msaf_ravdess.py: branches in a row, cut before layers 6 and 7, 5 and 11."""
    seen, heard = net.video, net.audio
    video = [seen.conv1, seen.bn1, nothing(), seen.layer1, seen.layer2, seen.layer3, seen.layer4]
    video += [nothing(), nothing(), seen.fc]
    audio = [heard.conv1, nothing(), heard.bn1, heard.conv2, nothing(), nothing(), heard.bn2]
    audio += [nothing(), heard.conv3, nothing(), heard.bn3, nothing(), nothing(), heard.fc]

    def cut(row, first, second):
        parts = row[:first], row[first:second], row[second:]
        return nn.ModuleList(nn.Sequential(*part) for part in parts)

    return nn.ModuleDict(
        {
            "video_model_blocks": cut(video, 6, 7),
            "audio_model_blocks": cut(audio, 5, 11),
            "msaf": nn.ModuleList([released_msaf(net.msaf1), released_msaf(net.msaf2)]),
        }
    )


CASES = {
    "i3d": (numbered_i3d, i3d.from_reference),
    "i3d, piergiaj": (named_i3d, i3d.from_reference),
    "hcn": (released_hcn, hcn.from_reference),
    "sound_cnn": (released_sound, sound_cnn.from_reference),
    "msaf_ntu": (released_ntu, msaf_ntu.from_reference),
    "msaf_ravdess": (released_ravdess, msaf_ravdess.from_reference),
}


def rough(name):
    """A tiny network of which no two tensors are alike, not even of norms."""
    net = tiny(name.partition(",")[0])
    draw = torch.Generator().manual_seed(1)
    for tensor in net.state_dict().values():
        if tensor.is_floating_point():
            tensor.copy_(torch.rand(tensor.shape, generator=draw) + 0.5)
    return net


@pytest.mark.parametrize("name", CASES)
def test_a_released_state_is_ours_by_other_names(name):
    net = rough(name)
    lay_out, from_reference = CASES[name]
    state = lay_out(net).state_dict()
    found, wanted = from_reference(state), net.state_dict()
    counted = {key for key in wanted if key.endswith("num_batches_tracked")}
    assert set(found) - counted == set(wanted) - counted
    for key in set(wanted) - counted:
        assert torch.equal(found[key], wanted[key]), key
    with pytest.raises(KeyError, match="odd"):
        from_reference({**state, "odd.weight": torch.zeros(1)})


@pytest.mark.parametrize("name", CASES)
def test_a_model_starts_from_a_released_checkpoint(tmp_path, name):
    net, fresh = rough(name), tiny(name.partition(",")[0])
    torch.save({"state_dict": CASES[name][0](net).state_dict()}, tmp_path / "released.pth")
    begin(fresh, pinned({"model": "released.pth"}, tmp_path))
    for key, tensor in net.state_dict().items():
        if not key.endswith("num_batches_tracked"):
            assert torch.equal(fresh.state_dict()[key], tensor), key
