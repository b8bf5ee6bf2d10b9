"""The default encoder: table and stream, causality, files, training that resumes, and the wrapper that serves it."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from safetensors.numpy import load as load_tensors
from safetensors.numpy import save as save_tensors

import regimegym
from agents import vec_env
from encoders import encoder as files
from encoders.belief import BeliefConfig
from encoders.encoder import Provenance
from encoders.jepa import JEPAEncoder
from encoders.jepa_training import JEPAConfig, train
from encoders.koopman_training import CollapseError
from encoders.pretrain import PretrainConfig, pretrain
from encoders.regimes import VOICES, transitions
from markets import storage, synthetic
from markets.bars import Bars
from markets.errors import ArtefactError, ConfigError, DataError, InSampleError, RegimeGymError, UnknownNameError

CONFIG = JEPAConfig(
    channels=("return", "volatility", "volume"), hidden=6, inner=8, latent=4, steps=4, sequences=2, length=400,
    belief=BeliefConfig(regimes=2),
)  # fmt: skip
TRAINED = 7001  # seed of the market that was trained on
PLAYED = "synthetic:crypto?seed=3&interval=1h&bars=6000"


@pytest.fixture(scope="module")
def made() -> JEPAEncoder:
    return train([synthetic.crypto(TRAINED, "1h", 3000)], CONFIG)[0]


@pytest.fixture(scope="module")
def folder(made: JEPAEncoder, tmp_path_factory: pytest.TempPathFactory) -> str:
    place = tmp_path_factory.mktemp("encoder")
    files.save(made, place)
    return str(place)


@pytest.fixture(scope="module")
def bars() -> Bars:
    return synthetic.crypto(5, "1h", 3000)


# ---- two faces --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("voice", VOICES)
def test_stream_equals_table_and_goes_on_after_a_restart(made: JEPAEncoder, bars: Bars, voice: str) -> None:
    encoder = made.speaking(voice)
    table = encoder.table(bars).values
    stream: Any = encoder.stream()
    for row in range(2000):
        if row == 900:
            kept = {name: value.copy() for name, value in stream.state_dict().items()}
            stream = encoder.stream()
            stream.load_state_dict(kept)
        out = stream.push(float(bars.close[row, 0]), float(bars.volume[row, 0]))
        assert (out is None) == (row < encoder.warm_up)
        if out is not None:
            assert np.abs(out - table[row]).max() <= 1e-5, row


def dearer_from(bars: Bars, k: int) -> Bars:
    """Return bars whose prices are 7 % higher from row k on, all at the close."""
    close = bars.close.copy()
    close[k:] *= 1.07
    columns = {name: np.where(np.arange(len(bars))[:, None] < k, bars.columns[name], close) for name in bars.columns}
    columns["volume"] = bars.volume
    return replace(bars, **columns)  # type: ignore[arg-type]


@pytest.mark.parametrize("k", [700, 2048, 2999])
def test_nothing_before_a_changed_bar_is_another_bit(made: JEPAEncoder, bars: Bars, k: int) -> None:
    table = made.table(bars).values
    other = made.table(dearer_from(bars, k)).values
    assert other[:k].tobytes() == table[:k].tobytes()
    assert not np.array_equal(other[k:], table[k:])
    assert made.table(bars.between(0, k)).values.tobytes() == table[:k].tobytes(), "a prefix has the same bits"


def test_mutant_an_embedding_that_is_scaled_by_the_whole_series_is_found(made: JEPAEncoder, bars: Bars) -> None:
    def leaky(series: Bars) -> Any:
        embedding = made.embed(series)
        return embedding / embedding.std(axis=0)

    assert not np.array_equal(leaky(bars)[:2000], leaky(bars.between(0, 2000)))


def test_rows_do_not_depend_on_history_before_the_declared_warm_up(made: JEPAEncoder) -> None:
    """E15. The declared warm-up is enough for the belief to forget; half of the look-back of the trunk is not."""
    at = made.warm_up + 1_000
    long = synthetic.crypto(8, "1h", at + 2_000)
    table = made.table(long).values
    short = made.table(long.between(at - made.warm_up, len(long))).values
    assert np.abs(short[made.warm_up :] - table[at:]).max() <= 1e-5  # a hardly trained embedding is scaled up 400 times
    early = made.encode(long.between(at - 130, len(long)))
    assert np.abs(early[130:300] - table[at : at + 170]).max() > 1e-3, "the test has no power"


def test_values_that_no_check_let_through_spread_forward_only(made: JEPAEncoder, bars: Bars) -> None:
    """E13. Bars behind the checks may hold NaN from k on."""
    k = 1500
    columns = {name: value.copy() for name, value in bars.columns.items()}
    for value in columns.values():
        value[k:] = np.nan
    broken = Bars.unchecked(
        time=bars.time, interval=bars.interval, symbols=bars.symbols, funding_time=bars.funding_time,
        funding_rate=bars.funding_rate, market=bars.market, source=bars.source, **columns,
    )  # fmt: skip
    assert made.encode(broken)[:k].tobytes() == made.encode(bars)[:k].tobytes()


def extreme_market(kind: str, count: int) -> Bars:
    """Bars that never move, that nobody trades, or that halve and double."""
    close = np.full(count, 100.0)
    volume = np.full(count, 5.0)
    if kind == "no volume":
        volume[:] = 0.0
    if kind == "wild":
        close = 100.0 * np.exp(np.cumsum(np.where(np.arange(count) % 2, 0.9, -0.9)))
        volume = np.where(np.arange(count) % 3, 1e-9, 1e12)
    column = {name: close[:, None] for name in ("open", "high", "low", "close")}
    column["open"] = np.concatenate([close[:1], close[:-1]])[:, None]
    column["high"], column["low"] = (
        np.maximum(column["open"], close[:, None]),
        np.minimum(column["open"], close[:, None]),
    )
    hours = np.datetime64("2024-01-01", "ns") + np.arange(count) * np.timedelta64(3600 * 10**9, "ns")
    return Bars(
        time=hours, interval=np.timedelta64(3600 * 10**9, "ns"), symbols=("BTCUSDT",), volume=volume[:, None],
        funding_time=np.empty(0, "datetime64[ns]"), funding_rate=np.empty((0, 1)), **column,
    )  # fmt: skip


@pytest.mark.parametrize("kind", ["constant", "no volume", "wild"])
def test_rows_stay_finite_and_in_their_bounds(made: JEPAEncoder, kind: str) -> None:
    """E70. Constant, empty and huge inputs."""
    table = made.table(extreme_market(kind, made.warm_up + 1500))  # checks bounds and finiteness from warm_up on
    assert table.values.dtype == np.float32
    odds = table.values[table.valid_from :, -made.regimes :]
    assert np.abs(odds.sum(axis=1) - 1.0).max() < 1e-5


def test_mutant_an_embedding_that_is_not_clipped_is_found(made: JEPAEncoder, monkeypatch: pytest.MonkeyPatch) -> None:
    """Twin of E70."""
    monkeypatch.setattr(
        JEPAEncoder, "encode",
        lambda self, bars: np.concatenate([self.embed(bars), self.odds(bars)], axis=1).astype(np.float32),
    )  # fmt: skip
    with pytest.raises(RegimeGymError, match="jepa_"):
        made.table(extreme_market("wild", made.warm_up + 1500))


def check_alike(encode: Callable[[Bars], Any], bars: Bars) -> None:
    """The same bars twice, after other bars, and as a part of more bars: the same rows."""
    first = encode(bars)
    encode(synthetic.crypto(6, "1h", 3000))
    assert encode(bars).tobytes() == first.tobytes(), "the encoder has changed by being used"
    assert np.abs(encode(bars.between(0, 2000)) - first[:2000]).max() <= 1e-5, "a row depends on those beside it"


def test_an_encoder_is_not_changed_by_use_and_a_row_not_by_its_batch(made: JEPAEncoder, bars: Bars) -> None:
    """E71."""
    check_alike(made.encode, bars)


@pytest.mark.parametrize("fault", ["running statistics", "statistics of the batch"])
def test_mutant_an_encoder_in_training_mode_is_found(made: JEPAEncoder, bars: Bars, fault: str) -> None:
    """Twin of E71. Batch normalisation as it behaves while training."""
    mean = np.zeros(len(made.names), np.float32)

    def encode(series: Bars) -> Any:
        nonlocal mean
        rows = made.encode(series)
        if fault == "statistics of the batch":
            return rows - rows.mean(axis=0)
        mean = 0.9 * mean + 0.1 * rows.mean(axis=0)
        return rows - mean

    with pytest.raises(AssertionError, match=r"changed by being used|depends on those beside"):
        check_alike(encode, bars)


# ---- files ------------------------------------------------------------------------------------------------------


def test_a_saved_encoder_comes_back_with_the_same_bits(made: JEPAEncoder, folder: str, bars: Bars) -> None:
    again = files.load(folder)
    assert again.hash == made.hash
    assert again.provenance == made.provenance
    assert again.encode(bars).tobytes() == made.encode(bars).tobytes()


def test_damaged_weights_are_refused_and_named(made: JEPAEncoder, tmp_path: Path) -> None:
    """E72."""
    check_refusals(made, tmp_path)


def test_mutant_weights_that_are_taken_as_they_come_are_found(
    made: JEPAEncoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Twin of E72. What cannot be read becomes an encoder of other numbers."""
    load = files.load

    def careless(path: Any) -> Any:
        try:
            return load(path)
        except RegimeGymError:
            return made

    monkeypatch.setattr(files, "load", careless)
    with pytest.raises(pytest.fail.Exception):
        check_refusals(made, tmp_path)


