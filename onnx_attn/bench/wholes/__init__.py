"""Whole models: as exporters wrote them, ours, and what other optimizers make of them."""
