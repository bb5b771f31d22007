"""The documents as a site: ``make docs`` writes it to .cache/docs/site.

The pages are those of docs/, which read well as files too. What the code knows better is put in where a page has a
comment such as ``<!-- site: configuration -->``: the keys of the configuration, the options of the commands, the names
of the library, and diagrams.
"""
