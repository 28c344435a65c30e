"""Export and serving of a trained detector. It knows inference and what lies below, and nothing of training."""
