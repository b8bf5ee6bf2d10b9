"""The neural emission of the belief filter: density as a formula, gradient of its training, two faces, files.

The network reads returns before the bar only. A network that reads the bar's own return is caught by its predictive
density, which then no longer sums to one over the returns that could have come.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import fields, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from test_belief import SEED, enumerated, hand_made, some_returns

import regimegym
from encoders import belief_models
from encoders import encoder as files
from encoders.belief import BeliefConfig, BeliefFilter, running_means
from encoders.belief_models import BeliefData, BeliefModel, model_of
from encoders.belief_training import PRIOR, BeliefTraining, Smoothed, choose_regimes, expectation, fit_belief, smooth
from encoders.jepa import JEPAEncoder
from encoders.jepa_training import JEPAConfig, train
from encoders.neural_belief import FLOOR, NeuralBelief, NeuralFilter, belief_of, network_inputs
from encoders.odds import OddsFilter, describe, log_likelihood
from markets import synthetic
from markets.errors import ArtefactError, ConfigError, DataError, UnknownNameError
from markets.synthetic_regimes import posterior, regime_market, simulate

Floats = NDArray[np.float64]

NEURAL = BeliefConfig(regimes=2, emission="neural")
DECAY = 0.5 ** (1.0 / np.array([1.0, 3.0, 8.0, 20.0]))
CHAIN = np.array([[0.95, 0.03, 0.02], [0.1, 0.85, 0.05], [0.02, 0.08, 0.9]])


def made(regimes: int = 3) -> NeuralBelief:
    """A filter that nobody fitted, every number of it different and its network far from 0, regimes out of order."""
    rng = np.random.default_rng(SEED)
    chain = CHAIN if regimes == 3 else rng.dirichlet(np.ones(regimes), regimes) * 0.1 + 0.9 * np.eye(regimes)
    base = np.array([1.5, 0.1, 0.5, 0.8])[:regimes]
    return NeuralBelief(
        base=base, location=rng.normal(0.0, 0.1, regimes), dof=np.array([4.0, 6.5, 5.0, 3.0])[:regimes],
        location_weight=rng.normal(0.0, 0.2, (regimes, 8)), scale_weight=rng.normal(0.0, 0.4, (regimes, 8)),
        scale_bias=rng.normal(0.0, 0.3, regimes), hidden_weight=rng.normal(0.0, 0.7, (8, 9)),
        hidden_bias=rng.normal(0.0, 0.5, 8), decay=DECAY, transition=chain, variance=0.7,
        typical_volatility=np.sqrt(base), typical_drift=rng.normal(0.0, 0.1, regimes),
    )  # fmt: skip


def density(p: NeuralBelief, returns: Floats) -> Floats:
    """p(r_t | regime, past), written as the formula of the module stands: ``(T, K)``."""
    scale, out = math.sqrt(p.variance), np.empty((len(returns), len(p)))
    means, past = np.full(4, p.variance), [0.0] * 5
    for t, value in enumerate(returns):
        inputs = [math.asinh(one / scale) for one in past] + [0.5 * math.log(e / p.variance + 1e-3) for e in means]
        units = np.tanh(p.hidden_weight @ np.array(inputs) + p.hidden_bias)
        for k, nu in enumerate(p.dof):
            swing = math.tanh((p.scale_weight[k] @ units + p.scale_bias[k]) / 2)
            deviation = math.sqrt(p.base[k] * math.exp(3.0 * swing))
            z = value / deviation - (p.location[k] + p.location_weight[k] @ units)
            normal = math.gamma((nu + 1) / 2) / math.gamma(nu / 2) / math.sqrt((nu - 2) * math.pi)
            out[t, k] = normal / deviation * (1.0 + z * z / (nu - 2)) ** (-(nu + 1) / 2)
        means, past = p.decay * means + (1.0 - p.decay) * value**2, [value, *past[:4]]
    return out


@cache
def two_regimes() -> tuple[Floats, NDArray[np.int64], NeuralBelief, Smoothed, tuple[float, ...]]:
    """A quiet and a wild regime, and the filter found in them: returns, labels, filter, smoothed, progress."""
    returns, labels = simulate(SEED, 4000, regime_market("market", 2))
    seen: list[float] = []
    schedule = replace(BeliefTraining.of("neural"), iterations=40, moves=0, last=0)
    fitted, smoothed = fit_belief([returns], NEURAL, schedule, lambda step, total, value: seen.append(value))
    assert isinstance(fitted, NeuralBelief)
    return returns, labels, fitted, smoothed, tuple(seen)


# --- what is served ---------------------------------------------------------------------------------------------------


def test_odds_and_likelihood_are_the_sum_over_every_path() -> None:
    p, returns = made(), some_returns(7)
    found, weights = NeuralFilter(p).table(returns), density(p, returns)
    for t in range(len(returns)):
        expected = enumerated(weights[: t + 1], p.transition, p.stationary)[0][-1]
        np.testing.assert_allclose(found[t], expected, rtol=1e-11)
    total = enumerated(weights, p.transition, p.stationary)[2]
    assert log_likelihood(p, returns) == pytest.approx(math.log(total) / 7, rel=1e-12)


class Leaky(NeuralFilter):
    """Mutant: the network reads the return that it is to give the density of."""

    def take(self, state: Floats, value: float) -> float:
        count = len(self.parameters)
        after = state.copy()
        super().take(after, value)
        seen = state.copy()
        seen[count:] = after[count:]
        log = super().take(seen, value)
        state[:count], state[count:] = seen[:count], after[count:]
        return log


def assert_sums_to_one(served: OddsFilter) -> None:
    """The density of every return that could come next sums to one, after any past."""
    grid = np.sinh(np.linspace(-10.0, 10.0, 1001))
    state = served.begin()
    for value in some_returns(12):
        logs = np.array([served.take(state.copy(), float(one)) for one in grid])
        assert np.trapezoid(np.exp(logs), grid) == pytest.approx(1.0, abs=1e-4)
        served.take(state, float(value))


def test_the_predictive_density_sums_to_one_and_catches_a_network_that_reads_the_present_return() -> None:
    assert_sums_to_one(NeuralFilter(made()))
    assert_sums_to_one(BeliefFilter(hand_made()))
    with pytest.raises(AssertionError):
        assert_sums_to_one(Leaky(made()))


def assert_reads_the_past_only(inputs: Callable[[Floats, Floats, float], Floats]) -> None:
    """Row t of the training's inputs is the same bits whatever return t and those after it are."""
    returns = some_returns(60)
    for t in (0, 1, 4, 30):
        other = returns.copy()
        other[t:] = 3.0 - other[t:]
        rows, changed = inputs(returns, DECAY, 0.7), inputs(other, DECAY, 0.7)
        assert np.array_equal(rows[: t + 1], changed[: t + 1])
        assert not np.array_equal(rows[t + 1], changed[t + 1])


