"""A scene becomes pictures that a person looks at."""
