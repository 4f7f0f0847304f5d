"""From files to studies. Whatever a file gets wrong is one `InputError` that names the file."""
