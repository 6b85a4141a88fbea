"""The MSAF module: the authors' numbers, a slow twin in the paper's notation, its laws."""

import warnings

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.checkpoint import checkpoint

from tests.golden_numbers import close, golden, part
from training.models.msaf import Msaf, MsafSettings, from_reference, segment_of_steps, until
from training.models.pooled import pool

# Channels, and settings, of each file of golden numbers.
RELEASED = {
    "two_seq": ((32, 48), {}),
    "segments": ((32, 64, 128), {"reduction": 2, "segments": 5}),
    "segments_uneven": ((16, 32, 24), {"block_width": 8, "reduction": 2, "segments": 5}),
    "ravdess_ranks": ((32, 32), {}),
    "ntu_rank2": ((64, 32), {}),
}


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("floor", [0.0, 0.5])
@pytest.mark.parametrize("name", RELEASED)
def test_the_released_form_gives_the_numbers_of_the_authors_code(name, floor, training):
    arrays = golden(f"msaf_module_{name}")
    channels, chosen = RELEASED[name]
    module = Msaf(channels, MsafSettings(floor=floor, block_dropout=0, reference=True, **chosen))
    module.load_state_dict(from_reference(part(arrays, "state/")))
    module.train(training)
    values = [x.requires_grad_() for x in part(arrays, "in/").values()]
    outputs = module(values)
    sum(y.square().sum() for y in outputs).backward()

    found = part(arrays, f"lam{str(floor).replace('.', '').rstrip('0') or '0'}/")
    wanted = found if training else part(found, "eval/")
    for m, (x, y) in enumerate(zip(values, outputs, strict=True)):
        close(y, wanted[f"out/m{m}"], 1e-5)
        close(x.grad, wanted[f"grad_in/m{m}"], 1e-4)
    gradients = from_reference(part(wanted, "grad/"))
    for parameter, tensor in module.named_parameters():
        if training and parameter == "join.bias":
            # Zero in exact arithmetic: the norm takes every constant away.
            torch.testing.assert_close(tensor.grad, gradients[parameter], atol=1e-4, rtol=0)
        else:
            close(tensor.grad, gradients[parameter], 1e-4)
    if training:
        after = from_norm(part(found, "after/state/"))
        close(module.norm.running_mean, after["running_mean"], 1e-5)
        close(module.norm.running_var, after["running_var"], 1e-5)


def from_norm(state):
    kinds = ("running_mean", "running_var")
    found = {kind: [v for k, v in state.items() if k.endswith(kind)] for kind in kinds}
    return {kind: torch.stack(tensors) for kind, tensors in found.items()}


def test_a_state_without_the_module_is_refused():
    with pytest.raises(KeyError, match=r"no released MSAF module in 'msaf\.'"):
        from_reference({"blocks.0.odd": torch.zeros(1)}, "msaf.")


