"""Quantizers, quantized layers, and the surgery that puts them into a timm network."""
