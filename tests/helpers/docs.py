"""`docs/check.py` as a module; docs is no package."""

import importlib.util
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]

_spec = importlib.util.spec_from_file_location("docs_check", ROOT / "docs/check.py")
if _spec is None or _spec.loader is None:
    raise ImportError("docs/check.py is missing")
check = importlib.util.module_from_spec(_spec)
sys.modules["docs_check"] = check
_spec.loader.exec_module(check)