@pytest.mark.parametrize("fault", ["none", "lags", "running means"])
def test_the_inputs_of_the_training_know_the_returns_before_the_bar_only(fault: str) -> None:
    def leaky(returns: Floats, decay: Floats, variance: float) -> Floats:
        right = network_inputs(returns, decay, variance)
        ahead = np.vstack([right[1:], right[-1:]])
        return np.hstack([ahead[:, :5], right[:, 5:]] if fault == "lags" else [right[:, :5], ahead[:, 5:]])

    if fault == "none":
        assert_reads_the_past_only(network_inputs)
        return
    with pytest.raises(AssertionError):
        assert_reads_the_past_only(leaky)


def test_the_inputs_are_those_of_the_formula_and_a_series_may_be_shorter_than_the_lags() -> None:
    returns = some_returns(9)
    rows = network_inputs(returns, DECAY, 0.7)
    assert rows[8, :5].tolist() == pytest.approx([math.asinh(returns[8 - i] / math.sqrt(0.7)) for i in range(1, 6)])
    assert rows[0].tolist() == pytest.approx([0.0] * 5 + [0.5 * math.log(1.0 + FLOOR)] * 4)
    np.testing.assert_allclose(np.exp(2 * rows[:, 5:]) - FLOOR, running_means(returns, DECAY, 0.7) / 0.7)
    for bars in (1, 2, 5):
        assert np.array_equal(network_inputs(returns[:bars], DECAY, 0.7), rows[:bars])


