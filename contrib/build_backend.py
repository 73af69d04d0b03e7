"""Build backend: that of setuptools, but a wheel is built with the manual pages.

They are written from the help texts just before, so that nothing generated is in the repository.
This needs what the programs need, beside click-man.
"""

from __future__ import annotations

import configparser
import subprocess
import sys

from setuptools import build_meta

build_editable = build_meta.build_editable
build_sdist = build_meta.build_sdist
get_requires_for_build_editable = build_meta.get_requires_for_build_editable
get_requires_for_build_sdist = build_meta.get_requires_for_build_sdist
prepare_metadata_for_build_editable = build_meta.prepare_metadata_for_build_editable
prepare_metadata_for_build_wheel = build_meta.prepare_metadata_for_build_wheel

Settings = dict[str, str | list[str]] | None
MAN_PAGES = "build/man"
"""Folder of the pages; setup.cfg names it too."""


def get_requires_for_build_wheel(config_settings: Settings = None) -> list[str]:
    """Return what must be installed to build a wheel."""
    config = configparser.ConfigParser(interpolation=None)
    config.read("setup.cfg", encoding="utf-8")
    programs = config["options"]["install_requires"].split("\n")
    tools = [one for one in config["options.extras_require"]["dev"].split("\n") if "click" in one]
    usual = build_meta.get_requires_for_build_wheel(config_settings)
    return [*usual, *filter(None, programs), *tools]


def build_wheel(
    wheel_directory: str, config_settings: Settings = None, metadata_directory: str | None = None
) -> str:
    """Write the manual pages and build the wheel; return its file name."""
    subprocess.run([sys.executable, "-m", "contrib.man_pages", MAN_PAGES], check=True)
    name: str = build_meta.build_wheel(wheel_directory, config_settings, metadata_directory)
    return name
