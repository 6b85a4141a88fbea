"""The commands by group; `pipelines.__main__` puts them together."""
