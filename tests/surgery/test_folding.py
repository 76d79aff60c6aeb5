import copy

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from amc.surgery.cutting import cut_channels, stays, zero_channels
from amc.surgery.folding import (
    RIDGES,
    Cutter,
    Moments,
    cut_and_fold,
    reestimate_batchnorm,
    take_moments,
)
from tests.surgery.networks import SOUND, Traced, chain, flattened, known, randomise, traced

HALF = 8


def pictures(count: int, shape: tuple[int, int, int] = (3, 12, 12), seed: int = 0) -> list[tuple[Tensor, Tensor]]:
    """Batches of 16 smooth random pictures: neighbouring channels and pixels have much in common."""
    draw = torch.Generator().manual_seed(seed)
    batches = []
    for _ in range(count):
        base = torch.randn(16, 1, 1, 1, generator=draw) + torch.randn(16, *shape, generator=draw)
        batches.append((base, torch.zeros(16, dtype=torch.int64)))
    return batches


def doubled(model: nn.Sequential) -> nn.Sequential:
    """Make the second half of the first layer's channels multiples of the first half, in layer 0 and its norm."""
    with torch.no_grad():
        factor = torch.rand(HALF, generator=torch.Generator().manual_seed(3)) + 0.5
        conv = model[0]
        conv.weight[HALF:] = conv.weight[:HALF] * factor.view(-1, 1, 1, 1)
        conv.bias[HALF:] = conv.bias[:HALF] * factor
        if isinstance(model[1], nn.BatchNorm2d):
            norm = model[1]
            norm.running_mean[HALF:] = norm.running_mean[:HALF] * factor
            norm.running_var[HALF:] = (norm.running_var[:HALF] + norm.eps) * factor.square() - norm.eps
            norm.weight[HALF:], norm.bias[HALF:] = norm.weight[:HALF] * factor, norm.bias[:HALF] * factor
    return model


