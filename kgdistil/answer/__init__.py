"""A student at work, without PyTorch: opened, asked, extended."""
