"""The main jobs: from folders to a folder, as the command line calls them."""
