"""Only what pyproject.toml cannot say yet: where cffi finds the extension's builder."""

from setuptools import setup

setup(cffi_modules=["safespawn/_native_build.py:ffibuilder"])
