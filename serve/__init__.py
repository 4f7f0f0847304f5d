"""The product: the `larmor` command, the reading pipeline and the page."""
