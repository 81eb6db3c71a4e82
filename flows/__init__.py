"""Recipes, data sets, the main job, the Prefect flow, the command line, the report. What runs here logs no secrets."""

from catalog.secrecy import guard_logs

guard_logs()
