"""Verbs that Prefect schedules and shows; the only place that imports Prefect."""
