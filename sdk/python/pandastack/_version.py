# SPDX-License-Identifier: Apache-2.0
"""The version, in one place: the build reads it and requests carry it."""

__version__ = "0.11.0"
