"""Monte Carlo studies: configuration, resumable runs, the store, summaries."""

from .config import Study as Study
from .config import read_toml as read_toml
from .observables import OBSERVABLES as OBSERVABLES
from .run import Interrupted as Interrupted
from .run import Tally as Tally
from .run import Watcher as Watcher
from .run import local_devices as local_devices
from .run import run as run
from .store import Store as Store
from .store import StoreError as StoreError
from .store import Task as Task
from .summary import LEVELS as LEVELS
from .summary import Estimate as Estimate
from .summary import PointSummary as PointSummary
from .summary import StudySummary as StudySummary
from .summary import converged_times as converged_times
from .summary import open_store as open_store
from .summary import open_study as open_study
from .summary import summarise as summarise