def test_table_and_stream_are_equal_bit_for_bit_and_go_on_from_a_copied_state() -> None:
    served, returns = NeuralFilter(made()), some_returns()
    table, state = served.table(returns), served.begin()
    for t, value in enumerate(returns):
        if t == 200:
            state = state.copy()
        assert np.array_equal(served.update(state, float(value)), table[t])


def assert_blind(table: Callable[[Floats], Floats], cut: int = 250) -> None:
    """Rows up to ``cut - 1`` are the same bits under another future, and without one."""
    returns, other = some_returns(), some_returns()
    other[cut:] = -3.0 * other[cut:] + 1.0
    whole = table(returns)
    assert np.array_equal(whole[:cut], table(other)[:cut])
    assert np.array_equal(whole[:cut], table(returns[:cut]))
    assert not np.array_equal(whole[cut:], table(other)[cut:])


def test_no_row_knows_a_later_return() -> None:
    assert_blind(NeuralFilter(made()).table)


@pytest.mark.parametrize("fault", ["smooths", "scaled by the whole series"])
def test_the_check_catches_a_filter_that_looks_ahead(fault: str) -> None:
    p = made()

    def leaky(returns: Floats) -> Floats:
        if fault == "smooths":
            return smooth(np.log(density(p, returns)), p.transition, np.zeros(1, np.int64)).posterior
        return NeuralFilter(replace(p, variance=float(np.mean(returns**2)))).table(returns)

    with pytest.raises(AssertionError):
        assert_blind(leaky)


def test_a_return_nobody_saw_moves_the_odds_by_the_chain_and_nothing_else() -> None:
    p, returns = made(), some_returns(300)
    served, gaps = NeuralFilter(p), [0, 40, 41, 299]
    broken = returns.copy()
    broken[gaps] = np.nan
    table = served.table(broken, missing=True)
    np.testing.assert_allclose(table[0], p.stationary @ p.transition, rtol=1e-12)
    np.testing.assert_allclose(table[40:42], [table[39] @ p.transition, table[40] @ p.transition], rtol=1e-12)
    state = served.begin()
    for t, value in enumerate(broken):
        memory = state[3:].copy()
        served.take(state, float(value))
        assert np.array_equal(state[:3], table[t])
        assert np.array_equal(memory, state[3:]) == (t in gaps)
    with pytest.raises(DataError, match="row 0"):
        served.table(broken)


def test_a_return_that_is_not_finite_is_named_and_leaves_the_state_alone() -> None:
    served = NeuralFilter(made())
    state = served.begin()
    before = state.copy()
    for value in (math.nan, math.inf):
        with pytest.raises(DataError, match=str(value)):
            served.update(state, value)
    assert np.array_equal(state, before)
    with pytest.raises(DataError, match=r"\(5, 2\)"):
        served.table(np.zeros((5, 2)))


def test_odds_are_odds_whatever_the_returns() -> None:
    returns = some_returns(3000)
    returns[500:2500] = 0.0
    returns[1000] = -100.0 * 600.0 * math.log(10.0)  # a price 1e600 times lower
    odds = NeuralFilter(made()).table(returns)
    np.testing.assert_allclose(odds.sum(axis=1), 1.0, atol=1e-12)
    assert (odds >= 0.0).all()


