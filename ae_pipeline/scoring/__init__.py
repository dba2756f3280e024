"""From losses to scores and p-values."""
