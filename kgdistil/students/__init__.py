"""Students on the training side: a model with its graph, exported, compared, ranked by codes (PyTorch)."""
