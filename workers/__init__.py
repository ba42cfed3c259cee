"""The imperative shell: workers that read, compute and write, and the loop that they share."""
