"""`python -m tests.micro MODULE ARGUMENTS`: runs a command of the project, which then knows the variant `micro`."""

import runpy
import sys

import tests.helpers  # noqa: F401 (adds it)

if __name__ == "__main__":
    del sys.argv[0]
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
