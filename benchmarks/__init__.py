"""hwaga side by side with its peers. Outside the tests, in an environment of its own: see README.md."""
