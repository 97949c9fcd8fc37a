"""From files and hub sets to rows as they are stored: any JSON value and its place. What a row means is in `forms`."""
