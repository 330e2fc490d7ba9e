"""The methods: what is kept, and when. One file per method, found by its file name.

A method proposes masks; it never trains, loads data, counts cost or writes to a weight. See `methods/core/base.py`.
"""