def test_ordered_sorts_by_volatility_and_moves_every_number_with_its_regime() -> None:
    p, returns = made(4), some_returns()
    q = p.ordered()
    assert (np.diff(p.volatility) < 0).any()
    assert (np.diff(q.volatility) > 0).all()
    order = [int(np.flatnonzero(p.base == base)[0]) for base in q.base]
    np.testing.assert_allclose(NeuralFilter(q).table(returns), NeuralFilter(p).table(returns)[:, order], rtol=1e-9)
    by_regime = [f.name for f in fields(q) if f.name not in ("hidden_weight", "hidden_bias", "decay", "variance")]
    for name in by_regime:  # a number left behind is seen
        left = replace(q, **{name: getattr(p, name)})
        if name.startswith("typical"):
            assert describe(left) != describe(q)
        else:
            assert log_likelihood(left, returns) != pytest.approx(log_likelihood(p, returns), rel=1e-12), name


def test_the_card_has_a_row_a_regime() -> None:
    p = made()
    rows = describe(p)
    assert [row["volatility"] for row in rows] == p.typical_volatility.tolist()
    assert [row["drift"] for row in rows] == p.typical_drift.tolist()
    assert rows[1]["mean_spell_bars"] == pytest.approx(1.0 / (1.0 - p.transition[1, 1]))
    assert sum(row["share"] for row in rows) == pytest.approx(1.0)


# --- files ------------------------------------------------------------------------------------------------------------


def test_arrays_rebuild_the_same_filter_of_either_emission() -> None:
    for p in (made(), hand_made()):
        again = belief_of(p.arrays())
        assert type(again) is type(p)
        assert np.array_equal(again.filter().table(some_returns()), p.filter().table(some_returns()))


def test_arrays_that_do_not_fit_are_refused_by_name() -> None:
    arrays = made().arrays()
    for name in arrays:
        with pytest.raises(KeyError, match=name):
            NeuralBelief.from_arrays({other: value for other, value in arrays.items() if other != name})
        if name != "variance":
            with pytest.raises(ArtefactError, match="has shape"):
                NeuralBelief.from_arrays({**arrays, name: arrays[name][:-1]})


# --- training ---------------------------------------------------------------------------------------------------------


def small(emission: str) -> BeliefModel:
    """Two short series and numbers far from where a training begins."""
    rng = np.random.default_rng(SEED)
    data = BeliefData([some_returns(70), some_returns(110)[70:]], BeliefConfig(regimes=2, emission=emission))
    model = model_of(BeliefConfig(regimes=2, emission=emission), data, rng)
    return model.with_values({name: v + 0.4 * rng.standard_normal(v.shape) for name, v in model.numbers().items()})


def gradient(model: BeliefModel) -> dict[str, Floats]:
    """What an iteration of the training ascends."""
    _, expected = expectation(model)
    expected.backward()
    return {name: value.grad.numpy() for name, value in model.values.items() if value.grad is not None}


def assert_gradient_of_the_marginal_likelihood(model: BeliefModel, found: dict[str, Floats]) -> None:
    """Every number moved a little either way: the likelihood of all paths changes as the gradient says."""

    def objective(values: dict[str, Floats]) -> float:
        moved = model.with_values(values)
        log_chain = moved.log_chain().detach().numpy()
        logs = moved.log_density().detach().numpy()
        likelihood = smooth(logs, np.exp(log_chain), model.data.starts).log_likelihood
        return likelihood * len(logs) + PRIOR * float(log_chain.sum())

    assert set(found) == set(model.numbers())
    for name, value in model.numbers().items():
        for index in np.ndindex(value.shape):
            sides = []
            for step in (1e-5, -1e-5):
                values = model.numbers()
                values[name][index] += step
                sides.append(objective(values))
            assert found[name][index] == pytest.approx((sides[0] - sides[1]) / 2e-5, abs=2e-6, rel=1e-5), (name, index)


@pytest.mark.parametrize("emission", ["student", "neural"])
def test_an_iteration_ascends_the_exact_gradient_of_the_marginal_likelihood(emission: str) -> None:
    model = small(emission)
    assert_gradient_of_the_marginal_likelihood(model, gradient(model))