DOUBLED = {
    "conv": (lambda: chain(width=16), (3, 12, 12)),
    "conv, batchnorm": (lambda: chain(nn.BatchNorm2d(16), width=16), (3, 12, 12)),
    "linear": (lambda: nn.Sequential(nn.Conv2d(3, 16, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
                                     nn.Linear(16, 5)), (3, 12, 12)),
    "flatten, linear": (lambda: flattened(16), (3, 8, 8)),
    "prelu, transposed": (lambda: chain(nn.PReLU(), nn.Conv2d(16, 16, 1), nn.ConvTranspose2d(16, 16, 2, 2), width=16),
                          (3, 12, 12)),
}  # fmt: skip


def first_group(net: Traced, seed: int | None = None) -> np.ndarray:  # type: ignore[type-arg]
    """Keep the first half of the first group, everything else whole."""
    kept = np.ones(len(net.table.channel_group), dtype=np.bool_)
    kept[np.flatnonzero(net.table.channel_group == 0)[HALF:]] = False
    return kept


@pytest.mark.parametrize("name", DOUBLED)
def test_what_is_a_linear_function_of_the_rest_comes_back(name: str) -> None:
    """Channels that are multiples of kept ones are folded away with no loss, whatever reads them."""
    make, shape = DOUBLED[name]
    torch.manual_seed(0)
    model = doubled(randomise(make()))  # type: ignore[arg-type]
    net = traced(model, shape)
    assert net.table.groups[0].size == 2 * HALF
    moments = take_moments(model, net.table, pictures(6, shape))
    exact = Moments(moments.mean, moments.covariance, dict.fromkeys(moments.ridge, 1e-9), moments.rescaled)
    inputs = pictures(1, shape, seed=9)[0][0]
    kept = first_group(net)
    with torch.no_grad():
        dense, lost = model(inputs), cut_channels(model, net.table, kept)(inputs)
        folded = cut_and_fold(model, net.table, kept, exact)(inputs)
        ridged = cut_and_fold(model, net.table, kept, moments)(inputs)
    assert (folded - dense).abs().max() < 1e-4 * dense.abs().max()
    assert (lost - dense).abs().max() > 20 * (folded - dense).abs().max()
    assert (ridged - dense).square().mean() < 0.05 * (lost - dense).square().mean()


def test_without_moments_a_cut_is_a_cut() -> None:
    """`moments=None` gives the plain cut, bit for bit."""
    net = known("resnet20")
    kept = net.kept(net.table.space.nearest(net.table.space.high / 2))
    plain, same = cut_channels(net.model, net.table, kept), cut_and_fold(net.model, net.table, kept, None)
    assert torch.equal(plain(net.inputs), same(net.inputs))


def test_folding_nothing_changes_nothing() -> None:
    """The dense policy has nothing to fold and no norm to bring back."""
    net = known("resnet20")
    moments = take_moments(net.model, net.table, pictures(2, (3, 16, 16)))
    same = cut_and_fold(net.model, net.table, net.kept(net.table.space.high), moments)
    with torch.no_grad():
        assert torch.allclose(same(net.inputs), net.model(net.inputs), atol=1e-5)


def test_filters_before_batchnorm_get_their_norm_back() -> None:
    """Their norms are those of the dense filters (up to a factor of 10); the function is that of the fold alone."""
    net = known("resnet20")
    moments = take_moments(net.model, net.table, pictures(4, (3, 16, 16)))
    convolutions = [name for name, module in net.model.named_modules() if isinstance(module, nn.Conv2d)]
    assert set(moments.rescaled) == set(convolutions)
    kept = net.kept(net.table.space.nearest(net.table.space.high / 2))
    small = cut_and_fold(net.model, net.table, kept, moments)
    unscaled = cut_and_fold(net.model, net.table, kept, Moments(moments.mean, moments.covariance, moments.ridge, {}))
    keep_all = np.append(kept, True)
    changed = 0
    for name in convolutions:
        dense = dict(net.model.named_parameters())[f"{name}.weight"].detach()
        index_maps = net.table.index_maps[f"{name}.weight"].get(0)
        dense = dense if index_maps is None else dense[torch.from_numpy(stays(index_maps, keep_all))]
        wanted = dense.flatten(1).norm(dim=1)
        got = small.get_parameter(f"{name}.weight").detach().flatten(1).norm(dim=1)
        raw = unscaled.get_parameter(f"{name}.weight").detach().flatten(1).norm(dim=1)
        within = (wanted / raw < 10) & (wanted / raw > 0.1)
        assert torch.allclose(got[within], wanted[within], rtol=1e-4)
        changed += int((raw / wanted - 1).abs().max() > 0.01)
    assert changed > 10
    with torch.no_grad():
        ours, theirs = small(net.inputs), unscaled(net.inputs)
    assert (ours - theirs).abs().max() < 1e-3 * theirs.abs().max()  # BatchNorm's eps is not scaled


def test_a_convolution_that_others_read_too_keeps_its_scale() -> None:
    """Where something besides a BatchNorm reads the output, no scale is free."""

    class Leaky(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.norm = nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16)
            self.fc = nn.Linear(16, 5)

        def forward(self, x: Tensor) -> Tensor:
            x = self.a(x)
            out: Tensor = self.fc((self.norm(x) + x.relu()).mean((2, 3)))
            return out

    net = traced(randomise(Leaky()), (3, 12, 12))
    assert take_moments(net.model, net.table, pictures(2)).rescaled == {}


def test_moments_are_those_of_the_inputs() -> None:
    """Mean and covariance of a reader's input over pictures and places, computed here once more from all rows."""
    torch.manual_seed(0)
    model = randomise(chain())
    net = traced(model, (3, 12, 12))
    batches = pictures(3)
    moments = take_moments(model, net.table, batches)
    with torch.no_grad():
        rows = torch.cat([model[:2](x) for x, _ in batches]).movedim(1, -1).reshape(-1, 32).double()
    assert torch.allclose(moments.mean["2"], rows.mean(0), atol=1e-4)
    assert torch.allclose(moments.covariance["2"], rows.T.cov(correction=0), atol=1e-3)


def test_every_ridge_is_one_of_the_grid() -> None:
    """Each reader of removable channels has moments and a ridge, odd numbers of batches included."""
    net = known("resnet20")
    for count in (1, 3):
        moments = take_moments(net.model, net.table, pictures(count, (3, 16, 16)))
        assert set(moments.ridge.values()) <= set(RIDGES)
        assert set(moments.ridge) == set(net.table.inputs) == set(moments.mean) == set(moments.covariance)


def test_moments_do_not_depend_on_the_training_mode() -> None:
    """They are those of `eval` mode; a network in training mode gives the same and goes on training."""
    model = randomise(nn.Sequential(*chain(nn.BatchNorm2d(32)), nn.Dropout(0.5)))
    net = traced(model, (3, 12, 12))
    calm = take_moments(model, net.table, pictures(2))
    model.train()
    busy = take_moments(model, net.table, pictures(2))
    assert model.training and model[1].training
    assert all(torch.equal(calm.covariance[name], busy.covariance[name]) for name in calm.covariance)
    assert calm.ridge == busy.ridge and calm.rescaled == busy.rescaled


def test_layers_that_share_a_weight_are_cut_but_not_folded() -> None:
    """What would be folded for one would be wrong for the other, so neither is."""
    for name in ("tied readers", "tied"):
        torch.manual_seed(0)
        net = traced(randomise(SOUND[name][0]()), (3, 12, 12))
        moments = take_moments(net.model, net.table, pictures(2))
        assert not {"b", "c"} & set(moments.ridge)
        kept = net.kept(net.table.space.low)
        small = cut_and_fold(net.model, net.table, kept, moments)
        assert small.b.weight is small.c.weight
        assert small(net.inputs).shape == (1, 5)


def test_the_layer_twice_run_is_folded_once() -> None:
    """A module that runs twice has one set of moments over both runs."""
    net = traced(randomise(SOUND["twice"][0]()), (3, 12, 12))
    moments = take_moments(net.model, net.table, pictures(2))
    assert set(moments.ridge) == {"b", "c", "fc"}
    small = cut_and_fold(net.model, net.table, net.kept(net.table.space.low), moments)
    assert torch.isfinite(small(net.inputs)).all()


def test_batchnorm_gets_the_statistics_of_the_pictures() -> None:
    """Every picture counts alike, in a short last batch too; momenta and modes are as they were."""
    model = randomise(chain(nn.BatchNorm2d(32)))
    model[1].momentum = 0.03
    model[0].train()
    modes = [module.training for module in model.modules()]
    batches = [*pictures(2), (pictures(1, seed=5)[0][0][:4], torch.zeros(4))]
    reestimate_batchnorm(model, batches)
    assert model[1].momentum == 0.03 and [module.training for module in model.modules()] == modes
    with torch.no_grad():
        outputs = model[0](torch.cat([x for x, _ in batches]))
    assert torch.allclose(model[1].running_mean, outputs.mean((0, 2, 3)), atol=1e-5)
    within = sum(len(x) * model[0](x).var((0, 2, 3)) for x, _ in batches) / 36
    assert torch.allclose(model[1].running_var, within, rtol=1e-4)


def test_a_lone_last_picture_does_not_stop_the_estimation() -> None:
    """One picture of one pixel has no variance: it is left out, not an error."""
    model = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)).eval()
    first = pictures(1)[0]
    reestimate_batchnorm(model, [first, (first[0][:1], first[1][:1])])
    assert torch.allclose(model[2].running_mean, model[:2](first[0]).mean((0, 2, 3)), atol=1e-6)


