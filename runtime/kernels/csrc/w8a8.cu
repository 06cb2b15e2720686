// INT8 weights, INT8 activations.
#include "linear.cuh"

INTVIT_TILES(intvit_w8a8, false)
