"""Every figure by the name users type. The comparison is not among them: it has a page of its own."""

from __future__ import annotations

from flows.evaluation.ablations import ABLATION_TIMESTEP, TIMESTEP_PICTURES
from flows.evaluation.absence import TRANSFER_ABSENT
from flows.evaluation.composition import COMPOSITION
from flows.evaluation.experiment import Experiment
from flows.evaluation.far_transfers import TRANSFER_STYLE, TRANSFER_TIME
from flows.evaluation.grids import GRIDS
from flows.evaluation.homogeneity import HOMOGENEITY
from flows.evaluation.linearity import LINEARITY
from flows.evaluation.rank import RANK
from flows.evaluation.rank_ablations import ABLATION_NULL_RANK, ABLATION_RANKS
from flows.evaluation.spectra import SPECTRA
from flows.evaluation.strengths import ABLATION_STRENGTH, ATTRIBUTE_LINEARITY
from flows.evaluation.transfers import TRANSFER, TRANSFER_POSE

_ALL: tuple[Experiment, ...] = (
    RANK,
    LINEARITY,
    SPECTRA,
    ABLATION_TIMESTEP,
    TIMESTEP_PICTURES,
    ABLATION_STRENGTH,
    ABLATION_NULL_RANK,
    ABLATION_RANKS,
    ATTRIBUTE_LINEARITY,
    COMPOSITION,
    GRIDS,
    HOMOGENEITY,
    TRANSFER,
    TRANSFER_POSE,
    TRANSFER_STYLE,
    TRANSFER_TIME,
    TRANSFER_ABSENT,
)
EXPERIMENTS: dict[str, Experiment] = {experiment.name: experiment for experiment in _ALL}
