"""Items that look like this one."""
