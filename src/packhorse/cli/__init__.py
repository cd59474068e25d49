"""The command line: one file per group of commands, each imported only when it is called.

    main       the table of commands and the entry point
    lazy       groups that know their commands' names and help without importing them
    failing    from any error to one line on stderr and an exit code
    shell      what all commands share: the URL, --json, opening the store
    output     tables, JSON, and text that cannot play tricks on a terminal

Nothing at the head of these files may import a backend, msgspec or rich: `packhorse --help` must stay quick.
"""
