"""The command line, a module a subject. What its commands call stands below."""
