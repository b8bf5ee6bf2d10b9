"""The world: bars, causal tables, data sources, synthetic markets and the rules of contracts. Knows no model."""
