"""The seconds of each epoch of `tlray.fit.fit` but the first. Called with features and a folder to write."""

import sys
import time

import numpy as np

from tlray.config import FitConfig
from tlray.fit import fit

times: list[float] = []
fit(sys.argv[1], sys.argv[2], FitConfig(), report=lambda metrics: times.append(time.perf_counter()))
print(*np.diff(times))
