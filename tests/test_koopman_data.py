"""Windows of the Koopman encoders: lengths, gaps, scales, and nothing of the future in a context."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from encoders.koopman_data import CryptoPriceDataset, WindowChannels, create_crypto_feature_tensor
from markets.errors import ArtefactError, ConfigError, DataError, UnknownNameError
from markets.synthetic_regimes import regime_market, simulate

Floats = NDArray[np.float64]
Maker = Callable[[Floats, WindowChannels], CryptoPriceDataset]


def prices(bars: int = 2000, seed: int = 3) -> Floats:
    return 100.0 * np.exp(np.cumsum(simulate(seed, bars, regime_market())[0]) / 100)


def test_source_windows_have_the_sources_lengths_and_overlap() -> None:
    """K13."""
    data = CryptoPriceDataset(prices=prices(), timestamps=np.arange(2000), context_window=768, prediction_horizon=256)
    assert len(data) == 2000 - 768 - 256 + 1
    pair = data[0]
    assert pair["x_context"].shape == pair["x_target"].shape == (3, 768)
    # channel 0 belongs to a bar: 512 bars are the same ones in both
    assert torch.equal(pair["x_context"][0, 256:], pair["x_target"][0, :512])


def test_disjoint_target_begins_after_the_context() -> None:
    """K13."""
    data = CryptoPriceDataset(prices(), None, 64, 16, overlap=False)
    assert data.shift == 64
    assert len(data) == 2000 - 128 + 1
    assert torch.equal(data[0]["x_target"], data[64]["x_context"])
    assert CryptoPriceDataset(prices(), None, 64, 100, overlap=False).shift == 100


def test_batch_equals_the_pairs_one_by_one() -> None:
    data = CryptoPriceDataset(prices(), None, 64, 16, stride=5)
    batch = data.batch(torch.tensor([0, 7, len(data) - 1]))
    for row, pair in enumerate((0, 7, -1)):
        for name, value in data[pair].items():
            assert torch.equal(batch[name][row], value)
    with pytest.raises(IndexError):
        data[len(data)]


def test_targets_are_the_returns_and_volatility_of_the_bars_to_come() -> None:
    closes = prices(300)
    data = CryptoPriceDataset(closes, None, 64, 16)
    pair, returns = data[10], 100.0 * np.diff(np.log(closes))
    end = 10 + 63
    assert float(pair["future_return"]) == pytest.approx(100.0 * np.log(closes[end + 16] / closes[end]), rel=1e-4)
    assert float(pair["past_return"]) == pytest.approx(100.0 * np.log(closes[end] / closes[end - 63]), rel=1e-4)
    level, spread = data.channels.scaler.level, data.channels.scaler.spread
    expected = (0.5 * np.log(np.mean(returns[end : end + 16] ** 2)) - level) / spread
    assert float(pair["log_volatility"]) == pytest.approx(expected, rel=1e-4)


def future_leaks(make: Maker) -> bool:
    """Whether other bars after a context's end change the context."""
    closes = prices()
    training = CryptoPriceDataset(closes, None, 64, 16).channels
    changed = closes.copy()
    changed[200:] *= np.exp(np.cumsum(np.random.default_rng(5).normal(0.0, 0.05, 1800)))
    one, other = (make(series, training).contexts(torch.arange(200 - 63)) for series in (closes, changed))
    return not torch.equal(one, other)


def full_range(closes: Floats, training: WindowChannels) -> CryptoPriceDataset:
    return CryptoPriceDataset(closes, None, 64, 16)  # scales fitted on whatever it is given


class Padded(CryptoPriceDataset):
    def contexts(self, pairs: Tensor) -> Tensor:
        x = super().contexts(pairs)
        x[:, -1] -= (self._sums[self.ends[pairs] + 1] - self._sums[self.ends[pairs]])[:, None].float()
        return x  # relative to the close after the window


def test_context_knows_no_bar_after_its_end() -> None:
    """K3, K13."""
    assert not future_leaks(lambda closes, training: CryptoPriceDataset(closes, None, 64, 16, channels=training))


@pytest.mark.parametrize(
    "mutant", [full_range, lambda closes, training: Padded(closes, None, 64, 16, channels=training)]
)
def test_mutant_that_reads_the_future_is_caught(mutant: Maker) -> None:
    """K13: a scaler fitted on the full range, a price relative to a later close."""
    assert future_leaks(mutant)


def test_windows_keep_the_volatility_that_regimes_differ_in() -> None:
    """K13: scales belong to the training range, not to the window."""
    calm = 100.0 * np.exp(np.cumsum(np.random.default_rng(0).normal(0.0, 0.002, 500)))
    wild = calm[-1] * np.exp(np.cumsum(np.random.default_rng(1).normal(0.0, 0.02, 500)))
    data = CryptoPriceDataset(np.concatenate([calm, wild]), None, 64, 16)
    assert float(data[850]["x_context"][0].std()) > 4.0 * float(data[100]["x_context"][0].std())


def test_no_window_reaches_over_from_one_series_into_another() -> None:
    one, other = prices(200, 3), prices(150, 4) * 7.0
    data = CryptoPriceDataset([one, other], None, 64, 16)
    assert len(data) == (200 - 79) + (150 - 79)
    alone = CryptoPriceDataset(other, None, 64, 16, channels=data.channels)
    assert torch.equal(data[200 - 79]["x_context"], alone[0]["x_context"])
    assert torch.allclose(data[len(data) - 1]["future_return"], alone[len(alone) - 1]["future_return"], atol=1e-4)


def test_pairs_that_reach_over_a_gap_are_left_out() -> None:
    times = np.arange(300) * 3600
    times[150:] += 7200
    data = CryptoPriceDataset(prices(300), times, 64, 16)
    whole = CryptoPriceDataset(prices(300), None, 64, 16)
    assert len(whole) - len(data) == 79  # every pair of 80 bars that holds both 149 and 150
    assert not any(end - 63 <= 149 and end + 16 >= 150 for end in data.ends.tolist())


@pytest.mark.parametrize(
    ("closes", "message"),
    [
        (np.r_[prices(200)[:50], np.nan, prices(200)[51:]], "row 50"),
        (np.r_[prices(200)[:9], 0.0, prices(200)[10:]], "row 9"),
        (np.full(200, 5.0), "do not move"),
        (prices(79), "no pair"),
        (prices(200)[:, None], "shape"),
    ],
)
def test_prices_that_cannot_be_windows_are_refused(closes: Floats, message: str) -> None:
    with pytest.raises(DataError, match=message):
        CryptoPriceDataset(closes, None, 64, 16)


def test_bad_settings_are_refused() -> None:
    with pytest.raises(ConfigError, match="context_window=0"):
        CryptoPriceDataset(prices(200), None, 0, 16)
    with pytest.raises(UnknownNameError, match="return"):
        CryptoPriceDataset(prices(200), None, 64, 16, names=("retrun",))
    with pytest.raises(DataError, match="row 7"):
        CryptoPriceDataset(prices(200), np.r_[np.arange(7), 3, np.arange(8, 200)], 64, 16)
    with pytest.raises(DataError, match="encoder reads 64"):
        create_crypto_feature_tensor(
            prices(50), channels=CryptoPriceDataset(prices(200), None, 64, 16).channels, window=64
        )


def test_scales_survive_json() -> None:
    channels = CryptoPriceDataset(prices(300), None, 64, 16).channels
    assert WindowChannels.from_json(channels.to_json()) == channels
    with pytest.raises(ArtefactError, match="scales"):
        WindowChannels.from_json({"names": ["return"]})
