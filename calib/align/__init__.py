"""Steps that choose the numbers of the quantized model: one file a step."""