@pytest.mark.parametrize("fault", ["filtered odds", "series joined"])
def test_finite_differences_catch_another_gradient(fault: str) -> None:
    model = small("neural")
    wrong = model.with_values(model.numbers())
    if fault == "series joined":
        wrong.data = copy.copy(model.data)
        wrong.data.starts = model.data.starts[:1]
        found = gradient(wrong)
    else:
        log_density, log_chain = wrong.log_density(), wrong.log_chain()
        smoothed, _ = expectation(model)
        filtered = smoothed.predictive * np.exp(log_density.detach().numpy())
        filtered /= filtered.sum(axis=1, keepdims=True)
        weights = log_density.new_tensor(filtered), log_chain.new_tensor(smoothed.moves + PRIOR)
        ((weights[0] * log_density).sum() + (weights[1] * log_chain).sum()).backward()
        found = {name: value.grad.numpy() for name, value in wrong.values.items() if value.grad is not None}
    with pytest.raises(AssertionError):
        assert_gradient_of_the_marginal_likelihood(model, found)


def test_what_is_trained_is_what_is_served() -> None:
    """The training's densities are the formula of the numbers it hands over."""
    model = small("neural")
    p = model.parameters(np.ones((110, 2)))
    assert isinstance(p, NeuralBelief)
    logs = model.log_density().detach().numpy()
    for first, stop in ((0, 70), (70, 110)):
        np.testing.assert_allclose(np.exp(logs[first:stop]), density(p, model.data.returns[first:stop]), rtol=1e-10)


def test_training_raises_the_likelihood_and_finds_a_planted_market() -> None:
    returns, labels, fitted, smoothed, seen = two_regimes()
    market = regime_market("market", 2)
    assert len(seen) == 40
    assert smoothed.log_likelihood > seen[0] + 0.005
    assert log_likelihood(fitted, returns) == pytest.approx(smoothed.log_likelihood, abs=1e-3)
    right = float(np.mean(fitted.filter().table(returns).argmax(axis=1) == labels))
    assert right > np.mean(posterior(returns, market).argmax(axis=1) == labels) - 0.03
    np.testing.assert_allclose(fitted.volatility, market.volatility, rtol=0.35)


