"""TensorRT, in parts: which library, its log, its options, building, keeping and running engines."""
