from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Generator, Tensor, nn

from models.training.loop import LoopResult, LoopSettings, build_fabric, seeded, train

SETTINGS = LoopSettings(
    steps=40,
    learning_rate=0.05,
    warmup_steps=4,
    weight_decay=0.0,
    clip_norm=100.0,
    validate_every=10,
    patience=99,
    seed=3,
)
GOAL = torch.tensor([[1.0, -2.0, 0.5]])


def network() -> nn.Sequential:
    """Two layers with batch statistics between them, so that buffers must survive, too."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 1))


def noisy_loss(wrapped: nn.Module, generator: Generator) -> tuple[Tensor, dict[str, Tensor]]:
    inputs = torch.randn(16, 3, generator=generator)
    error = (wrapped(inputs) - inputs @ GOAL.T).square().mean()
    return error, {"twice": 2 * error.detach()}


def score(wrapped: nn.Module) -> dict[str, float]:
    inputs = torch.randn(64, 3, generator=seeded(99, 0))
    return {"score": float((wrapped(inputs) - inputs @ GOAL.T).square().mean())}


def run(
    folder: Path,
    *,
    module: nn.Module | None = None,
    loss: Callable[..., Any] = noisy_loss,
    validate: Callable[..., Any] = score,
    fingerprint: str = "one",
    **changes: Any,
) -> tuple[nn.Module, LoopResult]:
    module = network() if module is None else module
    result = train(
        build_fabric(device="cpu", precision="32-true"),
        module,
        settings=replace(SETTINGS, **changes),
        loss=loss,
        validate=validate,
        progress_folder=folder,
        fingerprint=fingerprint,
        name="test",
    )
    return module, result


def interrupted(after: int) -> Callable[..., Any]:
    """The loss above, until the process is stopped in its step `after`."""
    steps = iter(range(10**6))

    def loss(wrapped: nn.Module, generator: Generator) -> tuple[Tensor, dict[str, Tensor]]:
        if next(steps) == after:
            raise KeyboardInterrupt
        return noisy_loss(wrapped, generator)

    return loss


def same_weights(first: nn.Module, second: nn.Module) -> bool:
    pairs = zip(first.state_dict().values(), second.state_dict().values(), strict=True)
    return all(torch.equal(one, other) for one, other in pairs)


def test_a_quadratic_is_minimised(tmp_path: Path) -> None:
    module = nn.Linear(1, 1, bias=False)
    nn.init.constant_(module.weight, 0.0)

    def loss(wrapped: nn.Module, generator: Generator) -> tuple[Tensor, dict[str, Tensor]]:
        return (wrapped(torch.ones(1, 1)) - 3.0).square().sum(), {}

    def validate(wrapped: nn.Module) -> dict[str, float]:
        return {"score": float((wrapped(torch.ones(1, 1)) - 3.0).square())}

    module, result = run(tmp_path, module=module, loss=loss, validate=validate, steps=200, learning_rate=0.2)
    assert float(module.weight.detach()) == pytest.approx(3.0, abs=0.05)
    assert result.best["score"] < 0.0025
    assert result.steps == 200


def test_the_same_seed_gives_the_same_weights_and_another_does_not(tmp_path: Path) -> None:
    first, _ = run(tmp_path / "a")
    again, _ = run(tmp_path / "b")
    other, _ = run(tmp_path / "c", seed=4)
    assert same_weights(first, again)
    assert not same_weights(first, other)


@pytest.mark.parametrize("after", [5, 10, 27, 39])
def test_a_killed_run_ends_like_an_undisturbed_one(tmp_path: Path, after: int) -> None:
    undisturbed, expected = run(tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "killed", loss=interrupted(after))
    assert (tmp_path / "killed" / "state.pt").exists() is (after >= SETTINGS.validate_every)
    steps = 0

    def counted(wrapped: nn.Module, generator: Generator) -> tuple[Tensor, dict[str, Tensor]]:
        nonlocal steps
        steps += 1
        return noisy_loss(wrapped, generator)

    torch.manual_seed(after)  # whatever the second process does with the global generator
    resumed, found = run(tmp_path / "killed", loss=counted)
    assert same_weights(undisturbed, resumed)
    assert steps == SETTINGS.steps - after // SETTINGS.validate_every * SETTINGS.validate_every
    assert found.curve == expected.curve
    assert (found.best, found.best_step, found.steps) == (expected.best, expected.best_step, expected.steps)


def test_progress_of_another_run_is_ignored(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "killed", loss=interrupted(25), fingerprint="other data")
    fresh, _ = run(tmp_path / "killed")
    assert same_weights(fresh, run(tmp_path / "whole")[0])


def test_a_finished_run_leaves_no_progress(tmp_path: Path) -> None:
    run(tmp_path / "done")
    assert list((tmp_path / "done").iterdir()) == []


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_stops_the_run_in_one_line(tmp_path: Path, value: float) -> None:
    def loss(wrapped: nn.Module, generator: Generator) -> tuple[Tensor, dict[str, Tensor]]:
        return noisy_loss(wrapped, generator)[0] * value, {}

    with pytest.raises(FloatingPointError, match=r"test: the loss is (nan|inf) .* at step 0, .*32-true") as caught:
        run(tmp_path, loss=loss)
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_training_stops_when_nothing_improves_and_keeps_the_best(tmp_path: Path) -> None:
    scores = iter([5.0, 4.0, 3.0, 3.5, 3.0, 9.0, 1.0])
    seen = []

    def validate(wrapped: nn.Module) -> dict[str, float]:
        seen.append({name: value.clone() for name, value in wrapped.state_dict().items()})
        return {"score": next(scores), "other": 1.0}

    module, result = run(tmp_path, validate=validate, steps=100, patience=3)
    # The start and two better scores, then three that are not.
    assert len(seen) == 6
    assert (result.best_step, result.steps) == (20, 50)
    assert result.best == {"score": 3.0, "other": 1.0}
    assert all(torch.equal(value, seen[2][name]) for name, value in module.state_dict().items())


def test_a_start_that_cannot_be_measured_is_replaced_by_what_can(tmp_path: Path) -> None:
    scores = iter([math.nan, 2.0, math.nan, 1.5, 3.0])
    _, result = run(tmp_path, validate=lambda wrapped: {"score": next(scores)})
    assert (result.best, result.best_step) == ({"score": 1.5}, 30)


def test_training_that_only_harms_returns_the_start(tmp_path: Path) -> None:
    scores = iter([1.0, 2.0, 3.0, 4.0, 5.0])
    module, result = run(tmp_path, validate=lambda wrapped: {"score": next(scores)})
    assert result.best_step == 0
    assert same_weights(module, network())
    assert not module.training


def test_the_rate_warms_up_and_decays(tmp_path: Path) -> None:
    module = nn.Linear(1, 1, bias=False)
    moved = []

    def loss(wrapped: nn.Module, generator: Generator) -> tuple[Tensor, dict[str, Tensor]]:
        moved.append(float(module.weight.detach()))
        return wrapped(torch.ones(1, 1)).sum(), {}

    run(tmp_path, module=module, loss=loss, validate=lambda wrapped: {"score": 0.0})
    # Under a constant gradient Adam moves by the rate itself.
    rates = [(before - after) / SETTINGS.learning_rate for before, after in itertools.pairwise(moved)]
    assert rates[:4] == pytest.approx([0.25, 0.5, 0.75, 1.0], abs=1e-3)
    assert rates[4] == pytest.approx(1.0, abs=0.01)
    assert rates[22] == pytest.approx(0.51, abs=0.01)
    assert rates[-1] < 0.04


def test_factors_slow_and_freeze_parts_of_the_network(tmp_path: Path) -> None:
    start = network().state_dict()
    module, _ = run(tmp_path / "frozen", rate_factors={"0.": 0.0}, freeze_batch_norm=False)
    assert torch.equal(module.state_dict()["0.weight"], start["0.weight"])
    assert not torch.equal(module.state_dict()["2.weight"], start["2.weight"])

    def first_step(factor: float) -> Tensor:
        module = network()
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path / "slow", module=module, loss=interrupted(1), rate_factors={"0.": factor})
        return (module.state_dict()["0.weight"] - start["0.weight"]).abs().max()

    assert float(first_step(0.1) / first_step(1.0)) == pytest.approx(0.1, rel=1e-3)


def test_batch_statistics_can_be_frozen(tmp_path: Path) -> None:
    def loss(wrapped: nn.Module, generator: Generator) -> tuple[Tensor, dict[str, Tensor]]:
        return wrapped(torch.randn(4, 3, 8, 8, generator=generator)).square().mean(), {}

    def statistics(freeze: bool) -> Tensor:
        module = nn.Sequential(nn.Conv2d(3, 2, 3), nn.BatchNorm2d(2))
        scores = iter(range(100, 0, -1))
        run(
            tmp_path,
            module=module,
            loss=loss,
            validate=lambda wrapped: {"score": float(next(scores))},
            freeze_batch_norm=freeze,
        )
        running = module[1].running_mean
        assert isinstance(running, Tensor)
        return running

    assert not statistics(True).any()
    assert statistics(False).any()


def test_gradients_are_clipped(tmp_path: Path) -> None:
    module = nn.Linear(1, 1, bias=False)

    def loss(wrapped: nn.Module, generator: Generator) -> tuple[Tensor, dict[str, Tensor]]:
        if module.weight.grad is not None:
            norms.append(float(module.weight.grad.abs()))
        return 1000.0 * wrapped(torch.ones(1, 1)).sum(), {}

    norms: list[float] = []
    run(tmp_path, module=module, loss=loss, validate=lambda wrapped: {"score": 0.0}, clip_norm=0.5, steps=3)
    assert norms == pytest.approx([0.5, 0.5], rel=1e-4)


@pytest.mark.parametrize("after", [5, 27])
def test_a_killed_run_with_averaged_weights_ends_like_an_undisturbed_one(tmp_path: Path, after: int) -> None:
    options = {"ema_decay": 0.95, "schedule": "step"}
    undisturbed, expected = run(tmp_path / "whole", **options)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "killed", loss=interrupted(after), **options)
    resumed, found = run(tmp_path / "killed", **options)
    assert same_weights(undisturbed, resumed)
    assert found.curve == expected.curve


def test_the_average_is_what_is_validated_and_kept(tmp_path: Path) -> None:
    module, seen, averaged = network(), [], []
    own: list[Tensor] = []

    def loss(wrapped: nn.Module, generator: Generator) -> tuple[Tensor, dict[str, Tensor]]:
        own.append(module[2].weight.detach().clone())
        return noisy_loss(wrapped, generator)

    def validate(wrapped: nn.Module) -> dict[str, float]:
        seen.append(module[2].weight.detach().clone())
        return {"score": -float(len(seen))}

    module, _ = run(tmp_path, module=module, loss=loss, validate=validate, steps=21, validate_every=20, ema_decay=0.5)
    average = own[0]
    # The twenty-first step starts from the weights that the twentieth left.
    for step, weights in enumerate(own[1:]):
        decay = min(0.5, (1 + step) / (10 + step))
        average = decay * average + (1 - decay) * weights
        averaged.append(average)
    torch.testing.assert_close(seen[1], averaged[19])
    assert not torch.allclose(seen[1], own[20], atol=1e-5)
    assert torch.equal(module.state_dict()["2.weight"], seen[2])


def test_portions_of_a_batch_add_up(tmp_path: Path) -> None:
    plain = nn.Linear(3, 1)

    def load(parts: int) -> Callable[[Generator], Any]:
        return lambda generator: torch.randn(12, 3, generator=generator).chunk(parts)

    def loss(wrapped: nn.Module, inputs: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        error = (wrapped(inputs) - inputs @ GOAL.T).square().sum() / 12
        return error, {"faces": torch.tensor(float(len(inputs)))}

    found = []
    for parts in (1, 3):
        module = nn.Linear(3, 1)
        module.load_state_dict(plain.state_dict())
        result = train(
            build_fabric(device="cpu", precision="32-true"),
            module,
            settings=replace(SETTINGS, steps=15),
            loss=loss,
            load=load(parts),
            validate=score,
            progress_folder=tmp_path / str(parts),
            fingerprint="one",
            name="test",
        )
        found.append((module.weight.detach(), result))
    torch.testing.assert_close(found[0][0], found[1][0], rtol=1e-4, atol=1e-6)
    assert [row["value"] for row in found[1][1].curve if row["name"] == "faces"] == [12.0, 12.0]
    assert found[1][1].steps_taken == 15
    assert 0 < found[1][1].step_seconds <= found[1][1].seconds
    assert 0 <= found[1][1].waiting_seconds < found[1][1].step_seconds


def test_progress_stays_until_its_caller_removes_it(tmp_path: Path) -> None:
    arguments: dict[str, Any] = {
        "settings": SETTINGS,
        "loss": noisy_loss,
        "validate": score,
        "progress_folder": tmp_path,
        "fingerprint": "one",
        "name": "test",
        "keep_progress": True,
    }
    modules, results = [network(), network()], []
    for module in modules:
        results.append(train(build_fabric(device="cpu", precision="32-true"), module, **arguments))
    assert [result.steps_taken for result in results] == [40, 0]
    assert results[0].curve == results[1].curve
    assert same_weights(*modules)
    assert (tmp_path / "state.pt").exists()


def test_the_curve_holds_training_and_validation(tmp_path: Path) -> None:
    _, result = run(tmp_path)
    rows = {(row["step"], row["split"], row["name"]) for row in result.curve}
    assert rows == {
        *((step, "train", name) for step in (0, 10, 20, 30) for name in ("loss", "twice")),
        *((step, "validation", "score") for step in (0, 10, 20, 30, 40)),
    }
    losses = {row["name"]: row["value"] for row in result.curve if row["step"] == 30 and row["split"] == "train"}
    assert losses["twice"] == pytest.approx(2 * losses["loss"])


def test_steps_have_generators_of_their_own() -> None:
    draws = [torch.rand(1, generator=seeded(seed, step)).item() for seed in (0, 1) for step in (-1, 0, 1)]
    assert len(set(draws)) == 6
    assert torch.rand(1, generator=seeded(0, 1)).item() == draws[2]


def test_what_follows_a_step_is_done_after_each(tmp_path: Path) -> None:
    done: list[Tensor] = []
    module = network()
    train(
        build_fabric(device="cpu", precision="32-true"),
        module,
        settings=replace(SETTINGS, steps=5),
        loss=noisy_loss,
        settle=lambda: done.append(module[0].weight.detach().clone()),
        validate=score,
        progress_folder=tmp_path,
        fingerprint="one",
        name="test",
    )
    assert len(done) == 5
    # After the optimiser has moved the weights, and before the next step does.
    assert all(not torch.equal(first, second) for first, second in itertools.pairwise(done))
