"""Adds the commit to what is built, for `rsseg --version`; pyproject.toml has all else."""

import runpy
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py


class BuildWithCommit(build_py):
    def run(self) -> None:
        super().run()
        if not self.editable_mode:
            commit = runpy.run_path("rsseg_cli/_version.py")["source_commit"]()
            Path(self.build_lib, "rsseg_cli/commit.txt").write_text(commit, encoding="utf-8")


setup(cmdclass={"build_py": BuildWithCommit})
