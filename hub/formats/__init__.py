"""Derived formats of versions: made where the base model is, checked as far as can be seen without it, kept while somebody fetches them."""
