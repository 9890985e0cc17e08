"""Photos of digits, and how they become pictures like those of the data set."""
