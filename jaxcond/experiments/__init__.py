"""The experiments of the paper: what their figures show, computed."""

from .counts import figure_2a as figure_2a
from .counts import figure_2b as figure_2b
from .factorisation import figure_3 as figure_3
from .plateau import figure_1 as figure_1
from .result import Experiment as Experiment
from .result import read_experiment as read_experiment
from .setting import TanhSetting as TanhSetting
