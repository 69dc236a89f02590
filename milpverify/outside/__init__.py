"""What lies outside of the process: signals and limits that end it, processes that it started, files that it writes."""
