"""Dagster at the edge: assets, checks, resources, sensors, schedules. No arithmetic here."""
