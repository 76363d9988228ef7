"""A profile for a long search: `pytest tests/properties --hypothesis-profile=thorough --timeout=0`."""

from __future__ import annotations

from hypothesis import settings

settings.register_profile("thorough", max_examples=2000)
