"""The benchmark: this project beside PyKEEN, TorchKGE and plain PyTorch, on one machine in one run."""
