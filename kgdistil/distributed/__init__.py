"""Training and ranking on several ranks of torch.distributed, each of which holds a share of the entities."""
