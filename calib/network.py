"""How this package types a timm network.

torch types every submodule as ``Tensor | Module``, so nothing inside a network can be reached in typed code. Where code
walks through timm's own modules, the parameter is a ``Network``; whether the parts are there is checked once, by
``calib.quant.surgery``.
"""

from __future__ import annotations

from typing import Any, TypeAlias

Network: TypeAlias = Any
