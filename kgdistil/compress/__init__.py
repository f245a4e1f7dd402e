"""Fewer bytes an entity: product-quantised rows, packed numbers, low rank."""
