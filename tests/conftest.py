"""Shared fixtures: where the reference's numbers and the real images lie, and strict JAX settings."""

import os
import pathlib

import pytest

REPOSITORY = pathlib.Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def shared() -> pathlib.Path:
    """The folder with the reference's golden numbers and real images (HRNET_JAX_SHARED, default ../shared)."""
    folder = pathlib.Path(os.environ.get("HRNET_JAX_SHARED", REPOSITORY.parent / "shared")).resolve()
    if not folder.is_dir():
        pytest.skip(f"{folder} does not exist; set HRNET_JAX_SHARED")
    return folder
