"""Training: one loop, and the engines that run an epoch."""