def test_momenta_come_back_after_a_failure() -> None:
    """A picture that the network cannot read leaves momenta and modes as they were."""
    model = randomise(chain(nn.BatchNorm2d(32)))
    with pytest.raises(RuntimeError):
        reestimate_batchnorm(model, [(torch.zeros(2, 5, 12, 12), torch.zeros(2))])
    assert model[1].momentum == 0.1 and not model[1].training


def test_a_network_without_batchnorm_is_left_alone() -> None:
    """There is nothing to re-estimate, and no picture is looked at."""
    reestimate_batchnorm(chain(), iter([None]))  # type: ignore[list-item]


def test_folding_helps_a_trained_network() -> None:
    """On a network trained for a moment, folding and BatchNorm lose less than BatchNorm alone, on average."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 24, 3, 2, 1), nn.BatchNorm2d(24),
        nn.ReLU(), nn.Conv2d(24, 24, 3, padding=1), nn.BatchNorm2d(24), nn.ReLU(), nn.AdaptiveAvgPool2d(1),
        nn.Flatten(), nn.Linear(24, 4),
    )  # fmt: skip
    draw = torch.Generator().manual_seed(1)
    prototypes = torch.randn(4, 3, 12, 12, generator=draw)

    def batch() -> tuple[Tensor, Tensor]:
        labels = torch.randint(0, 4, (64,), generator=draw)
        return prototypes[labels] + 1.5 * torch.randn(64, 3, 12, 12, generator=draw), labels

    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    for _ in range(60):
        inputs, labels = batch()
        optimizer.zero_grad()
        cross_entropy(model(inputs), labels).backward()
        optimizer.step()
    model.eval()
    net = traced(model, (3, 12, 12))
    train, held_out = [batch() for _ in range(8)], [batch() for _ in range(4)]
    moments = take_moments(model, net.table, train)

    def loss(small: nn.Module) -> float:
        reestimate_batchnorm(small, train[:4])
        with torch.no_grad():
            return float(np.mean([float(cross_entropy(small.eval()(x), y)) for x, y in held_out]))

    rng = np.random.default_rng(0)
    plain, folded = [], []
    for seed in range(10):
        policy = net.table.space.step * rng.integers(2, net.table.space.high // net.table.space.step)
        kept = net.kept(policy, seed)
        plain.append(loss(cut_and_fold(model, net.table, kept, None)))
        folded.append(loss(cut_and_fold(model, net.table, kept, moments)))
    assert np.mean(folded) < np.mean(plain)


def test_a_mask_is_no_fold() -> None:
    """Zeroing and cutting leave kept weights alone; folding changes readers only where something was removed."""
    net = known("resnet20")
    policy = net.table.space.high.copy()
    policy[1] = net.table.space.step[1]  # inside the first block: read by its second convolution alone
    kept = net.kept(policy)
    moments = take_moments(net.model, net.table, pictures(2, (3, 16, 16)))
    small, plain = cut_and_fold(net.model, net.table, kept, moments), cut_channels(net.model, net.table, kept)
    plainly = dict(plain.named_parameters())
    differing = {name for name, tensor in small.named_parameters() if not torch.equal(tensor, plainly[name])}
    assert differing == {"layer1.0.conv2.weight"}
    dense = dict(net.model.named_parameters())
    untouched = zero_channels(copy.deepcopy(net.model), net.table, kept)
    assert torch.equal(untouched.fc.weight, dense["fc.weight"])


@pytest.mark.parametrize("filters", [4, 40])
@pytest.mark.parametrize("kind", ["conv", "linear"])
def test_the_fold_is_the_ridge_regression_of_what_was_removed(kind: str, filters: int) -> None:
    """W_k + W_r S_rk (S_kk + ridge)^-1 and b + W_r (m_r - B m_k), with few filters and with many, in plain numpy."""
    torch.manual_seed(0)
    reader: nn.Module = nn.Conv2d(16, filters, 3) if kind == "conv" else nn.Linear(16, filters)
    head = [nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    tail = [reader, *head, nn.Linear(filters, 5)] if kind == "conv" else [*head, reader, nn.Linear(filters, 5)]
    model = nn.Sequential(nn.Conv2d(3, 16, 3), nn.ReLU(), *tail)
    net = traced(randomise(model), (3, 12, 12))
    name = next(name for name, module in model.named_modules() if module is reader)
    moments = take_moments(model, net.table, pictures(4))
    small = cut_and_fold(model, net.table, first_group(net), Moments(moments.mean, moments.covariance,
                                                                     moments.ridge, {}))  # fmt: skip
    s, m, ridge = moments.covariance[name].numpy(), moments.mean[name].numpy(), moments.ridge[name]
    inner = s[:HALF, :HALF] + ridge * s.diagonal()[:HALF].mean() * np.eye(HALF)
    b = np.linalg.solve(inner, s[:HALF, HALF:]).T
    weight, bias = (tensor.detach().double().numpy() for tensor in (reader.weight, reader.bias))  # type: ignore[union-attr]
    wanted = weight[:, :HALF] + np.einsum("or...,rk->ok...", weight[:, HALF:], b)
    per_channel = weight.reshape(filters, 16, -1).sum(2)[:, HALF:]
    got = small.get_submodule(name)
    assert np.allclose(got.weight.detach().numpy(), wanted, rtol=1e-4, atol=1e-5)  # type: ignore[union-attr, operator]
    assert np.allclose(got.bias.detach().numpy(), bias + per_channel @ (m[HALF:] - b @ m[:HALF]), rtol=1e-4, atol=1e-5)  # type: ignore[union-attr, operator]


def test_one_cutter_serves_every_policy() -> None:
    """What it gives depends on no policy before, shares no storage with its network, and is `cut_and_fold`."""
    net = known("resnet20")
    moments = take_moments(net.model, net.table, pictures(2, (3, 16, 16)))
    cutter = Cutter(net.model, net.table, moments)
    policies = [net.table.space.nearest(net.table.space.high * share) for share in (0.5, 0.25, 0.5)]
    first, _, again = (cutter(net.kept(policy)) for policy in policies)
    fresh = cut_and_fold(net.model, net.table, net.kept(policies[0]), moments)
    states = [list(network.state_dict().values()) for network in (first, again, fresh)]
    assert all(torch.equal(a, b) and torch.equal(a, c) for a, b, c in zip(*states, strict=True))
    assert not {a.data_ptr() for a in states[0]} & {
        b.data_ptr() for b in [*states[1], *net.model.state_dict().values()]
    }


def test_tokens_are_folded_feature_by_feature() -> None:
    """A head's features that only leave together are no places of one channel: each has moments of its own."""
    torch.manual_seed(0)

    class Attentive(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed = nn.Linear(12, 16)
            self.q, self.k, self.v, self.proj = (nn.Linear(16, 16) for _ in range(4))
            self.fc = nn.Linear(16, 5)

        def forward(self, x: Tensor) -> Tensor:
            x = self.embed(x)
            heads = [each(x).unflatten(-1, (2, 8)).transpose(1, 2) for each in (self.q, self.k, self.v)]
            mixed = nn.functional.scaled_dot_product_attention(*heads).transpose(1, 2).flatten(2)
            return self.fc(self.proj(mixed).mean(1))  # type: ignore[no-any-return]

    net = traced(Attentive(), (7, 12))
    batches = [(torch.randn(16, 7, 12), torch.zeros(16)) for _ in range(2)]
    moments = take_moments(net.model, net.table, batches)
    assert len(moments.mean["proj"]) == 16
    small = cut_and_fold(net.model, net.table, net.kept(net.table.space.nearest(net.table.space.high / 2)), moments)
    assert small(net.inputs).shape == (1, 5)
