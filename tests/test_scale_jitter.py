"""Scale jitter changes a sequence into the one that a market of another volatility would have given, exactly."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from encoders import scale_jitter
from encoders.belief import BeliefConfig
from encoders.channels import ChannelScaler, percent_returns
from encoders.jepa_training import JEPAConfig, future_statistics, train
from encoders.scale_jitter import jittered
from markets import synthetic
from markets.errors import ConfigError

BARS = synthetic.crypto(5, "1h", 1500)
NAMES = ("return", "volatility", "volume")


def check(change: Callable[..., Any] = jittered) -> None:
    """Jittered channels and targets are those of the returns times f."""
    returns, volume = percent_returns(BARS.close[:, 0]), BARS.volume[:, 0]
    scaler = ChannelScaler.fit([returns[1:]], NAMES)
    spread = 0.3
    plain = torch.from_numpy(scaler.channels(returns, volume).T.copy())
    future = future_statistics(returns, 64)
    future[:, 0] /= spread
    target = torch.from_numpy(future)
    posterior = torch.full((len(future), 2), 0.5)
    torch.manual_seed(3)
    seen, moved, weighted = change(
        torch.stack([plain] * 4), torch.stack([target] * 4), torch.stack([posterior] * 4), scaler, spread, 0.5
    )
    torch.manual_seed(3)
    factors = torch.exp(0.5 * torch.randn(4)).numpy()
    torch.testing.assert_close(seen[:2], torch.stack([plain] * 2), atol=1e-5, rtol=0.0)
    assert torch.equal(moved[:2], torch.stack([target] * 2))
    for row in (2, 3):
        scaled = scaler.channels(factors[row] * returns, volume)
        again = future_statistics(factors[row] * returns, 64)
        again[:, 0] /= spread
        settled = slice(400, None)  # the running volatility begins at the training mean in both
        np.testing.assert_allclose(seen[row].numpy().T[settled], scaled[settled], atol=2e-4)
        np.testing.assert_allclose(moved[row].numpy(), again, atol=1e-6)
    assert float(weighted[2:].abs().sum()) == 0.0
    assert float(weighted.sum()) == pytest.approx(4.0 * len(future)), "the weight of the belief is kept"


def test_a_jittered_sequence_is_that_of_returns_times_a_factor() -> None:
    print("seed 3")
    check()


@pytest.mark.parametrize("fault", ["target kept", "volatility kept", "belief kept"])
def test_mutant_a_jitter_that_forgets_a_part_is_found(fault: str) -> None:
    def forgetful(channels: Any, futures: Any, posterior: Any, *rest: Any) -> Any:
        seen, moved, weighted = jittered(channels, futures, posterior, *rest)
        if fault == "volatility kept":
            seen[:, 1] = channels[:, 1]
        return seen, futures if fault == "target kept" else moved, posterior if fault == "belief kept" else weighted

    with pytest.raises(AssertionError):
        check(forgetful)


@pytest.mark.parametrize("value", [-0.1, 2.5, float("nan"), True, "wide"])
def test_a_jitter_that_cannot_be_used_is_refused(value: Any) -> None:
    assert not scale_jitter.valid(value)
    with pytest.raises(ConfigError, match="scale_jitter"):
        JEPAConfig(scale_jitter=value)


def test_training_with_jitter_gives_other_weights_and_without_it_the_same() -> None:
    small = JEPAConfig(hidden=6, inner=8, latent=4, steps=3, sequences=2, length=400, belief=BeliefConfig(regimes=2))
    hashes = [train([BARS], replace(small, scale_jitter=jitter))[0].hash for jitter in (0.0, 0.0, 0.5)]
    assert hashes[0] == hashes[1] != hashes[2]
