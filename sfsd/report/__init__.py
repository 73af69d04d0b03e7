"""The report: a page of HTML that shows what the log and the store of a root have."""
