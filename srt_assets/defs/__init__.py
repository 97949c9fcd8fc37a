"""All Dagster code: assets, checks, resources, sensors, schedules. Computations belong in `core`."""
