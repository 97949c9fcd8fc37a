"""Starting a program as a shell without job control starts what it puts in the background: deaf to Ctrl-C."""

IN_BACKGROUND = ("sh", "-c", 'trap "" INT QUIT; exec "$@"', "sh")
