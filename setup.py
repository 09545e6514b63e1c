"""A wheel carries configs/ as lit_ift/configs; in a checkout and an editable install the folder is read where it is."""

from pathlib import Path
from shutil import copytree

from setuptools import setup
from setuptools.command.build_py import build_py


class BuildWithConfigs(build_py):
    """Copies the folder into what is built."""

    def run(self) -> None:
        super().run()
        if not self.editable_mode:
            copytree("configs", Path(self.build_lib) / "lit_ift" / "configs", dirs_exist_ok=True)


setup(cmdclass={"build_py": BuildWithConfigs})
