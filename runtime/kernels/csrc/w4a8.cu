// INT4 weights, INT8 activations.
#include "linear.cuh"

INTVIT_TILES(intvit_w4a8, true)
