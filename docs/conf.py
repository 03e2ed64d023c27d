"""Sphinx configuration; build with ``make docs``."""

import re
import sys
from pathlib import Path

source = Path(__file__).resolve().parent.parent / "src"
sys.path.insert(0, str(source))

project = "tts_compile"
author = "the tts_compile authors"
copyright = author  # noqa: A001
version = release = re.findall(r'__version__ = "(.+)"', (source / "tts_compile/_version.py").read_text())[0]

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.doctest",
    "sphinx.ext.napoleon",
]
exclude_patterns = ["_build"]
suppress_warnings = ["config.cache"]

myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 3

napoleon_numpy_docstring = False
napoleon_custom_sections = [("Attributes", "params_style")]  # a list of names, in the class docstring only
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
python_use_unqualified_type_names = True

doctest_global_setup = "import logging\nlogging.disable()\nimport tts_compile as tc\nfrom tts_compile import *"

html_theme = "furo"
html_title = f"tts_compile {release}"
