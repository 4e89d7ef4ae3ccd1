"""Real networks: training through the plateau, and what the effective dynamics say of it."""

from .checkpoints import Checkpoint as Checkpoint
from .checkpoints import read_checkpoint as read_checkpoint
from .data import LOSSES as LOSSES
from .data import AbstractData as AbstractData
from .data import Entries as Entries
from .data import Regression as Regression
from .data import Sensing as Sensing
from .data import loss_factor as loss_factor
from .descent import DivergenceWarning as DivergenceWarning
from .descent import StallWarning as StallWarning
from .descent import gradient_descent as gradient_descent
from .descent import log_spaced as log_spaced
from .effective import EffectiveModel as EffectiveModel
from .effective import effective_model as effective_model
from .effective import to_state as to_state
from .flow import gradient_flow as gradient_flow
from .modules import ACTIVATIONS as ACTIVATIONS
from .modules import ThreeLayer as ThreeLayer
from .prediction import Escape as Escape
from .prediction import EscapeStatus as EscapeStatus
from .prediction import predict_escape as predict_escape
from .run import Run as Run
from .run import RunStatus as RunStatus
from .schedule import LearningRate as LearningRate
from .skip import Skip as Skip
from .skip import skip_plateau as skip_plateau