def check_refusals(made: JEPAEncoder, tmp_path: Path) -> None:
    """Cut, foreign and broken weights raise and say what is wrong."""
    path = files.save(made, tmp_path)
    whole = path.read_bytes()
    for cut in (0, 100, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:cut])
        with pytest.raises(ArtefactError):
            files.load(tmp_path)
    path.write_bytes(whole)
    arrays = made.arrays()
    for name, wrong, message in (
        ("mean", np.zeros(3, np.float32), "mean has shape"),
        ("trunk.b_weight", np.zeros((6, 5, 5), np.float32), "b_weight"),
        ("belief.base", np.full(2, np.nan), "not finite"),
    ):
        with pytest.raises((ArtefactError, ConfigError), match=message):
            rebuilt(made, {**arrays, name: wrong}, tmp_path)
    with pytest.raises(UnknownNameError, match="unknown encoder"):
        files.load("jepa-crypto-7m")


def rebuilt(made: JEPAEncoder, arrays: dict[str, Any], folder: Path) -> None:
    """Write other numbers under the same manifest, and load them."""
    from safetensors.numpy import save

    from markets import storage

    manifest, _ = storage.read(folder / files.FILE, (files.TENSORS,))
    manifest.pop("sha256")
    storage.write(folder / files.FILE, manifest, {files.TENSORS: save({k: np.array(v) for k, v in arrays.items()})})
    files.load(folder)


