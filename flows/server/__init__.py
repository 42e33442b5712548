"""Prefect's and MLflow's servers, the deployments on them, automations, retention."""
