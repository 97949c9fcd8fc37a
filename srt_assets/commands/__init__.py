"""What the `srt` commands do between the terminal and the core: running with a progress bar, tables to look at."""
