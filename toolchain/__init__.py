"""Lower a calibrated model to integer graphs, write the bundle, and look inside it."""

import os

# Before torch is imported: its threads sleep at barriers instead of spinning. On a machine that something else uses
# too, spinning made every step several times slower (10x measured on 2 cores).
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
