"""A student at work: loaded, asked, scanned, exported."""
