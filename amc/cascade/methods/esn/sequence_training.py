"""Training an exit sequence: the pair is run once for each example and pass, and only what was pooled is kept.

Both networks know their training examples by heart, and a sure saver leaves an exit nothing to learn. So passes are
augmented and mixed (mixup, arXiv 1710.09412; CutMix, arXiv 1905.04899), as in the released code.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass

import torch
from torch import Tensor
from torch.nn.functional import one_hot, softmax
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from amc.cascade.methods.esn.exit_sequence import ExitSequence, SequenceSize
from amc.cascade.methods.esn.sequence_stages import Pair, SequenceComponent, new_sequence
from amc.system.device import Compute
from amc.system.errors import ModelError, UsageError
from amc.system.progress import Progress, Silent
from amc.zoo.data.splits import Split, plan_batches

BATCH = 250  # of the frozen pair
RISE = 0.1  # share of the steps in which the learning rate rises


@dataclass(frozen=True)
class SequenceTraining:
    """How an exit sequence is trained; the released code: 10 passes over ImageNet at lr 6.25e-4, by the labels alone.

    Attributes:
        passes: of the pair over the train split, each augmented and mixed anew.
        epochs: over what these passes gave.
        limit: examples of a pass.
        mixup: of the Beta distribution of mixing shares; 0: none.
        cutmix: the same for rectangles; where both are asked for, each batch gets one of them.
        distill: share of the targets that is what the base says of an input; the rest are its labels.
        ema: decay of the running mean of the weights, which is what is kept; 0: the last weights are.
    """

    passes: int = 3
    epochs: int = 5
    limit: int = 50_000
    batch_size: int = 128
    lr: float = 2e-3
    weight_decay: float = 0.05
    mixup: float = 0.8
    cutmix: float = 1.0
    distill: float = 0.5
    ema: float = 0.99

    def __post_init__(self) -> None:
        sizes = self.passes, self.epochs, self.limit, self.batch_size
        if (
            min(sizes) < 1
            or self.lr <= 0
            or not 0 <= self.ema < 1
            or min(self.mixup, self.cutmix, self.weight_decay) < 0
        ):
            raise UsageError(
                f"training an exit sequence needs positive numbers, and ema below 1, but got {asdict(self)}"
            )


@dataclass(frozen=True, eq=False)
class PairOutputs:
    """What a frozen pair said of N examples, on the CPU.

    Attributes:
        pooled: K + 1 times (N, channels).
        saver_logits: (N, classes).
        targets: (N, classes) shares of each class.
    """

    pooled: tuple[Tensor, ...]
    saver_logits: Tensor
    targets: Tensor

    def __len__(self) -> int:
        return len(self.targets)


def train_sequence(
    pair: Pair,
    train: Split,
    compute: Compute,
    size: SequenceSize | None = None,
    training: SequenceTraining | None = None,
    *,
    seed: int = 0,
    progress: Progress | None = None,
) -> SequenceComponent:
    """A pair with an exit sequence fitted to `train`; the pair itself is left as it is.

    Args:
        pair: its networks on `compute.device`.

    Raises:
        ModelError: an output or the loss is not finite.
    """
    training = training or SequenceTraining()
    progress = progress or Silent()
    seen = run_pair(pair, train, compute, training, seed, progress)
    sequence = fit_sequence(new_sequence(pair, size, seed), seen, training, seed, progress)
    return SequenceComponent(pair, sequence.eval())


@torch.no_grad()
def run_pair(
    pair: Pair, train: Split, compute: Compute, training: SequenceTraining, seed: int, progress: Progress
) -> PairOutputs:
    """Run the pair over augmented and mixed passes of `train`."""
    draw = torch.Generator().manual_seed(seed)
    kept: list[tuple[list[Tensor], Tensor, Tensor]] = []
    stage = progress.stage("run saver and base on the train split", training.passes)
    for turn in range(training.passes):
        for inputs, labels in train.batches(BATCH, seed=seed * 1009 + turn, augment=True, limit=training.limit):
            mixed, targets = mix(inputs, one_hot(labels, pair.classes).float(), training, draw)
            with compute.autocast():
                pooled, logits, answers = pair.watched(mixed.to(compute.device))
            targets = (1 - training.distill) * targets + training.distill * softmax(answers.float().cpu(), 1)
            kept.append(([each.float().cpu() for each in pooled], logits.float().cpu(), targets))
        stage.advance()
    seen = PairOutputs(
        tuple(torch.cat(parts) for parts in zip(*(pooled for pooled, _, _ in kept), strict=True)),
        torch.cat([logits for _, logits, _ in kept]),
        torch.cat([targets for _, _, targets in kept]),
    )
    if not all(bool(each.isfinite().all()) for each in (*seen.pooled, seen.saver_logits)):
        raise ModelError(
            f"features must be finite numbers, but {pair.saver.name} or {pair.base.name} gave NaN or infinity; "
            "check its weights"
        )
    return seen


def fit_sequence(
    sequence: ExitSequence, seen: PairOutputs, training: SequenceTraining, seed: int, progress: Progress | None = None
) -> ExitSequence:
    """Train `sequence` in place by AdamW; what is returned holds the running mean of its weights."""
    steps = training.epochs * -(-len(seen) // training.batch_size)
    optimizer = torch.optim.AdamW(sequence.parameters(), lr=training.lr, weight_decay=training.weight_decay)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, training.lr, steps, pct_start=RISE)
    average = AveragedModel(sequence, multi_avg_fn=get_ema_multi_avg_fn(training.ema))  # type: ignore[no-untyped-call]
    stage = (progress or Silent()).stage("train the exit sequence", training.epochs)
    device = next(sequence.parameters()).device
    sequence.train()
    for epoch in range(training.epochs):
        for index in plan_batches(len(seen), training.batch_size, seed=seed + epoch):
            pooled = [each[index].to(device) for each in seen.pooled]
            saver_logits = seen.saver_logits[index].to(device)
            loss = sequence_loss(sequence(pooled, saver_logits), saver_logits, seen.targets[index].to(device))
            if not bool(loss.isfinite()):
                raise ModelError(f"the loss must stay finite, but is {float(loss)} in epoch {epoch + 1}; lower `lr`")
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()
            average.update_parameters(sequence)
        stage.advance()
    if training.ema:
        sequence.load_state_dict(average.module.state_dict())
    return sequence.requires_grad_(False)


def sequence_loss(exits: Tensor, saver_logits: Tensor, targets: Tensor) -> Tensor:
    """The sum over exits of the mean cross-entropy, each example counted 2 (1 - the saver's confidence) times.

    Args:
        exits: (K, b, classes) logits.
        saver_logits: (b, classes).
        targets: (b, classes) shares of each class.
    """
    weights = 2 * (1 - softmax(saver_logits, 1).amax(1))
    entropies = -(targets * exits.log_softmax(2)).sum(2)
    return (weights * entropies).mean(1).sum()


def mix(inputs: Tensor, targets: Tensor, training: SequenceTraining, draw: torch.Generator) -> tuple[Tensor, Tensor]:
    """Mix each example with that at the other end of the batch, or put a rectangle of it in.

    Args:
        inputs: (b, ...); what is no floating-point map (b, channels, places...) is left alone.
        targets: (b, classes).
    """
    kinds = [name for name, alpha in (("mixup", training.mixup), ("cutmix", training.cutmix)) if alpha > 0]
    if not kinds or not inputs.is_floating_point() or inputs.ndim < 3 or len(inputs) < 2:
        return inputs, targets
    kind = kinds[int(torch.randint(len(kinds), (), generator=draw))]
    share = _beta(training.mixup if kind == "mixup" else training.cutmix, draw)
    others = inputs.flip(0)
    if kind == "mixup":
        return share * inputs + (1 - share) * others, share * targets + (1 - share) * targets.flip(0)
    mixed, box = inputs.clone(), tuple(_span(length, share, inputs.ndim - 2, draw) for length in inputs.shape[2:])
    mixed[(slice(None), slice(None), *box)] = others[(slice(None), slice(None), *box)]
    inside = _volume(box) / inputs[0, 0].numel()
    return mixed, (1 - inside) * targets + inside * targets.flip(0)


def _beta(alpha: float, draw: torch.Generator) -> float:
    first, second = torch._standard_gamma(torch.full((2,), alpha), generator=draw).tolist()
    return float(first / max(first + second, 1e-12))


def _span(length: int, share: float, dims: int, draw: torch.Generator) -> slice:
    """A stretch of about (1 - share)^(1/dims) of `length` around a random place, cut off at the edges."""
    half = length * (1 - share) ** (1 / dims) / 2
    centre = int(torch.randint(length, (), generator=draw))
    return slice(max(0, round(centre - half)), min(length, round(centre + half)))


def _volume(box: tuple[slice, ...]) -> int:
    inside = 1
    for side in box:
        inside *= max(0, side.stop - side.start)
    return inside
