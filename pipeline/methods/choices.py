"""Every editing method by the name users type."""

from __future__ import annotations

from pipeline.methods.asyrp import Asyrp
from pipeline.methods.blended import BlendedDiffusion
from pipeline.methods.components import HMasked, Individual
from pipeline.methods.contract import Method
from pipeline.methods.haas import Haas, HaasMasked
from pipeline.methods.haas_pca import HaasPCA
from pipeline.methods.loco import Loco, LocoPlain
from pipeline.methods.noise_clr import NoiseClr
from pipeline.methods.noise_jacobian import NoiseJacobian
from pipeline.methods.pullback import Pullback
from pipeline.methods.randoms import RandomH, RandomX
from pipeline.methods.t_loco import TLoco

_ALL: tuple[type[Method], ...] = (
    Loco,
    LocoPlain,
    TLoco,
    Individual,
    HMasked,
    Haas,
    HaasMasked,
    HaasPCA,
    Pullback,
    NoiseJacobian,
    Asyrp,
    NoiseClr,
    BlendedDiffusion,
    RandomX,
    RandomH,
)
METHODS: dict[str, type[Method]] = {method.name: method for method in _ALL}
