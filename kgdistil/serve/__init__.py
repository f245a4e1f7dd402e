"""A student asked over HTTP: what `kgdistil serve` starts. Needs the extra `serve`."""
