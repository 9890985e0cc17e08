"""What a sweep found: its runs, ranked and compared, as pages, tables and charts."""
