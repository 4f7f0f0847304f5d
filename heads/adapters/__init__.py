"""One backbone, many tasks: adapter folders (`folder`), one pass for all of them (`shared`), and their command (`command`)."""
