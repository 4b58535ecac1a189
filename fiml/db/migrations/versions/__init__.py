"""One file per revision, in the order of `fiml.db.schema.REVISIONS`."""
