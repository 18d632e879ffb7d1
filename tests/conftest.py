"""One thread for each test process: tiny models gain nothing by more, and two processes that fight for two cores take ten times
as long."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
