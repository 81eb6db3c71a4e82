"""Unattended mining: flows for Prefect, their deployments and schedules, and a server and worker on one machine.

`refreshing.py` is the work itself and needs no Prefect; everything else here puts it on a schedule.
"""
