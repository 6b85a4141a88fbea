"""Commands as jobs of a Ray cluster: submitted, watched, stopped, tried again.

Read `submit` first; `prepare` comes before it, `watch` after it. The cluster is spoken to by its
Jobs API alone, over HTTP (`server`), so that nothing but one port has to be reached and Ray is not
imported here; `entrypoint` runs on the node.
"""
