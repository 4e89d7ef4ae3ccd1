"""The records of a study: an xarray Dataset on Zarr v3, written chunk by chunk.

Dimensions are the sweep's axes and `sample`; `marks` tells how many samples of every chunk are
there, with a digest of their values for each variable, and is written after them. A file is
replaced at once or not at all (Zarr's local store renames), and carries a checksum: a killed
process leaves what it had finished and nothing half written. `xr.open_zarr` reads a store without
this package.
"""

from ._backend import locked as locked
from ._backend import written as written
from ._damage import Damage as Damage
from ._damage import DamageError as DamageError
from ._damage import Kind as Kind
from ._damage import StoreError as StoreError
from ._description import current_platform as current_platform
from ._description import versions as versions
from ._form import fields_of as fields_of
from ._form import observed_fields as observed_fields
from ._layout import MARKS as MARKS
from ._layout import Task as Task
from ._repair import check_descriptions as check_descriptions
from ._repair import damages as damages
from ._repair import repair as repair
from ._repair import restore_attributes as restore_attributes
from ._same import check_same as check_same
from ._same import check_states as check_states
from ._store import Store as Store
from ._store import attributes_of as attributes_of
from ._store import create as create
from ._store import open_group as open_group
from ._store import read_configuration as read_configuration
