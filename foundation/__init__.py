"""What every other package stands on: studies, tokens, the encoder, the training loop, findings. Imports nothing of ours."""