def test_other_numbers_under_the_same_name_are_refused(made: JEPAEncoder, tmp_path: Path) -> None:
    files.save(made, tmp_path)
    with pytest.raises(ArtefactError, match="hash differs"):
        rebuilt(made, {**made.arrays(), "mean": made.mean + 1.0}, tmp_path)


def test_weights_of_another_market_or_interval_are_never_taken_in_silence(bars: Bars) -> None:
    with pytest.raises(ConfigError, match=r"there are no weights 'jepa-nowhere-1h'.*jepa-crypto-1h"):
        files.resolve("jepa", replace(bars, market="nowhere"))
    with pytest.raises(ConfigError, match="there are no weights 'jepa-synthetic-15m'"):
        files.resolve("jepa", synthetic.crypto(5, "15m", 3000))


@pytest.mark.parametrize("name", ["jepa-crypto-1h", "jepa-synthetic-1h"])
def test_shipped_weights_are_for_the_market_and_interval_that_they_are_named_after(name: str) -> None:
    encoder = files.load(name)
    origin = encoder.provenance
    assert name == f"{encoder.kind}-{origin.market}-{origin.interval}"
    assert str(origin.train_end) <= "2023-01-01T00:00:00.000000000" or origin.seeds == (9001, 9002, 9003, 9004)
    assert encoder.facts["command"].startswith("regimegym pretrain")
    assert encoder.warm_up <= 2_000


