"""The suite's own speed, measured against goals."""

import warnings

# Before fvcore is imported, in each process of a measurement: meant for the libraries' authors.
warnings.filterwarnings("ignore", category=FutureWarning, module=r"torch\..*")
