"""Everything that comes in: graphs by name, from files and tables, and teachers that other libraries trained."""