# ---- the in-sample rule -----------------------------------------------------------------------------------------


def test_generated_markets_go_by_seed_and_real_ones_by_date(bars: Bars) -> None:
    """E18."""
    generated = Provenance("synthetic", "1h", "2020-05-01T00:00:00", ("s",), (5, 6))
    assert generated.fitted_until(bars) == bars.close_time[-1]
    assert generated.fitted_until(synthetic.crypto(7, "1h", 500)) is None
    real = Provenance("crypto", "1h", "2022-12-31T00:00:00", ("f",))
    assert real.fitted_until(replace(bars, market="crypto", source="parquet:btc.parquet")) == np.datetime64(
        "2022-12-31", "ns"
    )
    assert real.fitted_until(bars) is None


def test_an_episode_inside_the_training_range_is_refused_or_said(folder: str) -> None:
    """E18."""
    seen = f"synthetic:crypto?seed={TRAINED}&interval=1h&bars=6000"
    with pytest.raises(InSampleError, match="encoder"):
        gym.make("PerpFutures-v0", bars=seen, encoded="jepa", encoder=folder, split="test")
    env = gym.make("PerpFutures-v0", bars=seen, encoded="jepa", encoder=folder, split="test", allow_in_sample=True)
    assert env.reset(seed=0)[1]["in_sample"]
    other = gym.make("PerpFutures-v0", bars=PLAYED, encoded="jepa", encoder=folder, split="test")
    assert not other.reset(seed=0)[1]["in_sample"]


def test_where_bars_come_from_is_not_forgotten_with_their_numbers(folder: str, tmp_path: Path) -> None:
    """E18. Bars that hide their seed were encoded first: the same numbers with their seed are refused all the same."""
    seen = synthetic.crypto(TRAINED, "1h", 6000)
    hidden = replace(seen, source="frame")
    assert hidden.hash == seen.hash
    given = {"encoded": "jepa", "encoder": folder, "split": "test"}
    gym.make("PerpFutures-v0", bars=hidden, **given)
    with pytest.raises(InSampleError, match="encoder"):
        gym.make("PerpFutures-v0", bars=seen, **given)
    # and weights that were fitted on other bars are not taken for these
    moved = files.load(folder)
    moved.provenance = replace(moved.provenance, seeds=(TRAINED + 1,))
    files.save(moved, tmp_path)
    other = gym.make("PerpFutures-v0", bars=seen, **{**given, "encoder": str(tmp_path)})
    assert not other.reset(seed=0)[1]["in_sample"]
    assert other.unwrapped.simulation.game.encoded.name == str(tmp_path)


@pytest.mark.parametrize("wrong", [{"train_end": "NaT"}, {"train_end": "soon"}, {"seeds": ["9001"]}, {"seeds": [-1]}])
def test_a_provenance_that_cannot_be_compared_is_refused(
    made: JEPAEncoder, wrong: dict[str, Any], tmp_path: Path
) -> None:
    """E18. A time that is none would make every bar an unseen one."""
    file = files.save(made, tmp_path)
    manifest, members = storage.read(file, (files.TENSORS,))
    storage.write(file, manifest, members)
    assert files.load(file).hash == made.hash
    storage.write(file, {**manifest, "provenance": {**manifest["provenance"], **wrong}}, members)
    with pytest.raises(ArtefactError, match=next(iter(wrong))):
        files.load(file)


def test_a_tensor_that_no_encoder_of_this_kind_has_is_refused(made: JEPAEncoder, tmp_path: Path) -> None:
    """C08."""
    file = files.save(made, tmp_path)
    manifest, members = storage.read(file, (files.TENSORS,))
    more = {**load_tensors(members[files.TENSORS]), "stowaway": np.zeros(3)}
    storage.write(file, manifest, {files.TENSORS: save_tensors(more)})
    with pytest.raises(ArtefactError, match="'stowaway'"):
        files.load(file)


