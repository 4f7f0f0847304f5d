"""Collections as a store: volumes prepared once, in few large files, of which a crop reads only the chunks it touches."""
