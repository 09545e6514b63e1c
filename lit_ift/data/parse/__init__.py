"""Records to rows: layouts are recognised by their columns, and every text, message and tool is checked."""
