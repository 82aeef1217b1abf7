"""Puts what lies at the top of the checkout and is no code into the package `tasks`, where an installed Mien looks."""

from __future__ import annotations

import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

SHIPPED = ("params.yaml", "dvc.yaml", "prefect.yaml", ".dvcignore", "presets/*.yaml", "mlflow/*.yaml", "mlflow/*.json")


class BuildWithShipped(build_py):
    """The usual copy of the packages, then the files; an editable installation reads them where they are."""

    def run(self) -> None:
        """Build."""
        super().run()
        if self.editable_mode:
            return
        root, target = Path(__file__).resolve().parent, Path(self.build_lib) / "tasks" / "shipped_files"
        shutil.rmtree(target, ignore_errors=True)
        for pattern in SHIPPED:
            for source in sorted(root.glob(pattern)):
                copy = target / source.relative_to(root)
                copy.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(source, copy)


setup(cmdclass={"build_py": BuildWithShipped})
