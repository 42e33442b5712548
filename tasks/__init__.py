"""One file a pipeline stage: load, call sparsekd, save. `python -m tasks.NAME` is the stage's command in dvc.yaml."""
