from ._counts import figure_2a as figure_2a
from ._counts import figure_2b as figure_2b
from ._factorisation import figure_3 as figure_3
from ._plateau import figure_1 as figure_1
from ._result import Experiment as Experiment
from ._result import read_experiment as read_experiment
from ._setting import TanhSetting as TanhSetting
