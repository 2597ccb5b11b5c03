"""What holds for every test."""

from __future__ import annotations

import os

from hypothesis import HealthCheck, settings

# A busy machine must not fail a property: examples have no deadline of their own, tests have one.
settings.register_profile("local", deadline=None, suppress_health_check=[HealthCheck.too_slow])
# In CI the same commit must give the same answer; new examples are looked for everywhere else.
settings.register_profile("ci", parent=settings.get_profile("local"), derandomize=True)
settings.load_profile("ci" if os.environ.get("CI") else "local")
