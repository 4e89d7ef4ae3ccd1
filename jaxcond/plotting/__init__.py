"""Figures from stored results. The only room that imports matplotlib."""

from ._experiments import PAPER_FIGURES as PAPER_FIGURES
from ._files import check_format as check_format
from ._files import save as save
from ._phase import phase_map as phase_map
from ._phase import phase_maps as phase_maps
from ._similarity import similarity_map as similarity_map
from ._study import axis_label as axis_label
from ._study import convergence as convergence
from ._study import distributions as distributions
from ._study import scaling as scaling
from ._study import study_map as study_map
from ._trajectory import trajectory_panel as trajectory_panel
