"""Papers as programs: one file a paper, one command that fits, evaluates and writes the page with a verdict a cell."""
