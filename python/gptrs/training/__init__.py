"""Training: the book's loop, and one that resumes, measures itself and runs on many devices."""