def test_the_network_learns_what_the_past_says_of_the_next_return(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every second return is the negative of the one before: with a network that stays at 0, training cannot know."""
    shocks = np.random.default_rng(SEED).standard_t(5, 2000)
    returns = np.where(np.arange(2000) % 2, 0.2 * shocks - 0.8 * np.append(0.0, shocks[:-1]), shocks)
    schedule = replace(BeliefTraining.of("neural"), iterations=40, moves=0, last=0)
    learned = fit_belief([returns], NEURAL, schedule)[1].log_likelihood
    still = [np.zeros((2000, 9))]
    monkeypatch.setattr(belief_models, "network_inputs", lambda *_: still[0])
    assert learned > fit_belief([returns], NEURAL, schedule)[1].log_likelihood + 0.03


def test_the_same_seed_finds_the_same_filter_and_another_seed_starts_elsewhere() -> None:
    returns, schedule = two_regimes()[0][:1000], BeliefTraining(iterations=3, moves=1, refit=3, last=1)
    first, again, other = (fit_belief([returns], NEURAL, replace(schedule, seed=s))[0].arrays() for s in (5, 5, 6))
    assert all(np.array_equal(value, again[name]) for name, value in first.items())
    assert not np.array_equal(first["hidden_weight"], other["hidden_weight"])


def test_each_emission_has_its_schedule_and_its_memory() -> None:
    assert BeliefTraining.of("student", 3) == BeliefTraining(seed=3)
    neural = BeliefTraining.of("neural", 3)
    assert (neural.iterations, neural.rate, neural.last, neural.last_rate) == (100, 0.03, 100, 0.02)
    with pytest.raises(UnknownNameError, match="Did you mean 'neural'"):
        BeliefTraining.of("nueral")
    assert BeliefConfig().memory == (2.0, 6.0, 20.0)
    assert NEURAL.memory == (1.0, 3.0, 8.0, 20.0)
    assert replace(NEURAL, half_lives=(4.0,)).memory == (4.0,)
    seen: list[int] = []
    short = replace(NEURAL, half_lives=(4.0,))
    fitted = fit_belief([some_returns(120)], short, None, lambda step, total, value: seen.append(total))[0]
    assert set(seen) == {100 + 4 * 60 + 100}
    assert fitted.arrays()["hidden_weight"].shape == (8, 6)


def test_the_number_of_regimes_can_be_chosen_with_it() -> None:
    count, scores = choose_regimes([some_returns(600)], [some_returns(200)], NEURAL, (2, 3))
    assert count in scores
    assert list(scores) == [2, 3]


@pytest.mark.parametrize(
    ("settings", "kind", "message"),
    [
        ({"emission": "nueral"}, UnknownNameError, "Did you mean 'neural'.*student, neural"),
        ({"emission": ""}, UnknownNameError, "student, neural"),
        ({"emission": "neural", "bank_cap": 0.5}, ConfigError, "bank_cap=0.5 is of emission='student'"),
        ({"emission": "neural", "half_lives": (0.0,)}, ConfigError, "half_lives"),
    ],
)
def test_a_structure_that_cannot_work_is_refused_by_name(settings: Any, kind: type[Exception], message: str) -> None:
    with pytest.raises(kind, match=message):
        BeliefConfig(**settings)


# --- inside the encoder -----------------------------------------------------------------------------------------------


@cache
def encoder() -> JEPAEncoder:
    config = JEPAConfig(hidden=6, inner=8, latent=4, steps=2, sequences=2, length=400, belief=NEURAL)
    return train([synthetic.crypto(7001, "1h", 2000)], config)[0]


def test_an_encoder_carries_it_saves_it_and_serves_it_alike(tmp_path: Path) -> None:
    bars = synthetic.crypto(5, "1h", 1500)
    files.save(encoder(), tmp_path)
    again = files.load(tmp_path)
    assert isinstance(again, JEPAEncoder)
    assert isinstance(again.belief, NeuralBelief)
    assert again.hash == encoder().hash
    table = again.table(bars).values
    assert table.tobytes() == encoder().encode(bars).tobytes()
    assert again.encode(bars.between(0, 900)).tobytes() == table[:900].tobytes()
    stream: Any = again.stream()
    for row in range(len(bars)):
        if row == 700:
            kept = {name: value.copy() for name, value in stream.state_dict().items()}
            stream = again.stream()
            stream.load_state_dict(kept)
        out = stream.push(float(bars.close[row, 0]), float(bars.volume[row, 0]))
        assert (out is None) == (row < again.warm_up)
        assert out is None or np.abs(out - table[row]).max() <= 1e-5


def test_other_numbers_of_the_network_are_another_encoder() -> None:
    one = encoder()
    assert isinstance(one.belief, NeuralBelief)
    arrays = {**one.arrays(), "belief.hidden_bias": one.belief.hidden_bias + 1e-9}
    assert JEPAEncoder.build(one.config(), arrays, one.provenance, one.facts).hash != one.hash


def test_the_command_line_pretrains_with_it_and_names_what_it_does_not_know(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from encoders import pretrain as module

    original = module._Judge.__init__

    def lenient(self: Any, *args: Any) -> None:
        original(self, *args)
        self.reference = -1e9  # a few steps may be too few for the alarm, which has a test of its own

    monkeypatch.setattr(module._Judge, "__init__", lenient)
    words = ["pretrain", "--bars", "synthetic:crypto?seed=7001&interval=1h&bars=2000", "--steps", "2", "--regimes", "2"]
    words += ["--set", "sequences=2", "--set", "length=400", "--quiet", "--out", str(tmp_path)]
    assert regimegym.main([*words, "--emission", "nueral"]) == 2
    assert "Did you mean 'neural'" in capsys.readouterr().err
    assert regimegym.main([*words, "--emission", "neural"]) == 0
    loaded = files.load(tmp_path)
    assert isinstance(loaded, JEPAEncoder)
    assert isinstance(loaded.belief, NeuralBelief)
    assert "--emission neural" in loaded.facts["command"]
    assert "emission `neural`" in (tmp_path / "card.md").read_text()
