"""A classifier on a GPT, with scikit-learn's manners."""
