"""The card of a defragmentation encoder as text."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from encoders.card import checks_section, data_section, labels_section, measured_section, table
from encoders.defrag_market import DefragEncoder

ROWS = (
    ("volatility_r2", "the row (all columns but the odds)"),
    ("without_learned_volatility_r2", "the row without the learned columns"),
    ("recalled_volatility_r2", "the recalled volatility alone"),
    ("two_past_volatilities_r2", "volatility of the last 16 and 64 bars"),
)


def card(made: DefragEncoder, measured: Mapping[str, Any] | None = None) -> str:
    """Write the card of an encoder as Markdown, with the figures of :mod:`encoders.defrag_measure` where given."""
    origin, facts, settings = made.provenance, made.facts, made.settings
    generated = " (generated bars go by seed, not by date)" if origin.seeds else ""
    head = f"""# Encoder card

Temporal defragmentation, for market `{origin.market}` at `{origin.interval}`. SHA-256 of the weights
`{made.hash[:16]}`. Fitted on bars up to {origin.train_end[:16]} UTC: a validation or test episode before that is
refused unless `allow_in_sample=True`{generated}."""
    parts = [head, data_section(made)]
    if "validation" in facts:
        scores = [[text, f"{facts['validation'][name]:.3f}"] for name, text in ROWS]
        parts.append(f"""## Scores on the validation range

{table((f"ridge forecast of the log volatility of the next {settings.horizon} bars", "R2"), scores)}

Nothing is claimed about the direction of prices: `recall_return` is what followed, not what will.""")
    if "regimes" in facts:
        rows = [
            [str(row["regime"]), f"{row['volatility']:.3f} %", f"{row['mean_spell_bars']:.0f}", f"{row['share']:.1%}"]
            for row in facts["regimes"]
        ]
        names = ("regime", "volatility a bar", "mean spell, bars", "share of time")
        parts.append("## Regimes of the filter, on the fitted range\n\n" + table(names, rows))
    if "blocks" in facts:
        parts.append(f"""## Memory

Blocks of {settings.block_len} bars: {facts["blocks"]:,} trained on, {facts["remembered"]:,} remembered, with what
followed them in {settings.horizon} bars; {settings.neighbours} answer. The learned part fills
{facts["effective_dimension"]:.1f} effective dimensions of {made.numbers.weights.head_weight.shape[0]}; temperature
{facts["temperature"]:.3f}. A row is served from bar {made.warm_up:,} on.""")
    if measured is not None:
        parts += [measured_section(measured), checks_section(measured), labels_section(measured)]
    return "\n\n".join(part for part in parts if part) + "\n"


def content(made: DefragEncoder, measured: Mapping[str, Any]) -> dict[str, Any]:
    """Return the card as plain values, for JSON."""
    origin = made.provenance
    return {
        "kind": made.kind, "sha256": made.hash, "market": origin.market, "interval": origin.interval,
        "train_end": origin.train_end, "sources": list(origin.sources), "seeds": list(origin.seeds),
        "facts": made.facts, "measured": dict(measured),
    }  # fmt: skip
