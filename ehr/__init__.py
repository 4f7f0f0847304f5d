"""The patient's record beside the images. Nothing reads a record yet; the name is reserved so that imports have a direction."""
