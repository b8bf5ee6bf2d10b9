"""The eyes: what turns past bars into numbers about the market (pretrained encoders; the first is Koopman-JEPA)."""
