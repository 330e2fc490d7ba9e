"""Many runs: a grid's states, plan, order and progress."""
