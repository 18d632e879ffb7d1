"""Weights, vocabularies and demo scenes that the package ships."""