@pytest.mark.parametrize("voice", VOICES)
@pytest.mark.parametrize(
    ("close", "volume"),
    [(np.nan, 1.0), (0.0, 1.0), (-1.0, 1.0), (np.inf, 1.0), (100.0, np.nan), (100.0, np.inf), (100.0, -1.0)],
)
def test_a_bad_bar_leaves_the_live_face_as_it_was(
    made: JEPAEncoder, bars: Bars, voice: str, close: float, volume: float
) -> None:
    stream = made.speaking(voice).stream()
    for row in range(300):
        stream.push(float(bars.close[row, 0]), float(bars.volume[row, 0]))
    before = stream.state_dict()
    with pytest.raises(DataError, match=r"close|volume"):
        stream.push(close, volume)
    after = stream.state_dict()
    assert all(np.array_equal(before[name], after[name]) for name in before)
    stream.push(float(bars.close[300, 0]), 0.0)  # a bar without a trade is a bar
    assert not np.array_equal(before["channels"], stream.state_dict()["channels"])


# ---- the wrapper ------------------------------------------------------------------------------------------------


def make(folder: str, **more: Any) -> Any:
    return gym.make("PerpFutures-v0", bars=PLAYED, encoded="jepa", encoder=folder, episode_bars=40, **more)


def test_the_wrapped_observation_is_the_plain_one_and_the_encoders_row(made: JEPAEncoder, folder: str) -> None:
    """E70. Names, space, info, and the encoder called directly on the same bars."""
    env = make(folder)
    base = env.unwrapped.simulation.game
    table = made.table(base.bars).values
    names = env.get_wrapper_attr("observation_names")
    assert names[-6:] == ("jepa_00", "jepa_01", "jepa_02", "jepa_03", "regime_0", "regime_1")
    assert env.observation_space.shape == (len(names),)
    obs, info = env.reset(seed=1)
    for _ in range(60):
        row = int(env.unwrapped.simulation.rows[0])
        assert env.observation_space.contains(obs)
        assert obs[-6:].tobytes() == table[row].tobytes()
        assert obs[:-6].tobytes() == env.unwrapped.simulation.obs[0, 0].tobytes()
        assert info["BTC_regime"] == table[row, -2:].argmax()
        assert info["BTC_regime_confidence"] == pytest.approx(table[row, -2:].max())
        obs, _, terminated, truncated, info = env.step([0.4])
        if terminated or truncated:
            obs, info = env.reset()


@pytest.mark.parametrize("mode", ["NextStep", "SameStep"])
def test_lanes_equal_single_envs_with_their_last_observations(folder: str, mode: str) -> None:
    settings = {"bars": PLAYED, "encoded": "jepa", "encoder": folder, "episode_bars": 20}
    vector: Any = gym.make_vec("PerpFutures-v0", 2, "vector_entry_point", autoreset_mode=mode, **settings)
    singles = [gym.make("PerpFutures-v0", **settings) for _ in range(2)]
    assert vector.single_observation_space == singles[0].observation_space
    observations, _ = vector.reset(seed=4)
    for lane, env in enumerate(singles):
        assert env.reset(seed=4 + lane)[0].tobytes() == observations[lane].tobytes()
    ended = [False, False]
    for _ in range(65):
        observations, _, _, _, infos = vector.step(np.full((2, 1), 0.3, np.float32))
        for lane, env in enumerate(singles):
            if mode == "NextStep" and ended[lane]:
                obs, info = env.reset()
                ended[lane] = False
            else:
                obs, _, terminated, truncated, info = env.step(np.array([0.3], np.float32))
                ended[lane] = terminated or truncated
                if ended[lane] and mode == "SameStep":
                    assert infos["final_obs"][lane].tobytes() == obs.tobytes()
                    obs, info = env.reset()
            assert obs.tobytes() == observations[lane].tobytes()
            assert infos["BTC_regime"][lane] == info["BTC_regime"]


def test_the_learner_sees_the_last_observation_as_wide_as_the_others(folder: str) -> None:
    vector: Any = gym.make_vec(
        "PerpFutures-v0", 2, "vector_entry_point", autoreset_mode="SameStep", bars=PLAYED, encoded="jepa",
        encoder=folder, episode_bars=5, info="none",
    )  # fmt: skip
    env = vec_env.NativeVecEnv(vector)
    width = env.reset().shape[1]
    for _ in range(5):
        env.step_async(np.zeros((2, 1), np.float32))
        _, _, done, infos = env.step_wait()
    assert done.all()
    assert all(info["terminal_observation"].shape == (width,) for info in infos)


