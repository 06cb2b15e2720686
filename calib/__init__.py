"""Synthesise images from a network and calibrate its quantized form: timm model in, CalibratedModel out."""