class Twin:
    """MSAF a clip, a segment and a block at a time, with a fast module's weights."""

    def __init__(self, module):
        self.module = module
        self.p = {**dict(module.named_parameters()), **dict(module.named_buffers())}
        self.Q, self.W = module.settings.segments, module.settings.block_width

    def steps(self, s, valid):
        """All steps of segment s, and the valid ones, of a clip with these valid steps of T."""
        n = max((t + 1 for t, is_valid in enumerate(valid) if is_valid), default=0)
        end = len(valid) if s == self.Q - 1 else (s + 1) * (n // self.Q)
        mine = list(range(s * (n // self.Q), end))
        return mine, [t for t in mine if valid[t]]

    def blocks(self, x, steps):
        """phi_k: the blocks of a modality, each the mean over its valid steps and all else."""
        mean = x[:, steps].flatten(1).mean(1)
        count = -(-len(mean) // self.W)
        padded = torch.cat([mean, mean.new_zeros(count * self.W - len(mean))])
        return [padded[k * self.W : (k + 1) * self.W] for k in range(count)]

    def norm(self, s, z, counted):
        mean, var = self.p["norm.running_mean"][s], self.p["norm.running_var"][s]
        if self.module.training and len(counted) > 1:
            mean = sum(z[b] for b in counted) / len(counted)
            var = sum((z[b] - mean) ** 2 for b in counted) / len(counted)
        return [
            (x - mean) / torch.sqrt(var + 1e-5) * self.p["norm.weight"][s] + self.p["norm.bias"][s]
            for x in z
        ]

    def segment(self, s, values, masks):
        """A_b: for each clip the attention of each block, by modality."""
        clips, joint, there = len(values[0]), [], []
        for b in range(clips):
            found = {}
            for m, x in enumerate(values):
                _, steps = self.steps(s, masks[m][b])
                if steps:
                    found[m] = self.blocks(x[b], steps)
            there.append(found)
            zero = values[0].new_zeros(self.W)
            joint.append(sum((phi for phis in found.values() for phi in phis), zero))
        z = [g @ self.p["join.weight"][s] + self.p["join.bias"][s] for g in joint]
        z = self.norm(s, z, [b for b in range(clips) if there[b]])
        return [self.attention(s, torch.relu(z[b]), there[b]) for b in range(clips)]

    def attention(self, s, z, there):
        k, asked = 0, {}
        for m, channels in enumerate(self.module.channels):
            for i in range(-(-channels // self.W)):
                if m in there:
                    at = slice(k * self.W, (k + 1) * self.W)
                    weight, bias = self.p["attention.weight"][s], self.p["attention.bias"][s]
                    asked[m, i] = z @ weight[:, at] + bias[at]
                k += 1
        total = sum(torch.exp(u) for u in asked.values())
        floor = self.module.settings.floor
        return {key: floor + (1 - floor) * torch.exp(u) / total for key, u in asked.items()}

    def __call__(self, values, masks):
        found = [self.segment(s, values, masks) for s in range(self.Q)]
        floor = values[0].new_full((self.W,), self.module.settings.floor)
        scaled = []
        for m, x in enumerate(values):
            blocks = range(-(-x.shape[1] // self.W))
            scaled.append(
                torch.stack(
                    [
                        self.scaled(
                            clip,
                            valid,
                            [[at[b].get((m, i), floor) for i in blocks] for at in found],
                        )
                        for b, (clip, valid) in enumerate(zip(x, masks[m], strict=True))
                    ]
                )
            )
        return scaled

    def scaled(self, x, valid, attention):
        """One modality of one clip: each step and channel times its attention, by segment."""
        columns = [None] * x.shape[1]
        for s, blocks in enumerate(attention):
            alpha = torch.stack([blocks[c // self.W][c % self.W] for c in range(len(x))])
            for t in self.steps(s, valid)[0]:
                columns[t] = x[:, t] * alpha.reshape(-1, *[1] * (x.dim() - 2))
        return torch.stack(columns, 1)


def ragged(shapes, seed, clips=4):
    """Modalities of random true lengths, with holes; clip 1 lacks the first, clip 2 all of them."""
    draw = torch.Generator().manual_seed(seed)
    values, masks = [], []
    for m, shape in enumerate(shapes):
        values.append(torch.randn(clips, *shape, dtype=torch.float64, generator=draw))
        steps = shape[1]
        lengths = torch.randint(1, steps + 1, (clips,), generator=draw)
        mask = until(lengths, steps) & (torch.rand(clips, steps, generator=draw) < 0.8)
        mask[:, 0] = True
        mask[1] &= m > 0
        mask[2] = False
        masks.append(mask)
    return values, masks


def twice_as_strong(channels, **chosen):
    """A module whose attention is not flat and whose norm is not the identity, float64."""
    module = Msaf(channels, MsafSettings(block_width=4, reduction=2, block_dropout=0, **chosen))
    with torch.no_grad():
        for tensor in [*module.parameters(), module.norm.running_mean]:
            tensor.add_(torch.randn_like(tensor))
        module.norm.running_var.uniform_(0.5, 1.5)
    return module.double()


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize(
    ("shapes", "chosen"),
    [
        (((8, 5), (4, 7)), {}),
        (((8, 5), (6, 7), (3, 9)), {"segments": 3}),
        (((5, 4, 2, 2), (4, 6)), {"segments": 2, "floor": 0.3}),
        (((9, 3, 2), (4, 1)), {"floor": 0.5}),
    ],
)
def test_the_fast_module_equals_the_obvious_one(shapes, chosen, seed, training):
    torch.manual_seed(seed)
    module = twice_as_strong([shape[0] for shape in shapes], **chosen).train(training)
    values, masks = ragged(shapes, seed)
    values = [x.requires_grad_() for x in values]
    obvious = Twin(module)(values, masks)
    outputs = module(values, masks)
    for ours, theirs in zip(outputs, obvious, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-10, rtol=0)
    wanted = [*values, *module.parameters()]
    ours, theirs = (
        torch.autograd.grad(sum(y.square().sum() for y in found), wanted)
        for found in (outputs, obvious)
    )
    for mine, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, other, atol=1e-10, rtol=0)


@pytest.mark.parametrize("segments", [1, 3])
@given(seed=st.integers(0, 10_000), more=st.integers(1, 9))
@settings(max_examples=10, deadline=None)
def test_more_padding_changes_no_valid_step(segments, seed, more):
    torch.manual_seed(0)
    module = twice_as_strong((6, 3), segments=segments).eval()
    values, masks = ragged(((6, 5), (3, 7, 2)), seed)
    # What lies in the padding must not matter, so it is not 0 here.
    nine = [torch.full_like(x[:, :, :1], 9).repeat_interleave(more, 2) for x in values]
    longer = [torch.cat(both, 2) for both in zip(values, nine, strict=True)]
    padded = [torch.nn.functional.pad(mask, (0, more)) for mask in masks]
    with torch.no_grad():
        found = module(longer, padded)
        wanted = module(values, masks)
    for ours, theirs, mask in zip(found, wanted, masks, strict=True):
        inside = mask[:, None].expand(-1, ours.shape[1], -1)
        torch.testing.assert_close(ours[:, :, : mask.shape[1]][inside], theirs[inside])


@given(seed=st.integers(0, 10_000))
@settings(max_examples=10, deadline=None)
def test_batch_order_permutes_outputs_and_does_nothing_else(seed):
    torch.manual_seed(0)
    module = twice_as_strong((6, 3), segments=2).eval()
    values, masks = ragged(((6, 5), (3, 7)), seed)
    order = torch.randperm(4, generator=torch.Generator().manual_seed(seed))
    with torch.no_grad():
        wanted = module(values, masks)
        permuted = module([x[order] for x in values], [mask[order] for mask in masks])
        alone = module([x[order[:1]] for x in values], [mask[order[:1]] for mask in masks])
    for m, x in enumerate(wanted):
        torch.testing.assert_close(permuted[m], x[order])
        torch.testing.assert_close(alone[m], x[order[:1]])


def test_a_missing_modality_takes_no_part_whatever_its_values():
    module = twice_as_strong((8, 4)).eval()
    there, missing = torch.randn(3, 8, 2, 2).double(), torch.randn(3, 4, 6).double()
    masks = [torch.ones(3, 1, dtype=torch.bool), torch.zeros(3, 1, dtype=torch.bool)]
    first, second = module([there, missing], masks)
    assert torch.equal(first, module([there, missing * 100 - 7], masks)[0])
    shares = first / there
    torch.testing.assert_close(shares[:, :4] + shares[:, 4:], torch.ones_like(shares[:, :4]))
    assert (second == 0).all()


def test_masks_that_hide_nothing_change_nothing():
    module = twice_as_strong((8, 4, 5), segments=2).eval()
    values = [torch.randn(3, 8, 5).double(), torch.randn(3, 4, 7).double(), torch.randn(3, 5, 4, 2)]
    values[2] = values[2].double()
    masks = [torch.ones(3, 5, dtype=torch.bool), torch.ones(3, 1, dtype=torch.bool), None]
    for ours, theirs in zip(module(values, masks), module(values), strict=True):
        torch.testing.assert_close(ours, theirs)


def test_segments_follow_the_true_length_and_the_last_takes_the_rest():
    mask = until(torch.tensor([11, 7, 5, 3, 0]), 12)
    mask[0, 2] = False
    assert segment_of_steps(mask, 5).tolist() == [
        [0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 4, 4],
        [0, 1, 2, 3, 4, 4, 4, 4, 4, 4, 4, 4],
        [0, 1, 2, 3, 4, 4, 4, 4, 4, 4, 4, 4],
        [4] * 12,
        [4] * 12,
    ]


def test_with_a_floor_of_one_nothing_changes():
    module = Msaf((5, 16), MsafSettings(floor=1.0)).eval()
    values = [torch.randn(2, 5, 3), torch.randn(2, 16)]
    for ours, theirs in zip(module(values), values, strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize(("reference", "scale"), [(False, 2.0), (True, 4.0)])
def test_block_dropout_scales_once_and_in_the_released_form_twice(reference, scale):
    torch.manual_seed(0)
    chosen = MsafSettings(block_width=4, block_dropout=0.5, floor=1.0, reference=reference)
    module = Msaf((8, 4), chosen).train()
    values = [torch.ones(64, 8, 3), torch.ones(64, 4)]
    first, second = module(values)
    blocks = torch.cat([first.mean(2), second], 1).unflatten(1, (3, 4))
    assert (blocks == blocks[..., :1]).all()
    assert set(blocks.unique().tolist()) == {0.0, scale}
    assert 0.4 < float((blocks > 0).float().mean()) < 0.6
    module.eval()
    assert torch.equal(module(values)[0], values[0])


def test_one_clip_is_normed_as_in_evaluation_and_leaves_the_running_values():
    module = twice_as_strong((8, 4)).train()
    values = [torch.randn(1, 8, 3).double(), torch.randn(1, 4).double()]
    before = {name: buffer.clone() for name, buffer in module.named_buffers()}
    trained = module(values)
    for name, buffer in module.named_buffers():
        assert torch.equal(buffer, before[name])
    for ours, theirs in zip(trained, module.eval()(values), strict=True):
        assert torch.equal(ours, theirs)


def test_the_norm_is_that_of_torch_over_the_clips_that_count():
    torch.manual_seed(1)
    module = Msaf((4,), MsafSettings(block_width=4, reduction=1, segments=2)).double()
    norm, x = module.norm, torch.randn(6, 2, 4).double()
    torchs = torch.nn.BatchNorm1d(4).double()
    there = torch.ones(6, 2).double()
    there[4:, 1] = 0
    normed = norm(x, there)
    torch.testing.assert_close(normed[:4, 1], torchs(x[:4, 1]))
    torch.testing.assert_close(norm.running_mean[1], torchs.running_mean)
    torch.testing.assert_close(norm.running_var[1], torchs.running_var)


# The pooled map: what autograd would give, in fewer passes.


def plainly(x, weight, first, loss):
    mean = x.mean(tuple(range(first, x.dim())))
    factor = torch.tanh(mean * weight)
    y = x * factor.reshape(*factor.shape, *[1] * (x.dim() - factor.dim()))
    return loss(mean, y)


def pooled(x, weight, first, loss):
    mean, scale = pool(x, first)
    return loss(mean, scale(torch.tanh(mean * weight)))


@pytest.mark.parametrize("first", [2, 3])
@pytest.mark.parametrize(
    "loss",
    [
        lambda mean, y: y.square().sum() + mean.square().sum(),
        lambda mean, y: y.square().sum(),
        lambda mean, y: mean.square().sum(),
        lambda mean, y: y.sum(),
    ],
)
def test_the_gradients_of_a_pooled_map_are_those_of_plain_operators(first, loss):
    torch.manual_seed(0)
    x = torch.randn(3, 2, 4, 5, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(2, *[1] * (first - 2), dtype=torch.float64, requires_grad=True)
    ours, theirs = (find(x, weight, first, loss) for find in (pooled, plainly))
    torch.testing.assert_close(ours, theirs)
    pairs = [torch.autograd.grad(each, [x, weight], allow_unused=True) for each in (ours, theirs)]
    for mine, other in zip(*pairs, strict=True):
        torch.testing.assert_close(mine, other)


def test_a_backward_pass_of_a_part_leaves_nothing_for_the_next():
    x = torch.randn(3, 2, 4, dtype=torch.float64, requires_grad=True)
    weight = torch.ones(2, dtype=torch.float64, requires_grad=True)
    mean, scale = pool(x, 2)
    y = scale(mean * weight)
    torch.autograd.grad(y.sum(), weight, retain_graph=True)
    (found,) = torch.autograd.grad(mean.sum(), x, retain_graph=True)
    torch.testing.assert_close(found, torch.full_like(x, 0.25))
    twice = [torch.autograd.grad(y.sum(), x, retain_graph=True)[0] for _ in range(2)]
    assert torch.equal(*twice)


def test_the_module_can_be_recomputed_in_the_backward_pass():
    module = twice_as_strong((8, 4)).eval()
    x, y = torch.randn(3, 8, 2, 2).double().requires_grad_(), torch.randn(3, 4).double()
    plain = torch.autograd.grad(module([x, y])[0].square().sum(), x)
    again = checkpoint(lambda x: module([x, y])[0], x, use_reentrant=False)
    torch.testing.assert_close(torch.autograd.grad(again.square().sum(), x), plain)


def test_compiled_as_one_graph_the_module_computes_the_same():
    module = twice_as_strong((8, 4)).eval()
    values = [torch.randn(3, 8, 2, 2).double(), torch.randn(3, 4, 5).double()]
    masks = [None, torch.rand(3, 5) < 0.7]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        compiled = torch.compile(module, backend="eager", fullgraph=True)(values, masks)
    for ours, theirs in zip(compiled, module(values, masks), strict=True):
        torch.testing.assert_close(ours, theirs)


def test_a_map_keeps_its_type_and_its_layout():
    module = Msaf((16, 16), MsafSettings()).eval()
    channels_last = torch.randn(2, 9, 16).movedim(-1, 1)
    with torch.autocast("cpu", torch.bfloat16):
        half, wide = module([torch.randn(2, 16, 3, 3, dtype=torch.bfloat16), channels_last])
    assert half.dtype == torch.bfloat16
    assert wide.dtype == torch.float32
    assert wide.stride() == channels_last.stride()


@pytest.mark.parametrize(
    ("chosen", "message"),
    [
        ({"block_width": 0}, "block_width is 0"),
        ({"segments": 0}, "segments is 0"),
        ({"reduction": 17}, "reduction is 17, more than the block width 16"),
        ({"floor": 1.5}, "floor is 1.5"),
        ({"block_dropout": 1.0}, "block_dropout is 1.0"),
    ],
)
def test_settings_that_msaf_does_not_take_are_refused(chosen, message):
    with pytest.raises(ValueError, match=message):
        MsafSettings(**chosen)


@pytest.mark.parametrize(
    ("shapes", "masks", "message"),
    [
        ([(2, 8, 3)], None, "1 modalities and 1 masks; it was built for 2"),
        ([(2, 8, 3), (2, 4)], [None], "2 modalities and 1 masks"),
        ([(2, 8, 3), (2, 5, 3)], None, r"modality 1 is \[2, 5, 3\]; MSAF was built for 4 channels"),
        ([(2, 8, 3), (2, 4)], None, "no time that could be cut into 2 segments"),
        ([(2, 8, 3), (2, 4, 5)], [None, (2, 3)], r"mask of modality 1 is \[2, 3\].*\[2, 5\]"),
    ],
)
def test_inputs_of_other_shapes_are_refused(shapes, masks, message):
    module = Msaf((8, 4), MsafSettings(segments=2))
    if masks is not None:
        masks = [None if shape is None else torch.ones(shape, dtype=torch.bool) for shape in masks]
    with pytest.raises(ValueError, match=message):
        module([torch.zeros(shape) for shape in shapes], masks)


def test_no_modality_or_an_empty_one_is_refused():
    for channels in ((), (4, 0)):
        with pytest.raises(ValueError, match="at least 1 for each modality"):
            Msaf(channels, MsafSettings())


@pytest.mark.parametrize(
    ("channels", "chosen", "wanted"),
    [
        ((1024, 32), {}, 5_356),
        ((2048, 64), {"block_width": 32}, 19_288),
        ((832, 128, 128), {"block_width": 64}, 19_568),
        ((1024, 512), {"block_width": 256}, 116_416),
        ((32, 64, 128), {"reduction": 2, "segments": 5}, 10_840),
    ],
)
def test_modules_are_as_large_as_the_papers(channels, chosen, wanted):
    module = Msaf(channels, MsafSettings(**chosen))
    assert sum(parameter.numel() for parameter in module.parameters()) == wanted
