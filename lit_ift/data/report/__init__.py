"""The account of what became of every row: counted while rows stream by, shown in the terminal and as a page."""