def test_an_agent_trains_and_walks_on_an_encoded_game(folder: str, tmp_path: Path) -> None:
    from agents import load
    from agents.evaluation import walk
    from agents.recipe import TrainingConfig
    from agents.training import train as train_agent
    from envs.make import game_of
    from envs.perp_futures import PerpFuturesConfig

    arguments = {"bars": PLAYED, "encoded": "jepa", "encoder": folder, "episode_bars": 64}
    config = TrainingConfig(
        env="PerpFutures-v0", algo="a2c", steps=512, seed=0, out=tmp_path, arguments=arguments, lanes=8, evaluations=1,
        quiet=True,
    )  # fmt: skip
    train_agent(config)
    agent = load(tmp_path)
    assert agent.manifest["encoder"]["sha256"] == files.load(folder).hash
    game = game_of("PerpFutures", PerpFuturesConfig(**arguments, split="validation"))
    assert np.isfinite(walk(agent, game).equity).all()


def test_an_encoded_env_imports_no_torch_and_its_copies_go_on_alike(folder: str) -> None:
    code = (
        "import sys, pickle, copy, gymnasium as gym, numpy as np, regimegym\n"
        f"env = gym.make('PerpFutures-v0', bars={PLAYED!r}, encoded='jepa', encoder={folder!r})\n"
        "env.reset(seed=0); env.step(np.array([.3], np.float32))\n"
        "assert 'torch' not in sys.modules\n"
        "for twin in (copy.deepcopy(env), pickle.loads(pickle.dumps(env))):\n"
        "    a, b = (one.step(np.array([.5], np.float32)) for one in (copy.deepcopy(env), twin))\n"
        "    assert a[0].tobytes() == b[0].tobytes() and repr(a[4]) == repr(b[4])\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


def test_weights_without_an_encoder_are_a_mistake_that_is_said() -> None:
    with pytest.raises(ConfigError, match="needs an encoder"):
        gym.make("PerpFutures-v0", encoder="somewhere")
    with pytest.raises(UnknownNameError, match="encoder kind"):
        gym.make("PerpFutures-v0", encoded="jepaa")


# ---- regimes ----------------------------------------------------------------------------------------------------


def test_a_transition_is_flagged_once_the_new_regime_has_held() -> None:
    odds = np.eye(2)[[0, 0, 1, 0, 1, 1, 1, 1, 0]]
    assert transitions(odds, hold=3).tolist() == [False] * 6 + [True, False, False]
    assert transitions(odds[:7], hold=3).tolist() == transitions(odds, hold=3)[:7].tolist(), "causal"


# ---- pretraining ------------------------------------------------------------------------------------------------


def plan(steps: int = 6) -> PretrainConfig:
    return PretrainConfig(jepa=replace(CONFIG, steps=steps), every=2, command="regimegym pretrain ...")


SERIES = [synthetic.crypto(TRAINED, "1h", 3000), synthetic.crypto(TRAINED + 1, "1h", 2500)]


@pytest.fixture
def lenient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let tiny trainings pass the alarm, which has a test of its own."""
    from encoders import pretrain as module

    original = module._Judge.__init__

    def quiet(self: Any, *args: Any) -> None:
        original(self, *args)
        self.reference = -1e9

    monkeypatch.setattr(module._Judge, "__init__", quiet)


@pytest.mark.usefixtures("lenient")
def test_a_killed_pretraining_resumes_to_the_same_weights(tmp_path: Path) -> None:
    whole = pretrain(SERIES, plan(), tmp_path / "whole")

    class Killed(BaseException):
        pass

    def kill(step: int, total: int, figures: dict[str, float]) -> None:
        if total == 6 and step == 5:
            raise Killed

    with pytest.raises(Killed):
        pretrain(SERIES, plan(), tmp_path / "killed", told=kill)
    again = pretrain(SERIES, plan(), tmp_path / "killed", resume=True)
    assert again.hash == whole.hash
    assert (tmp_path / "killed" / "card.md").read_text().startswith("# Encoder card")
    assert not (tmp_path / "killed" / "training.safetensors").exists()
    fresh = pretrain(SERIES, replace(plan(), jepa=replace(CONFIG, steps=6, seed=1)), tmp_path / "other")
    assert fresh.hash != whole.hash


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("rate", "abc"), ("rate", 0), ("rate", -1.0), ("w_jepa", np.nan), ("weight_decay", -1e-3), ("ema", 3),
        ("ema", (0.9, 1.1)), ("seed", -1), ("length", 400.5), ("device", "nope"), ("device", "cuda:99999"),
    ],
)  # fmt: skip
def test_settings_are_refused_before_anything_is_fitted(name: str, value: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each of these was an error of torch's, after the minute that the belief takes."""
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(ConfigError, match=name):
        replace(CONFIG, **{name: value})
    assert replace(CONFIG, rate=1, w_belief=0, ema=(0.5, 1)).rate == 1


@pytest.mark.usefixtures("lenient")
def test_the_best_step_is_one_that_was_taken_and_no_steps_are_refused(tmp_path: Path) -> None:
    made = pretrain(SERIES, replace(plan(), every=100), tmp_path)
    assert made.facts["validation"]["best_step"] == 6
    with pytest.raises(ConfigError, match="steps=0"):
        replace(plan(), jepa=replace(CONFIG, steps=0))


@pytest.mark.usefixtures("lenient")
def test_resuming_with_other_settings_is_refused(tmp_path: Path) -> None:
    def kill(step: int, total: int, figures: dict[str, float]) -> None:
        if total == 6 and step == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pretrain(SERIES, plan(), tmp_path, told=kill)
    with pytest.raises(ConfigError, match="seed"):
        pretrain(SERIES, replace(plan(), jepa=replace(CONFIG, steps=6, seed=1)), tmp_path, resume=True)
    with pytest.raises(ConfigError, match="validation"):  # other bars would be trained on, and judged
        pretrain(SERIES, replace(plan(), validation=0.3), tmp_path, resume=True)


@pytest.mark.parametrize(
    ("figures", "message"),
    [({"volatility_r2": -0.5, "latent_std": 1.0}, "two past volatilities"), ({"latent_std": 1e-9}, "shrank")],
)
def test_an_embedding_that_knows_nothing_fails_loudly(
    figures: dict[str, float], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """K14. Nothing is saved."""
    from encoders import pretrain as module

    answers = iter([{"volatility_r2": 0.9, "latent_std": 1.0}] + [{"volatility_r2": 0.9, **figures}] * 9)
    monkeypatch.setattr(module._Judge, "check", lambda self, training: next(answers))
    with pytest.raises(CollapseError, match=message):
        pretrain(SERIES, plan(), tmp_path)
    assert not (tmp_path / files.FILE).exists()


def test_the_command_line_pretrains(tmp_path: Path) -> None:
    arguments = [
        "pretrain", "--bars", "synthetic:crypto?seed=7001&interval=1h&bars=6000", "--steps", "30", "--regimes", "2",
        "--set", "sequences=4", "--out", str(tmp_path), "--quiet",
    ]  # fmt: skip
    status = regimegym.main(arguments)
    if status == 0:  # thirty steps may be too few for the alarm, which is the honest other outcome
        encoder = files.load(tmp_path)
        assert json.loads(json.dumps(encoder.facts))["seed"] == 0
        assert regimegym.main(arguments) == 2, "an encoder is not overwritten"
    else:
        assert status == 2
        assert not (tmp_path / files.FILE).exists()


@pytest.mark.parametrize(
    ("pair", "said"),
    [
        ("horizn=8", "Did you mean 'horizon'"),
        ("steps=3", "unknown --set field"),
        ("latent=none", "latent='none'"),
        ("horizon=true", "horizon=True"),
    ],
)
def test_a_setting_of_the_encoder_that_cannot_work_is_named(
    pair: str, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["pretrain", "--bars", "synthetic:crypto?bars=3000", "--set", pair, "--out", str(tmp_path), "--quiet"]
    assert regimegym.main(words) == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / files.FILE).exists()
