"""The switches: one verb of the command line a file, without logic of its own."""
