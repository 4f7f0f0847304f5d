"""Fitting a head to a task with few labels: `accelerate launch -m finetune CONFIG key=value ...`."""
