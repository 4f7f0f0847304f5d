"""Self-supervised pretraining: `accelerate launch -m pretrain CONFIG key=value ...`."""
