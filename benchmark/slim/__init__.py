"""`sparse-bench slim`: the really smaller network of a finished run, cut, compared, timed and written."""
