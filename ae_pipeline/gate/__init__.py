"""The gate: evaluate a challenger before it is promoted."""
