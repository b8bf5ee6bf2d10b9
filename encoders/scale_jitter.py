"""Scale jitter: training sequences as they would look in a market of another volatility.

Half of the sequences of a step are multiplied by ``f = exp(j e)``, e a standard normal draw for each, j the jitter: a
return r becomes f r, a log volatility gains log f, and so does the log volatility to be forecast. The level of the
volatility differs between symbols and years more than its shape does, and a net that saw one range of levels only has
to guess at the others. The belief's posterior knows the level, so the changed sequences do not learn it.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from encoders.channels import LIMIT, ChannelScaler


def jittered(
    channels: Tensor, futures: Tensor, posterior: Tensor, scaler: ChannelScaler, spread: float, jitter: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Change the second half of the sequences.

    Args:
        channels: ``(B, C, L)`` as the scaler gives them. futures: ``(B, M, 3)``, log volatility first, in deviations of
            ``spread``. posterior: ``(B, M, K)``; its weight moves to the sequences that are left as they are.
    """
    count = len(channels)
    kept = count - count // 2
    log_factor = jitter * torch.randn(count, device=channels.device)
    log_factor[:kept] = 0.0
    columns = []
    for column, name in enumerate(scaler.names):
        values = channels[:, column]
        if name == "return":
            values = torch.asinh(torch.sinh(values) * torch.exp(log_factor)[:, None])
        elif name == "volatility":
            values = values + log_factor[:, None] / scaler.spread
        columns.append(values.clamp(-LIMIT, LIMIT))  # a relative volume has no scale
    moved = futures.clone()
    moved[:, :, 0] += log_factor[:, None] / spread
    weight = torch.zeros(count, device=channels.device)
    weight[:kept] = count / kept
    return torch.stack(columns, dim=1), moved, posterior * weight[:, None, None]


def valid(jitter: float) -> bool:
    """Say whether a jitter can be used: a number from 0, no jitter, to 2, a factor of 55 at two deviations."""
    return (
        isinstance(jitter, int | float) and not isinstance(jitter, bool) and math.isfinite(jitter) and 0 <= jitter <= 2
    )
