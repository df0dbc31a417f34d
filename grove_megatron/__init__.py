"""Grove MoE for unmodified Megatron.

Importing it changes nothing and imports neither torch nor Megatron; it asks for the Python version
alone, of which everything else depends.
"""

import platform
import sys

if not ((3, 12) <= sys.version_info < (3, 14)):
    raise ImportError(
        f"Python ({platform.python_version()}) is not in the range (>=3.12,<3.14) of "
        "grove_megatron; megatron-core 0.17 and later are not made for Python below 3.12, and pip "
        "takes an older one (0.16.1) there without a word; make an environment with Python 3.12 or "
        "3.13"
    )

__version__ = "0.1.0"
