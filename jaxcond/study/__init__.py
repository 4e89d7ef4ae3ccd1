"""Monte Carlo studies: configuration, resumable runs, the store, summaries."""

from ._config import Study as Study
from ._config import read_toml as read_toml
from ._observables import OBSERVABLES as OBSERVABLES
from ._run import Interrupted as Interrupted
from ._run import Tally as Tally
from ._run import Watcher as Watcher
from ._run import local_devices as local_devices
from ._run import run as run
from ._store import Store as Store
from ._store import StoreError as StoreError
from ._store import Task as Task
from ._summary import LEVELS as LEVELS
from ._summary import Estimate as Estimate
from ._summary import PointSummary as PointSummary
from ._summary import StudySummary as StudySummary
from ._summary import converged_times as converged_times
from ._summary import open_store as open_store
from ._summary import open_study as open_study
from ._summary import summarise as summarise
