"""The bundle's manifest: what is in it, how it was made, and how to feed it. Strict: an unknown key is an error.

Version 1. A bundle is a directory; ``manifest.json`` lists every file with its sha256 and ``manifest.sha256`` holds the
digest of ``manifest.json`` itself, so that no byte of a bundle can change unseen.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, SerializerFunctionWrapHandler, model_serializer

SCHEMA_VERSION = 1
MANIFEST = "manifest.json"
MANIFEST_DIGEST = "manifest.sha256"

Side = Annotated[int, Field(ge=1, le=8192)]  # pixels
Mean = Annotated[float, Field(ge=-1000, le=1000)]
Deviation = Annotated[float, Field(ge=0.001, le=1000)]
Level = Annotated[int, Field(ge=-(1 << 14), le=1 << 14)]  # levels are compared, and shifted by zero points, in int16
Bits = Annotated[int, Field(ge=1, le=32)]


class Strict(BaseModel):
    """Base of every manifest part: unknown keys and NaN are refused, and values never change after loading."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class FileEntry(Strict):
    """One file of the bundle. ``path`` is relative, with forward slashes, and stays inside the bundle."""

    path: str
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    bytes: int = Field(ge=0)
    role: Literal["graph", "float_twin", "canonical", "golden", "preview", "classes", "report", "other"]
    target: str = ""


class Preprocess(Strict):
    """How a picture becomes the input tensor: resize, centre crop, scale to [0, 1], normalise.

    The rule is timm's evaluation transform (timm.data.transforms_factory.transforms_imagenet_eval). It resizes to
    floor(input side / crop_pct): with ``crop_mode`` "center" the short side, "squash" both (the aspect ratio is lost),
    "border" the long side, and what the crop then lacks has the colour of ``mean``.
    """

    channels: Literal[3] = 3
    height: Side
    width: Side
    crop_pct: float = Field(ge=0.01, le=1)
    crop_mode: Literal["center", "squash", "border"] = "center"
    interpolation: Literal["nearest", "bilinear", "bicubic"]
    mean: tuple[Mean, Mean, Mean]
    std: tuple[Deviation, Deviation, Deviation]

    @model_serializer(mode="wrap")
    def _written(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Without ``crop_mode`` where it is "center": a runtime older than the key refuses it."""
        written: dict[str, Any] = dump(self)
        return {key: value for key, value in written.items() if (key, value) != ("crop_mode", "center")}


class Tap(Strict):
    """A quantizer of the network, by the name of the integer tensor it makes.

    ``tensor`` names the QuantizeLinear output in the graphs (int8; the ORT optimizer may turn it into uint8 with the
    zero point raised by 128). ``golden`` names the int8 tensor of the same quantizer in the golden file. Levels run
    ``qmin .. qmax``; one LSB is ``scale`` in the units of the quantizer's input.
    """

    name: str
    tensor: str
    golden: str
    scale: float = Field(gt=0)
    zero_point: Level
    qmin: Level
    qmax: Level


class Layer(Strict):
    """One linear layer, convolution or integer attention product of the model; ``macs`` is per image.

    An attention product (kind ``qk`` or ``pv``) has no weights: ``weight_bits`` are those of its right operand, K or V.
    """

    name: str
    kind: str
    macs: int = Field(ge=0, lt=1 << 63)
    weight_bits: Bits
    activation_bits: Bits
    stored_as: str
    tensor: str


class Manifest(Strict):
    """Everything a runtime needs to know of a bundle, and everything a person needs to make it again."""

    schema_version: Literal[1] = 1
    name: str
    model: str
    timm_tag: str
    scheme: str
    weights: Literal["checkpoint", "hub", "packaged", "random"]
    input_name: str = "images"
    output_name: str = "logits"
    num_classes: int = Field(ge=1, lt=1 << 31)
    preprocess: Preprocess
    taps: list[Tap]
    layers: list[Layer]
    method: str
    images: int
    seed: int
    data_free: bool
    provenance: dict[str, Any]
    reported: dict[str, Any] = Field(default_factory=dict)
    files: list[FileEntry]
