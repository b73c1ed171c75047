"""Let `python scripts/NAME.py` run from a checkout that is not installed.

Python looks for modules in the script's own folder first, so a script's first `import ssd` loads this file. It puts the
checkout on the path and loads the real package in its place. The wheel does not contain this file.
"""

import importlib
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
del sys.modules[__name__]
importlib.import_module(__name__)
