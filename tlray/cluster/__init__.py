"""The Ray underneath: the one a command runs on, its nodes, and the jobs that are sent to it."""
