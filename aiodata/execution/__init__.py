"""From a plan to bundles: operators in one task group, joined by bounded memory streams."""
